"""Double-entry books in integer nano-credits: post, hold, capture, void, expire, read.

Every write takes an idempotency key: the same key with the same body is answered with the first
result, the same key with another body is a conflict. Everything happens in the caller's unit of
work, so a fact and its money become durable together or not at all.

Lock order, everywhere: pool → holding → hold → accounts in id order. `coop.accounts` has the tables
and the guards that the database itself keeps.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from coop.accounts import ALLOWED, AccountKind, account, journal, kind_of, transfer
from coop.accounts import hold as hold_table
from coop.canonical import digest, jcs
from coop.db import insert_ignore
from coop.errors import ConflictError, CoopError, InvalidInputError, Kind, NotFoundError
from coop.money import SUPPLY_MAX_NANO, NanoCredits, to_text

_TAG: Final = b"coop/ledger/v1"
LEGS_MAX: Final = 10_000  # a window has at most 2 legs per hospital; a claim one per pool and pid
EXPIRE_BATCH: Final = 500  # holds expired in one transaction

# Built once: putting a statement together costs more than running it.
_WHICH: Final[sa.BindParameter[object]] = sa.bindparam("which", expanding=True)
_LOCKED: Final = sa.select(account).order_by(account.c.id).with_for_update(key_share=True)
_BY_CODE: Final = _LOCKED.where(account.c.code.in_(_WHICH))
_BY_ID: Final = _LOCKED.where(account.c.id.in_(_WHICH))
_NEW_JOURNAL: Final = {
    name: insert(journal).on_conflict_do_nothing().returning(journal.c.id)
    for name, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}


class InsufficientCreditsError(CoopError):
    """The account has too few credits that are neither spent nor held."""

    code = "ledger.insufficient-credits"
    kind = Kind.UNPAID


class KeyReusedError(ConflictError):
    """This idempotency key was used for something else."""

    code = "ledger.key-reused"


class TransferNotAllowedError(CoopError):
    """Money may not flow between these kinds of accounts."""

    code = "ledger.transfer-not-allowed"
    kind = Kind.FORBIDDEN


class HoldResolvedError(ConflictError):
    """The hold was already captured, voided or expired."""

    code = "ledger.hold-resolved"


class HoldState(StrEnum):
    """A hold is pending until it resolves, once."""

    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Leg:
    """`amount` > 0 from the account `debit` to the account `credit`, both by code."""

    debit: str
    credit: str
    amount: NanoCredits


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """A journal entry; `created` is False when its key had been posted before."""

    journal_id: int
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Credits set aside."""

    id: int
    state: HoldState
    leg: Leg
    captured: NanoCredits
    expires: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What an account has: `posted` in total, `held` of it set aside, the rest `available`."""

    posted: NanoCredits
    held: NanoCredits

    @property
    def available(self) -> NanoCredits:
        """What may be spent now."""
        return NanoCredits(self.posted - self.held)


def post(
    connection: sa.Connection,
    *,
    key: str,
    kind: str,
    legs: Sequence[Leg],
    now: int,
    meta: Mapping[str, str | int] | None = None,
) -> Posted:
    """Write one journal entry, all legs or none.

    Legs apply in order: a later leg may spend what an earlier one brought.

    Args:
        connection: The caller's unit of work.
        key: Idempotency key, unique in the whole ledger.
        kind: What happened: `issue`, `capture`, `window`, `settle`, `claim`, `residual`.
        legs: At least one.
        now: UTC seconds.
        meta: What the entry refers to, as integers and text.

    Raises:
        InsufficientCreditsError: A debit account would be overdrawn; facts: `missing_nano`.
        KeyReusedError: The key stands under another entry.
        TransferNotAllowedError: A pair of account kinds is not in `coop.accounts.ALLOWED`.
    """
    _check_legs(legs)
    about = dict(meta or {})
    body = body_sha256(kind, legs, about)
    entry: dict[str, object] = {
        "key": key,
        "kind": kind,
        "body_sha256": body,
        "at": now,
        "meta": jcs(about).decode(),
    }
    journal_id = _new_journal(connection, entry)
    if journal_id is None:
        stored = connection.execute(sa.select(journal).where(journal.c.key == key)).one()
        if stored.body_sha256 != body:
            raise KeyReusedError(f"key {key}: was used for another entry")
        return Posted(journal_id=stored.id, created=False)
    _insert_legs(connection, journal_id, legs)
    return Posted(journal_id=journal_id, created=True)


def hold(connection: sa.Connection, *, key: str, leg: Leg, expires: int, now: int) -> Hold:
    """Set `leg.amount` aside until it is captured, voided or expires.

    Args:
        connection: The caller's unit of work.
        key: Idempotency key of the hold.
        leg: Who would pay whom how much at most.
        expires: UTC seconds from which it can no longer be captured.
        now: UTC seconds.

    Raises:
        InsufficientCreditsError: Too little is available; facts: `missing_nano`.
        KeyReusedError: The key stands under another hold.
    """
    _check_legs([leg])
    body = body_sha256("hold", [leg], {})
    stored = _held_under(connection, key)
    if stored is None:
        accounts = lock_accounts(connection, {leg.debit, leg.credit})
        _check_available(accounts, [leg])
        row: dict[str, object] = {
            "key": key, "body_sha256": body, "debit_id": accounts[leg.debit].id,
            "credit_id": accounts[leg.credit].id, "amount": leg.amount, "expires": expires,
            "at": now, "state": HoldState.PENDING.value, "captured": 0,
        }  # fmt: skip
        # Two first uses of one key at once: the unique key lets one in, both read what it wrote.
        insert_ignore(connection, hold_table, row)
        stored = _held_under(connection, key)
    if stored is None or stored.body_sha256 != body:
        raise KeyReusedError(f"key {key}: was used for another hold")
    return find_hold(connection, stored.id)


def find_hold(connection: sa.Connection, hold_id: int) -> Hold:
    """The hold as it stands.

    Raises:
        NotFoundError: There is none.
    """
    debit, credit = account.alias("debit"), account.alias("credit")
    row = connection.execute(
        sa.select(hold_table, debit.c.code.label("debit"), credit.c.code.label("credit"))
        .join(debit, debit.c.id == hold_table.c.debit_id)
        .join(credit, credit.c.id == hold_table.c.credit_id)
        .where(hold_table.c.id == hold_id)
        .with_for_update(key_share=True, of=hold_table)
    ).one_or_none()
    if row is None:
        raise NotFoundError("hold: there is none of this number")
    return Hold(
        id=row.id,
        state=HoldState(row.state),
        leg=Leg(row.debit, row.credit, NanoCredits(row.amount)),
        captured=NanoCredits(row.captured),
        expires=row.expires,
    )


def capture(
    connection: sa.Connection,
    hold_id: int,
    *,
    amount: NanoCredits | None = None,
    now: int,
    meta: Mapping[str, str | int] | None = None,
) -> Posted:
    """Pay `amount` (at most, and by default, all) of a hold and release the rest.

    Capturing the same amount again is answered with the same entry.

    Raises:
        HoldResolvedError: It was voided, has expired, or was captured with another amount.
        InvalidInputError: The amount is not between 1 and the hold's.
    """
    held = find_hold(connection, hold_id)
    paid = held.leg.amount if amount is None else amount
    if not 0 < paid <= held.leg.amount:
        raise InvalidInputError("amount: must be positive and at most what is held")
    leg = Leg(held.leg.debit, held.leg.credit, paid)
    about = {"hold": hold_id, **(meta or {})}
    if held.state is not HoldState.POSTED:
        if held.state is not HoldState.PENDING or now >= held.expires:
            raise HoldResolvedError("hold: was voided or has expired; nothing was paid")
        lock_accounts(connection, {leg.debit, leg.credit})
        # Released and paid in one transaction: no other spender can see the credits in between.
        _resolve(connection, hold_id, HoldState.POSTED, captured=paid)
    elif held.captured != paid:
        raise HoldResolvedError("hold: was captured with another amount")
    key = f"capture:{hold_id}"
    return post(connection, key=key, kind="capture", legs=[leg], now=now, meta=about)


def void(connection: sa.Connection, hold_id: int) -> None:
    """Give a hold back. Voiding what was voided or has expired changes nothing.

    Raises:
        HoldResolvedError: It was captured.
    """
    held = find_hold(connection, hold_id)
    if held.state is HoldState.POSTED:
        raise HoldResolvedError("hold: was captured; the payment stands")
    if held.state is HoldState.PENDING:
        lock_accounts(connection, {held.leg.debit, held.leg.credit})
        _resolve(connection, hold_id, HoldState.VOIDED)


def expire(connection: sa.Connection, now: int) -> int:
    """Give back up to 500 holds that nobody captured in time; returns how many."""
    due = connection.execute(
        sa.select(hold_table.c.id, hold_table.c.debit_id, hold_table.c.credit_id)
        .where(hold_table.c.state == HoldState.PENDING, hold_table.c.expires <= now)
        .order_by(hold_table.c.id)
        .limit(EXPIRE_BATCH)
        .with_for_update(key_share=True, skip_locked=True)
    ).all()
    touched = {row.debit_id for row in due} | {row.credit_id for row in due}
    _lock_ids(connection, touched)
    for row in due:
        _resolve(connection, row.id, HoldState.EXPIRED)
    return len(due)


def balance(connection: sa.Connection, code: str) -> Balance:
    """What the account has; an account that nobody has used yet has nothing."""
    row = connection.execute(sa.select(account).where(account.c.code == code)).one_or_none()
    if row is None:
        return Balance(posted=NanoCredits(0), held=NanoCredits(0))
    return Balance(
        posted=NanoCredits(row.credits_posted - row.debits_posted),
        held=NanoCredits(row.debits_pending),
    )


def body_sha256(kind: str, legs: Sequence[Leg], meta: Mapping[str, object]) -> str:
    """What an idempotency key stands for. Amounts are text: JSON integers end at 2^53."""
    lines = [[leg.debit, leg.credit, str(leg.amount)] for leg in legs]
    return digest(_TAG, {"kind": kind, "legs": lines, "meta": dict(meta)}).hex()


def lock_accounts(connection: sa.Connection, codes: set[str]) -> dict[str, sa.Row[object]]:
    """The accounts by code, made if missing, locked in id order until the transaction ends."""
    found = _locked(connection, _BY_CODE, codes)
    missing = sorted(codes - found.keys())
    for code in missing:
        kind = kind_of(code)
        overdraw = kind is AccountKind.ISSUANCE
        row: dict[str, object] = {"code": code, "kind": kind.value, "may_overdraw": overdraw}
        insert_ignore(connection, account, row)
    return _locked(connection, _BY_CODE, codes) if missing else found


def _new_journal(connection: sa.Connection, entry: dict[str, object]) -> int | None:
    statement = _NEW_JOURNAL[connection.dialect.name]
    found: int | None = connection.execute(statement, entry).scalar_one_or_none()
    return found


def _held_under(connection: sa.Connection, key: str) -> sa.Row[int, str] | None:
    query = sa.select(hold_table.c.id, hold_table.c.body_sha256).where(hold_table.c.key == key)
    return connection.execute(query).one_or_none()


def _lock_ids(connection: sa.Connection, ids: set[int]) -> None:
    _locked(connection, _BY_ID, ids)


def _locked(
    connection: sa.Connection, query: sa.Select[object], which: Collection[str | int]
) -> dict[str, sa.Row[object]]:
    return {row.code: row for row in connection.execute(query, {"which": sorted(which)})}


def _check_legs(legs: Sequence[Leg]) -> None:
    if not 0 < len(legs) <= LEGS_MAX:
        raise InvalidInputError(f"legs: an entry has between 1 and {LEGS_MAX}")
    for leg in legs:
        if not 0 < leg.amount <= SUPPLY_MAX_NANO:
            raise InvalidInputError("amount: must be a positive number of nano-credits")
        pair = (kind_of(leg.debit), kind_of(leg.credit))
        if pair not in ALLOWED:
            raise TransferNotAllowedError(f"money may not flow from {pair[0]} to {pair[1]}")


def _check_available(accounts: Mapping[str, sa.Row[object]], legs: Sequence[Leg]) -> None:
    available = {
        code: row.credits_posted - row.debits_posted - row.debits_pending
        for code, row in accounts.items()
    }
    for leg in legs:
        available[leg.debit] -= leg.amount
        available[leg.credit] += leg.amount
        missing = -available[leg.debit]
        if missing > SUPPLY_MAX_NANO:
            raise InvalidInputError("amount: more than all the credits there can be")
        if missing > 0 and not accounts[leg.debit].may_overdraw:
            raise InsufficientCreditsError(
                f"credits: {to_text(NanoCredits(missing))} are missing", missing_nano=missing
            )


def _insert_legs(connection: sa.Connection, journal_id: int, legs: Sequence[Leg]) -> None:
    accounts = lock_accounts(connection, {leg.debit for leg in legs} | {leg.credit for leg in legs})
    _check_available(accounts, legs)
    debits = [accounts[leg.debit].id for leg in legs]
    credits_ = [accounts[leg.credit].id for leg in legs]
    amounts = [leg.amount for leg in legs]
    if connection.dialect.name == "postgresql":
        # One statement for all legs, so that the statement-level trigger fires once.
        connection.execute(
            sa.text(
                "INSERT INTO ledger_transfer (journal_id, leg, debit_id, credit_id, amount) "
                "SELECT :j, t.n - 1, t.d, t.c, t.a FROM unnest(CAST(:d AS bigint[]), "
                "CAST(:c AS bigint[]), CAST(:a AS bigint[])) WITH ORDINALITY AS t(d, c, a, n)"
            ),
            {"j": journal_id, "d": debits, "c": credits_, "a": amounts},
        )
        return
    rows = [
        {"journal_id": journal_id, "leg": leg, "debit_id": debit, "credit_id": credit, "amount": a}
        for leg, (debit, credit, a) in enumerate(zip(debits, credits_, amounts, strict=True))
    ]
    connection.execute(sa.insert(transfer), rows)


def _resolve(
    connection: sa.Connection, hold_id: int, state: HoldState, *, captured: int = 0
) -> None:
    connection.execute(
        sa.update(hold_table)
        .where(hold_table.c.id == hold_id)
        .values(state=state.value, captured=captured)
    )
