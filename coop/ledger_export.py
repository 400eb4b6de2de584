"""The books in the languages of other programs, so that others can check our arithmetic.

Beancount (`bean-check`) and hledger (`hledger check`) verify every transfer and the running
balances; one wrong digit makes both fail. Signs follow plain-text accounting: what an account was
debited is positive there, so what the cooperative owes somebody is negative.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from coop.accounts import AccountKind, account, journal, transfer
from coop.keys import iso
from coop.money import NanoCredits, to_text

_PRIVATE: Final = frozenset({AccountKind.RESEARCHER, AccountKind.PATIENT, AccountKind.MEMBER})
_COMMODITY: Final = "CRED"
_DAY_S: Final = 86_400
_CHUNK: Final = 5_000


class Format(StrEnum):
    """Languages the ledger speaks."""

    BEANCOUNT = "beancount"
    HLEDGER = "hledger"
    CSV = "csv"


def beancount(connection: sa.Connection, *, full: bool) -> str:
    """A Beancount ledger with a final balance assertion on every account.

    Args:
        connection: An open read.
        full: Every account by itself; otherwise people are summed by kind.
    """
    out = io.StringIO()
    out.write('option "title" "Health data cooperative"\n')
    out.write('option "name_equity" "Issuance"\n')
    entries = list(_entries(connection, full=full))
    day = _day(entries[0]["at"] if entries else 0)
    balances: dict[str, int] = defaultdict(int)
    for name in sorted({row[end] for row in entries for end in ("debit", "credit")}):
        out.write(f"{day} open {_beancount_name(name)} {_COMMODITY}\n")
    last = None
    for row in entries:
        day = _day(row["at"])
        if row["journal_id"] != last:
            out.write(f'\n{day} * "{row["kind"]}"\n  journal: "{row["journal_id"]}"\n')
            last = row["journal_id"]
        for name, amount in ((row["debit"], row["amount"]), (row["credit"], -row["amount"])):
            balances[name] += amount
            text = to_text(NanoCredits(amount))
            out.write(f"  {_beancount_name(name)}  {text} {_COMMODITY}\n")
    out.write("\n")
    after = _day(max((row["at"] for row in entries), default=0) + _DAY_S)
    for name, amount in sorted(balances.items()):
        text = to_text(NanoCredits(amount))
        out.write(f"{after} balance {_beancount_name(name)}  {text} {_COMMODITY}\n")
    return out.getvalue()


def hledger(connection: sa.Connection, *, full: bool) -> str:
    """An hledger journal with the running balance asserted at every posting.

    Args:
        connection: An open read.
        full: Every account by itself; otherwise people are summed by kind.
    """
    out = io.StringIO()
    out.write(f"commodity 1000.000000000 {_COMMODITY}\n")
    entries = list(_entries(connection, full=full))
    for name in sorted({row[end] for row in entries for end in ("debit", "credit")}):
        out.write(f"account {name}\n")
    balances: dict[str, int] = defaultdict(int)
    last = None
    # By date, since hledger asserts balances in the order of dates.
    for row in sorted(entries, key=lambda row: (row["at"], row["journal_id"], row["leg"])):
        if row["journal_id"] != last:
            out.write(f"\n{_day(row['at'])} {row['kind']}  ; journal:{row['journal_id']}\n")
            last = row["journal_id"]
        for name, amount in ((row["debit"], row["amount"]), (row["credit"], -row["amount"])):
            balances[name] += amount
            moved, now = to_text(NanoCredits(amount)), to_text(NanoCredits(balances[name]))
            out.write(f"    {name}  {moved} {_COMMODITY} = {now} {_COMMODITY}\n")
    return out.getvalue()


def as_csv(connection: sa.Connection, *, full: bool) -> str:
    """One line per transfer.

    Args:
        connection: An open read.
        full: Every account by itself; otherwise people are summed by kind.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["journal", "leg", "at", "kind", "debit", "credit", "amount"])
    for row in _entries(connection, full=full):
        amount = to_text(NanoCredits(row["amount"]))
        at = iso(row["at"])
        first = [row["journal_id"], row["leg"], at, row["kind"]]
        writer.writerow([*first, row["debit"], row["credit"], amount])
    return out.getvalue()


EXPORTS: Final[Mapping[Format, Callable[..., str]]] = {
    Format.BEANCOUNT: beancount,
    Format.HLEDGER: hledger,
    Format.CSV: as_csv,
}


def _entries(connection: sa.Connection, *, full: bool) -> Iterator[sa.RowMapping]:
    debit, credit = account.alias("debit"), account.alias("credit")
    names = (_name(debit, full=full).label("debit"), _name(credit, full=full).label("credit"))
    query = (
        sa.select(
            transfer.c.journal_id, transfer.c.leg, transfer.c.amount, journal.c.at, journal.c.kind,
            *names,
        )
        .join(journal, journal.c.id == transfer.c.journal_id)
        .join(debit, debit.c.id == transfer.c.debit_id)
        .join(credit, credit.c.id == transfer.c.credit_id)
        .order_by(transfer.c.journal_id, transfer.c.leg)
        .execution_options(yield_per=_CHUNK)
    )  # fmt: skip
    return connection.execute(query).mappings()


def _name(side: sa.FromClause, *, full: bool) -> sa.ColumnElement[str]:
    if full:
        return sa.type_coerce(side.c.code, sa.Text)
    return sa.case((side.c.kind.in_(_PRIVATE), side.c.kind), else_=side.c.code)


def _beancount_name(code: str) -> str:
    """`pool:heart-v1-0abc:zurich` as `Liabilities:Pool:Heart-v1-0abc:Zurich`.

    Beancount wants every part to begin with a capital letter or digit and to hold letters, digits
    and dashes; an underscore (legal in our names) becomes `-U-`, which our names cannot hold.
    """
    parts = [part.replace("_", "-U-") for part in code.split(":")]
    return "Liabilities:" + ":".join(part[0].upper() + part[1:] for part in parts)


def _day(at: int) -> str:
    return iso(at)[:10]
