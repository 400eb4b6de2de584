"""The pools' tables and their reading: who shares in what, which windows split what.

Lock order, everywhere: pool → holding → accounts (the opposite order deadlocked half the
transactions of a mixed load).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from coop import ledger
from coop.accounts import AccountKind, account, transfer
from coop.canonical import parse_object
from coop.db import RowId, metadata
from coop.dividend import Pool, owed
from coop.documents.dividend import Dividends, Fee, PoolChange, PoolState, PostedWindow
from coop.errors import NotFoundError
from coop.money import NanoCredits
from coop.statements import legs_of

FEES_PER_WINDOW_MAX: Final = 2_000  # its document stays below half of DOCUMENT_BYTES_MAX
MODELS_MAX: Final = 1_000  # listed in one answer

pool_table = sa.Table(
    "pool",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("weight", sa.BigInteger, nullable=False),
    sa.Column("shares", sa.BigInteger, nullable=False),
    sa.Column("acc", sa.BigInteger, nullable=False),
    sa.Column("carry", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("model_id", "site"),
    sa.CheckConstraint(
        "weight >= 0 AND shares >= 0 AND acc >= 0 AND carry >= 0 "
        "AND (shares = 0 OR carry < shares)",
        name="carry",
    ),
)
holding_table = sa.Table(
    "holding",
    metadata,
    sa.Column("pool_id", sa.ForeignKey(pool_table.c.id), primary_key=True),
    sa.Column("pid", sa.Text, primary_key=True),
    sa.Column("shares", sa.BigInteger, nullable=False),
    sa.Column("acc_seen", sa.BigInteger, nullable=False),
    sa.Index("ix_holding_pid", "pid"),
)
pool_change = sa.Table(
    "pool_change",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("pool_id", sa.ForeignKey(pool_table.c.id), nullable=False, index=True),
    sa.Column("after", sa.BigInteger, nullable=False),
    sa.Column("shares", sa.BigInteger, nullable=False),
    sa.Column("residual_nano", sa.BigInteger, nullable=False),
)
window_table = sa.Table(
    "dividend_window",
    metadata,
    sa.Column("model_id", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("journal_id", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
window_fee = sa.Table(
    "dividend_fee",
    metadata,
    sa.Column("journal_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accrual:
    """What one pid may draw from one pool."""

    pool_id: int
    model_id: str
    site: str
    shares: int
    acc: int
    nano: NanoCredits


def lock_pools(connection: sa.Connection, model_id: str) -> Sequence[sa.Row[object]]:
    """The model's pools in id order, locked until the transaction ends."""
    query = sa.select(pool_table).where(pool_table.c.model_id == model_id).order_by(pool_table.c.id)
    return connection.execute(query.with_for_update(key_share=True)).all()


def lock_pools_of(connection: sa.Connection, pids: list[str]) -> Sequence[sa.Row[object]]:
    """Every pool these pids have a holding in, in id order, locked until the transaction ends."""
    theirs = sa.select(holding_table.c.pool_id).where(holding_table.c.pid.in_(pids))
    query = sa.select(pool_table).where(pool_table.c.id.in_(theirs)).order_by(pool_table.c.id)
    return connection.execute(query.with_for_update(key_share=True)).all()


def holding_of(connection: sa.Connection, pool_id: int, pid: str) -> sa.Row[object]:
    """The pid's holding, locked; take the pool's lock first."""
    query = sa.select(holding_table).where(
        holding_table.c.pool_id == pool_id, holding_table.c.pid == pid
    )
    return connection.execute(query.with_for_update(key_share=True)).one()


def pool_of(row: sa.Row[object]) -> Pool:
    """The pool in a row."""
    return Pool(shares=row.shares, acc=row.acc, carry=row.carry)


def store_pool(connection: sa.Connection, pool_id: int, pool: Pool) -> None:
    """Write a locked pool back."""
    connection.execute(
        pool_table.update()
        .where(pool_table.c.id == pool_id)
        .values(shares=pool.shares, acc=pool.acc, carry=pool.carry)
    )


def log_change(
    connection: sa.Connection, pool_id: int, model_id: str, *, shares: int, residual: int = 0
) -> None:
    """Remember that a pool has other shares: whoever recomputes it needs to know when."""
    after = windows_closed(connection, model_id)
    row = {"pool_id": pool_id, "after": after, "shares": shares, "residual_nano": residual}
    connection.execute(pool_change.insert().values(row))


def windows_closed(connection: sa.Connection, model_id: str) -> int:
    """How many windows the model has."""
    query = sa.select(sa.func.max(window_table.c.sequence)).where(
        window_table.c.model_id == model_id
    )
    return connection.execute(query).scalar() or 0


def accruals(connection: sa.Connection, pid: str) -> list[Accrual]:
    """What the pid may draw from each pool she has shares in, in the order of pools."""
    query = (
        sa.select(pool_table, holding_table.c.shares.label("mine"), holding_table.c.acc_seen)
        .join(holding_table, holding_table.c.pool_id == pool_table.c.id)
        .where(holding_table.c.pid == pid, holding_table.c.shares > 0)
        .order_by(pool_table.c.id)
    )
    return [
        Accrual(
            pool_id=row.id,
            model_id=row.model_id,
            site=row.site,
            shares=row.mine,
            acc=row.acc,
            nano=owed(pool_of(row), shares=row.mine, acc_seen=row.acc_seen),
        )
        for row in connection.execute(query)
    ]


def fees_of(connection: sa.Connection, model_id: str, *, only_open: bool = False) -> list[Fee]:
    """The fees in the model's revenue, oldest first; `only_open`: those no window has split yet."""
    query = (
        sa.select(transfer.c.journal_id, sa.func.sum(transfer.c.amount).label("amount"))
        .join(account, account.c.id == transfer.c.credit_id)
        .where(account.c.code == f"revenue:{model_id}")
        .group_by(transfer.c.journal_id)
        .order_by(transfer.c.journal_id)
    )
    if only_open:
        taken = sa.select(window_fee.c.journal_id)
        query = query.where(transfer.c.journal_id.not_in(taken)).limit(FEES_PER_WINDOW_MAX)
    rows = connection.execute(query)
    return [Fee(journal_id=row.journal_id, amount_nano=int(row.amount)) for row in rows]


def models_with_pools(connection: sa.Connection) -> list[str]:
    """Every model that pays dividends, in name order."""
    query = sa.select(pool_table.c.model_id).distinct().order_by(pool_table.c.model_id)
    return list(connection.execute(query.limit(MODELS_MAX)).scalars())


def published(connection: sa.Connection, model_id: str) -> Dividends:
    """Everything public about the model's dividends: sums per pool, never a pid.

    Raises:
        NotFoundError: No such model pays dividends.
    """
    rows = lock_pools(connection, model_id)
    if not rows:
        raise NotFoundError("model: no such model pays dividends")
    site_of = {row.id: row.site for row in rows}
    changes = sa.select(pool_change).where(pool_change.c.pool_id.in_(site_of))
    windows = sa.select(window_table).where(window_table.c.model_id == model_id)
    return Dividends(
        model_id=model_id,
        revenue_nano=ledger.balance(connection, f"revenue:{model_id}").posted,
        fees=fees_of(connection, model_id),
        pools=[_state(connection, row) for row in rows],
        changes=[
            PoolChange(
                site=site_of[row.pool_id],
                after=row.after,
                shares=row.shares,
                residual_nano=row.residual_nano,
            )
            for row in connection.execute(changes.order_by(pool_change.c.id))
        ],
        windows=[
            PostedWindow(
                document=parse_object(row.document),
                digest=row.digest,
                log_index=row.log_index,
                split={leg.credit: leg.amount for leg in legs_of(connection, row.journal_id)},
            )
            for row in connection.execute(windows.order_by(window_table.c.sequence))
        ],
    )


def _state(connection: sa.Connection, row: sa.Row[object]) -> PoolState:
    code = f"pool:{row.model_id}:{row.site}"
    paid = (
        sa.select(sa.func.coalesce(sa.func.sum(transfer.c.amount), 0))
        .join(account, account.c.id == transfer.c.debit_id)
        .join(_receiver, _receiver.c.id == transfer.c.credit_id)
        .where(account.c.code == code, _receiver.c.kind == AccountKind.PATIENT)
    )
    return PoolState(
        site=row.site,
        weight=row.weight,
        shares=row.shares,
        acc=row.acc,
        carry=row.carry,
        balance_nano=ledger.balance(connection, code).posted,
        paid_nano=int(connection.execute(paid).scalar_one()),
    )


_receiver = account.alias("receiver")
