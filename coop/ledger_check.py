"""The ledger's invariants, checked over every row: the nightly and the sceptic's question.

I1 all accounts sum to zero · I2 counters equal the transfers and open holds · I3 no overdraft,
holds included · I4 the guards against change and deletion stand · I5 an idempotency key stands for
exactly the body that is stored · I6 a hold resolves once, for at most its amount · I7 a pool's
balance is what its holders are owed and its carry · I8 a window's parts sum to its fees · I13 money
only flows between the kinds of accounts that `coop.accounts.ALLOWED` names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from coop.accounts import ALLOWED, TRIGGERS, account, hold, journal, transfer
from coop.canonical import parse_object
from coop.ledger import HoldState, Leg, body_sha256
from coop.money import NanoCredits
from coop.pools import holding_table, pool_table, window_fee, window_table

_CHUNK: Final = 5_000
_FINDINGS_MAX: Final = 100  # more say nothing new


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it must be."""

    invariant: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was looked at, and what was wrong with it."""

    accounts: int
    journals: int
    transfers: int
    holds: int
    pools: int
    windows: int
    supply_nano: int
    """Credits ever issued: what all accounts but the issuance have together."""
    findings: list[Finding]


def check(connection: sa.Connection) -> Checked:
    """Look at every row; findings name accounts of people by kind only."""
    found: list[Finding] = []
    for finding in _findings(connection):
        found.append(finding)
        if len(found) == _FINDINGS_MAX:
            break
    counts = {
        table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        for table in (account, journal, transfer, hold, pool_table, window_table)
    }
    issued = sa.select(account.c.debits_posted).where(account.c.code == "issuance")
    return Checked(
        accounts=counts["ledger_account"],
        journals=counts["ledger_journal"],
        transfers=counts["ledger_transfer"],
        holds=counts["ledger_hold"],
        pools=counts["pool"],
        windows=counts["dividend_window"],
        supply_nano=connection.execute(issued).scalar() or 0,
        findings=found,
    )


def _findings(connection: sa.Connection) -> Iterator[Finding]:
    yield from _guards(connection)
    yield from _accounts(connection)
    yield from _bodies(connection)
    yield from _holds(connection)
    yield from _pools(connection)
    yield from _windows(connection)


def _guards(connection: sa.Connection) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        query = sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    else:
        query = sa.text("SELECT tgname FROM pg_trigger WHERE tgenabled <> 'D'")
    standing = set(connection.execute(query).scalars())
    for name in sorted(TRIGGERS - standing):
        yield Finding(invariant="I4", what=f"the guard {name} is missing or disabled")


def _sums(connection: sa.Connection, column: sa.Column[int]) -> dict[int, int]:
    query = sa.select(column, sa.func.sum(transfer.c.amount)).group_by(column)
    # PostgreSQL's sum of bigint is a decimal.
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def _pending(connection: sa.Connection, column: sa.Column[int]) -> dict[int, int]:
    query = (
        sa.select(column, sa.func.sum(hold.c.amount))
        .where(hold.c.state == HoldState.PENDING)
        .group_by(column)
    )
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def _accounts(connection: sa.Connection) -> Iterator[Finding]:
    debits, credits_ = (
        _sums(connection, transfer.c.debit_id),
        _sums(connection, transfer.c.credit_id),
    )
    held, coming = _pending(connection, hold.c.debit_id), _pending(connection, hold.c.credit_id)
    total = pending = 0
    for row in connection.execute(sa.select(account)):
        total += row.credits_posted - row.debits_posted
        pending += row.credits_pending - row.debits_pending
        counters = (row.debits_posted, row.credits_posted, row.debits_pending, row.credits_pending)
        if counters != tuple(sums.get(row.id, 0) for sums in (debits, credits_, held, coming)):
            yield Finding(invariant="I2", what=f"counters of {_named(row)} differ from its rows")
        if not row.may_overdraw and row.credits_posted < row.debits_posted + row.debits_pending:
            yield Finding(invariant="I3", what=f"{_named(row)} is overdrawn")
        if row.may_overdraw != (row.code == "issuance") or row.code.split(":")[0] != row.kind:
            yield Finding(invariant="I13", what=f"{_named(row)} is of a wrong kind")
    if total or pending:
        yield Finding(invariant="I1", what=f"the accounts sum to {total}, the holds to {pending}")


def _named(row: sa.Row[Any]) -> str:
    private = row.kind in {"patient", "member", "researcher"}
    return f"{row.kind} account {row.id}" if private else str(row.code)


def _bodies(connection: sa.Connection) -> Iterator[Finding]:
    debit, credit = account.alias("debit"), account.alias("credit")
    query = (
        sa.select(
            journal.c.id, journal.c.kind, journal.c.meta, journal.c.body_sha256,
            transfer.c.amount, debit.c.code.label("debit"), credit.c.code.label("credit"),
            debit.c.kind.label("debit_kind"), credit.c.kind.label("credit_kind"),
        )
        .outerjoin(transfer, transfer.c.journal_id == journal.c.id)
        .outerjoin(debit, debit.c.id == transfer.c.debit_id)
        .outerjoin(credit, credit.c.id == transfer.c.credit_id)
        .order_by(journal.c.id, transfer.c.leg)
        .execution_options(yield_per=_CHUNK)
    )  # fmt: skip
    allowed = {(str(debit_kind), str(credit_kind)) for debit_kind, credit_kind in ALLOWED}
    legs: list[Leg] = []
    last: Any = None
    for row in connection.execute(query):
        if last is not None and row.id != last.id:
            yield from _body(last, legs)
            legs = []
        if row.amount is not None:
            legs.append(Leg(row.debit, row.credit, NanoCredits(row.amount)))
            if (row.debit_kind, row.credit_kind) not in allowed:
                yield Finding(invariant="I13", what=f"entry {row.id}: a flow that is not allowed")
        last = row
    if last is not None:
        yield from _body(last, legs)


def _body(row: sa.Row[Any], legs: list[Leg]) -> Iterator[Finding]:
    if body_sha256(row.kind, legs, parse_object(row.meta)) != row.body_sha256:
        yield Finding(invariant="I5", what=f"entry {row.id} is not what its key was used for")


def _holds(connection: sa.Connection) -> Iterator[Finding]:
    key = sa.literal("capture:").concat(sa.cast(hold.c.id, sa.Text))
    paid = (
        sa.select(sa.func.coalesce(sa.func.sum(transfer.c.amount), 0))
        .join(journal, journal.c.id == transfer.c.journal_id)
        .where(
            journal.c.key == key,
            transfer.c.debit_id == hold.c.debit_id,
            transfer.c.credit_id == hold.c.credit_id,
        )
        .scalar_subquery()
    )
    wrong = sa.select(hold.c.id).where(
        sa.or_(paid != hold.c.captured, hold.c.captured > hold.c.amount)
    )
    for hold_id in connection.execute(wrong).scalars():
        yield Finding(invariant="I6", what=f"hold {hold_id}: what was captured was not paid")


def _pools(connection: sa.Connection) -> Iterator[Finding]:
    code = sa.literal("pool:") + pool_table.c.model_id + ":" + pool_table.c.site
    owed = holding_table.c.shares * (pool_table.c.acc - holding_table.c.acc_seen)
    query = (
        sa.select(
            pool_table,
            account.c.credits_posted,
            account.c.debits_posted,
            sa.func.coalesce(sa.func.sum(owed), 0).label("owed"),
            sa.func.coalesce(sa.func.sum(holding_table.c.shares), 0).label("total"),
        )
        .outerjoin(holding_table, holding_table.c.pool_id == pool_table.c.id)
        .outerjoin(
            account,
            account.c.code == code,
        )
        .group_by(*pool_table.c, account.c.credits_posted, account.c.debits_posted)
    )
    for row in connection.execute(query):
        balance = (row.credits_posted or 0) - (row.debits_posted or 0)
        name = f"pool {row.model_id} at {row.site}"
        if balance != int(row.owed) + row.carry:
            yield Finding(invariant="I7", what=f"{name}: its balance is not what it owes")
        if row.shares != int(row.total) or (row.carry >= row.shares > 0):
            yield Finding(invariant="I7", what=f"{name}: its shares or carry are wrong")


def _windows(connection: sa.Connection) -> Iterator[Finding]:
    posted = (
        sa.select(sa.func.coalesce(sa.func.sum(transfer.c.amount), 0))
        .where(transfer.c.journal_id == window_table.c.journal_id)
        .scalar_subquery()
    )
    fees = (
        sa.select(sa.func.coalesce(sa.func.sum(transfer.c.amount), 0))
        .join(window_fee, window_fee.c.journal_id == transfer.c.journal_id)
        .where(
            window_fee.c.model_id == window_table.c.model_id,
            window_fee.c.sequence == window_table.c.sequence,
        )
        .scalar_subquery()
    )
    query = sa.select(window_table.c.model_id, window_table.c.sequence).where(posted != fees)
    for row in connection.execute(query):
        what = f"window {row.sequence} of {row.model_id}: its parts are not its fees"
        yield Finding(invariant="I8", what=what)
