"""Reading the books: an account's statement and the legs of an entry."""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from coop.accounts import account, journal, transfer
from coop.canonical import parse_object
from coop.ledger import Leg
from coop.money import NanoCredits

LINES_MAX: Final = 1_000  # of a statement in one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One transfer as seen from an account: `amount` is positive when the account gained."""

    journal_id: int
    leg: int
    kind: str
    at: int
    other: str
    amount: NanoCredits
    meta: dict[str, object]


def statement(
    connection: sa.Connection, code: str, *, before: int | None = None, limit: int = 200
) -> list[Line]:
    """The account's transfers, newest first.

    Args:
        connection: An open transaction.
        code: The account.
        before: Only journals below this id, to page on.
        limit: At most so many lines (no more than 1000).
    """
    mine, debit, credit = account.alias("mine"), account.alias("debit"), account.alias("credit")
    query = (
        sa.select(
            transfer, journal.c.kind, journal.c.at, journal.c.meta,
            debit.c.code.label("debit"), credit.c.code.label("credit"),
        )
        .join(journal, journal.c.id == transfer.c.journal_id)
        .join(debit, debit.c.id == transfer.c.debit_id)
        .join(credit, credit.c.id == transfer.c.credit_id)
        .join(mine, sa.or_(mine.c.id == transfer.c.debit_id, mine.c.id == transfer.c.credit_id))
        .where(mine.c.code == code)
        .order_by(transfer.c.journal_id.desc(), transfer.c.leg.desc())
        .limit(min(limit, LINES_MAX))
    )  # fmt: skip
    if before is not None:
        query = query.where(transfer.c.journal_id < before)
    return [
        Line(
            journal_id=row.journal_id,
            leg=row.leg,
            kind=row.kind,
            at=row.at,
            other=row.debit if row.credit == code else row.credit,
            amount=NanoCredits(row.amount if row.credit == code else -row.amount),
            meta=parse_object(row.meta),
        )
        for row in connection.execute(query)
    ]


def legs_of(connection: sa.Connection, journal_id: int) -> list[Leg]:
    """The legs of one entry, in order; empty if there is no such entry."""
    debit, credit = account.alias("debit"), account.alias("credit")
    rows = connection.execute(
        sa.select(transfer.c.amount, debit.c.code.label("debit"), credit.c.code.label("credit"))
        .join(debit, debit.c.id == transfer.c.debit_id)
        .join(credit, credit.c.id == transfer.c.credit_id)
        .where(transfer.c.journal_id == journal_id)
        .order_by(transfer.c.leg)
    )
    return [Leg(row.debit, row.credit, NanoCredits(row.amount)) for row in rows]
