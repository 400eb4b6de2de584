"""The books' tables: accounts, journals, transfers and holds, guarded by the database itself.

A transfer is (debit, credit, amount > 0): every row balances by construction. The database keeps
the four counters of each account by triggers, refuses overdrafts by a CHECK, refuses kinds of
transfers that the cooperative does not know (no member pays a member), and refuses to change or
delete what is written. Python cannot get any of this wrong, because Python does not do it.
"""

# ruff: noqa: S608  (every statement here is put together from constants of this module)

from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy import event

from coop.db import RowId, metadata
from coop.errors import InvalidInputError


class AccountKind(StrEnum):
    """What an account is for; the first part of its code (`pool:MODEL:SITE`)."""

    ISSUANCE = "issuance"
    RESEARCHER = "researcher"
    REVENUE = "revenue"
    COMMONS = "commons"
    OPERATIONS = "operations"
    HOSPITAL = "hospital"
    POOL = "pool"
    PATIENT = "patient"
    MEMBER = "member"


ALLOWED: Final = frozenset(
    {
        (AccountKind.ISSUANCE, AccountKind.RESEARCHER),
        (AccountKind.RESEARCHER, AccountKind.REVENUE),
        (AccountKind.REVENUE, AccountKind.COMMONS),
        (AccountKind.REVENUE, AccountKind.OPERATIONS),
        (AccountKind.REVENUE, AccountKind.HOSPITAL),
        (AccountKind.REVENUE, AccountKind.POOL),
        (AccountKind.POOL, AccountKind.PATIENT),
        (AccountKind.POOL, AccountKind.COMMONS),
        (AccountKind.PATIENT, AccountKind.MEMBER),
    }
)
"""(debit kind, credit kind): every way money may flow. Credits are not tradable: nothing leads from
a member, and nothing leads to a researcher but the cooperative's own issuance."""


def kind_of(code: str) -> AccountKind:
    """The kind of an account code.

    Raises:
        InvalidInputError: The code names no kind we know.
    """
    try:
        return AccountKind(code.partition(":")[0])
    except ValueError as error:
        raise InvalidInputError(f"account: {code!r} is of no known kind") from error


account = sa.Table(
    "ledger_account",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("code", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("may_overdraw", sa.Boolean, nullable=False),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
        for name in ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
    ),
    sa.CheckConstraint(
        "debits_pending >= 0 AND debits_posted >= 0 AND credits_pending >= 0 "
        "AND credits_posted >= 0",
        name="not_negative",
    ),
    sa.CheckConstraint(
        "may_overdraw OR credits_posted - debits_posted - debits_pending >= 0", name="no_overdraft"
    ),
)

journal = sa.Table(
    "ledger_journal",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("meta", sa.Text, nullable=False),
)

transfer = sa.Table(
    "ledger_transfer",
    metadata,
    sa.Column("journal_id", sa.ForeignKey(journal.c.id), primary_key=True),
    sa.Column("leg", sa.Integer, primary_key=True),
    sa.Column("debit_id", sa.ForeignKey(account.c.id), nullable=False, index=True),
    sa.Column("credit_id", sa.ForeignKey(account.c.id), nullable=False, index=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.CheckConstraint("amount > 0", name="positive"),
    sa.CheckConstraint("debit_id <> credit_id", name="two_accounts"),
)

hold = sa.Table(
    "ledger_hold",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("debit_id", sa.ForeignKey(account.c.id), nullable=False, index=True),
    sa.Column("credit_id", sa.ForeignKey(account.c.id), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("captured", sa.BigInteger, nullable=False),
    sa.CheckConstraint("amount > 0", name="positive"),
    sa.CheckConstraint("debit_id <> credit_id", name="two_accounts"),
    sa.CheckConstraint("state IN ('pending', 'posted', 'voided', 'expired')", name="state"),
    sa.CheckConstraint(
        "(state = 'posted' AND captured > 0 AND captured <= amount) "
        "OR (state <> 'posted' AND captured = 0)",
        name="captured",
    ),
    sa.Index("ix_ledger_hold_state_expires", "state", "expires"),
)

TRIGGERS: Final = frozenset(
    {
        "ledger_account_fixed", "ledger_account_kept",
        "ledger_journal_fixed", "ledger_journal_kept",
        "ledger_transfer_fixed", "ledger_transfer_kept", "ledger_transfer_apply",
        "ledger_hold_kept", "ledger_hold_insert", "ledger_hold_resolve",
    }
)  # fmt: skip
"""Names of the guards on both databases; `coop ledger check` looks for each (I4)."""

_PAIRS: Final = ", ".join(f"'{debit}>{credit}'" for debit, credit in sorted(ALLOWED))
_UNKNOWN_KINDS: Final = (
    "NOT EXISTS (SELECT 1 FROM ledger_account d, ledger_account c WHERE d.id = {0}.debit_id "
    f"AND c.id = {{0}}.credit_id AND d.kind || '>' || c.kind IN ({_PAIRS}))"
)
_HOLD_CHANGED: Final = (
    "OLD.state <> 'pending' OR NEW.state = 'pending' OR OLD.id <> NEW.id OR OLD.key <> NEW.key "
    "OR OLD.body_sha256 <> NEW.body_sha256 OR OLD.debit_id <> NEW.debit_id "
    "OR OLD.credit_id <> NEW.credit_id OR OLD.amount <> NEW.amount "
    "OR OLD.expires <> NEW.expires OR OLD.at <> NEW.at"
)
_ACCOUNT_CHANGED: Final = (
    "OLD.id <> NEW.id OR OLD.code <> NEW.code OR OLD.kind <> NEW.kind "
    "OR OLD.may_overdraw <> NEW.may_overdraw"
)


def _move(counter: str, sign: str, row: str) -> str:
    return (
        f"UPDATE ledger_account SET credits_{counter} = credits_{counter} {sign} {row}.amount "
        f"WHERE id = {row}.credit_id; "
        f"UPDATE ledger_account SET debits_{counter} = debits_{counter} {sign} {row}.amount "
        f"WHERE id = {row}.debit_id;"
    )


def _sqlite_refuse(name: str, moment: str, table: str, when: str = "") -> str:
    condition = f" WHEN {when}" if when else ""
    return (
        f"CREATE TRIGGER {name} BEFORE {moment} ON {table}{condition} "
        f"BEGIN SELECT RAISE(ABORT, '{name}'); END"
    )


def _sqlite() -> dict[sa.Table, list[str]]:
    return {
        account: [
            _sqlite_refuse("ledger_account_fixed", "UPDATE", account.name, _ACCOUNT_CHANGED),
            _sqlite_refuse("ledger_account_kept", "DELETE", account.name),
        ],
        journal: [
            _sqlite_refuse("ledger_journal_fixed", "UPDATE", journal.name),
            _sqlite_refuse("ledger_journal_kept", "DELETE", journal.name),
        ],
        transfer: [
            _sqlite_refuse("ledger_transfer_fixed", "UPDATE", transfer.name),
            _sqlite_refuse("ledger_transfer_kept", "DELETE", transfer.name),
            _sqlite_refuse(
                "ledger_transfer_kinds", "INSERT", transfer.name, _UNKNOWN_KINDS.format("NEW")
            ),
            (
                "CREATE TRIGGER ledger_transfer_apply AFTER INSERT ON ledger_transfer BEGIN "
                f"{_move('posted', '+', 'NEW')} END"
            ),
        ],
        hold: [
            _sqlite_refuse("ledger_hold_kept", "DELETE", hold.name),
            _sqlite_refuse("ledger_hold_fixed", "UPDATE", hold.name, _HOLD_CHANGED),
            _sqlite_refuse(
                "ledger_hold_kinds",
                "INSERT",
                hold.name,
                f"NEW.state <> 'pending' OR {_UNKNOWN_KINDS.format('NEW')}",
            ),
            (
                "CREATE TRIGGER ledger_hold_insert AFTER INSERT ON ledger_hold BEGIN "
                f"{_move('pending', '+', 'NEW')} END"
            ),
            (
                "CREATE TRIGGER ledger_hold_resolve AFTER UPDATE ON ledger_hold BEGIN "
                f"{_move('pending', '-', 'NEW')} END"
            ),
        ],
    }


def _pg_function(name: str, body: str) -> str:
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $coop$ "
        f"BEGIN {body} END $coop$"
    )


def _pg_refuse(name: str, moment: str, table: str, when: str = "") -> str:
    # One function for all: the trigger's own name is the message.
    condition = f" WHEN ({when})" if when else ""
    return (
        f"CREATE TRIGGER {name} BEFORE {moment} ON {table} FOR EACH ROW{condition} "
        f"EXECUTE FUNCTION ledger_refuse()"
    )


_PG_REFUSE: Final = _pg_function(
    "ledger_refuse", "RAISE EXCEPTION USING MESSAGE = TG_NAME, ERRCODE = 'check_violation';"
)
# FOR NO KEY UPDATE, not FOR UPDATE: the foreign keys' own FOR KEY SHARE locks conflict with the
# latter and deadlock on a hot account (measured). In id order, so that no two can wait in a ring.
_PG_APPLY: Final = _pg_function(
    "ledger_transfer_apply",
    "PERFORM 1 FROM ledger_account WHERE id IN (SELECT debit_id FROM n UNION SELECT credit_id "
    "FROM n) ORDER BY id FOR NO KEY UPDATE; "
    f"IF EXISTS (SELECT 1 FROM n WHERE {_UNKNOWN_KINDS.format('n')}) THEN "
    "RAISE EXCEPTION USING MESSAGE = 'ledger_transfer_kinds', ERRCODE = 'check_violation'; "
    "END IF; "
    "UPDATE ledger_account a SET debits_posted = debits_posted + s.d, "
    "credits_posted = credits_posted + s.c FROM (SELECT id, sum(d)::bigint d, sum(c)::bigint c "
    "FROM (SELECT debit_id id, amount d, 0::bigint c FROM n UNION ALL "
    "SELECT credit_id, 0, amount FROM n) u GROUP BY id) s WHERE a.id = s.id; "
    "RETURN NULL;",
)


def _postgresql() -> dict[sa.Table, list[str]]:
    hold_insert = (
        f"IF NEW.state <> 'pending' OR {_UNKNOWN_KINDS.format('NEW')} THEN "
        "RAISE EXCEPTION USING MESSAGE = 'ledger_hold_kinds', ERRCODE = 'check_violation'; "
        f"END IF; {_move('pending', '+', 'NEW')} RETURN NULL;"
    )
    return {
        account: [
            _PG_REFUSE,
            _pg_refuse("ledger_account_fixed", "UPDATE", account.name, _ACCOUNT_CHANGED),
            _pg_refuse("ledger_account_kept", "DELETE", account.name),
        ],
        journal: [
            _pg_refuse("ledger_journal_fixed", "UPDATE", journal.name),
            _pg_refuse("ledger_journal_kept", "DELETE", journal.name),
        ],
        transfer: [
            _pg_refuse("ledger_transfer_fixed", "UPDATE", transfer.name),
            _pg_refuse("ledger_transfer_kept", "DELETE", transfer.name),
            _PG_APPLY,
            (
                "CREATE TRIGGER ledger_transfer_apply AFTER INSERT ON ledger_transfer "
                "REFERENCING NEW TABLE AS n FOR EACH STATEMENT "
                "EXECUTE FUNCTION ledger_transfer_apply()"
            ),
        ],
        hold: [
            _pg_refuse("ledger_hold_kept", "DELETE", hold.name),
            _pg_refuse("ledger_hold_fixed", "UPDATE", hold.name, _HOLD_CHANGED),
            _pg_function("ledger_hold_insert", hold_insert),
            (
                "CREATE TRIGGER ledger_hold_insert AFTER INSERT ON ledger_hold FOR EACH ROW "
                "EXECUTE FUNCTION ledger_hold_insert()"
            ),
            _pg_function("ledger_hold_resolve", f"{_move('pending', '-', 'NEW')} RETURN NULL;"),
            (
                "CREATE TRIGGER ledger_hold_resolve AFTER UPDATE ON ledger_hold FOR EACH ROW "
                "EXECUTE FUNCTION ledger_hold_resolve()"
            ),
        ],
    }


for _dialect, _guards in (("sqlite", _sqlite()), ("postgresql", _postgresql())):
    for _table, _statements in _guards.items():
        for _statement in _statements:
            _ddl = sa.DDL(_statement)  # type: ignore[no-untyped-call]  # SQLAlchemy left it untyped
            event.listen(_table, "after_create", _ddl.execute_if(dialect=_dialect))
