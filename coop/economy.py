"""The money's way: a researcher pays, a model earns, hospitals and patients share.

Pools pay any number of patients in O(1) a window (`coop.dividend`). Every window records all its
inputs in a document signed by the hub and put into the transparency log in the same transaction as
its transfers. The hub knows pool shares by pid only; `patient:{pid}` becomes `member:{account}` in
one merged payout when the member claims.

Lock order, everywhere: pool → holding → accounts (the opposite order deadlocked half the
transactions of a mixed load).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from coop import ledger
from coop.canonical import Json, digest, document_digest, jcs
from coop.db import Database
from coop.dividend import DIVIDEND_RULE, distribute, resize, window_split
from coop.documents.dividend import DividendWindow
from coop.documents.envelope import issue
from coop.errors import ConflictError, broken
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.ledger import Leg, Posted
from coop.money import NanoCredits
from coop.pools import (
    accruals,
    fees_of,
    holding_of,
    holding_table,
    lock_pools,
    lock_pools_of,
    log_change,
    pool_of,
    pool_table,
    store_pool,
    window_fee,
    window_table,
    windows_closed,
)

_TRIES: Final = 5  # of a transaction that PostgreSQL chose as a deadlock's victim
_RETRYABLE: Final = frozenset({"40P01", "40001"})
_TAG: Final = b"coop/economy/v1"

T = TypeVar("T")


class Economy:
    """Fees, dividends and payouts over one database.

    Args:
        database: The hub's.
        journal: The transparency log that windows are recorded in.
        hub_key: Signs windows.
        now: UTC seconds.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        hub_key: SigningKey,
        now: Callable[[], int],
    ) -> None:
        self.database = database
        self.journal = journal
        self.now = now
        self._key = hub_key

    # -- fees --------------------------------------------------------------------------------------

    def issue(
        self, connection: sa.Connection, *, account_id: int, amount: NanoCredits, key: str
    ) -> Posted:
        """Bring new credits to a researcher (who paid for them outside)."""
        leg = Leg("issuance", f"researcher:{account_id}", amount)
        key = f"issue:{account_id}:{key}"
        return ledger.post(connection, key=key, kind="issue", legs=[leg], now=self.now())

    # -- pools -------------------------------------------------------------------------------------

    def open_pools(
        self,
        connection: sa.Connection,
        model_id: str,
        pids: Mapping[str, Collection[str]],
        weights: Mapping[str, int],
    ) -> None:
        """Freeze who earns from a model: one share for every pid whose policy permitted its study.

        Doing the same again changes nothing.

        Args:
            connection: The unit of work that releases the model.
            model_id: The model.
            pids: By site, at the snapshot of the first round.
            weights: Registered consents by site, as in the passport.

        Raises:
            ConflictError: The pools exist with other weights.
        """
        old = {row.site: row.weight for row in lock_pools(connection, model_id)}
        if old:
            if old != dict(weights):
                raise ConflictError("pools: this model's pools were opened with other weights")
            return
        for site in sorted(set(weights) | set(pids)):
            holders = sorted(set(pids.get(site, ())))
            row = {
                "model_id": model_id, "site": site, "weight": weights.get(site, 0),
                "shares": len(holders), "acc": 0, "carry": 0,
            }  # fmt: skip
            insert = pool_table.insert().values(row).returning(pool_table.c.id)
            pool_id = connection.execute(insert).scalar_one()
            if holders:
                log_change(connection, pool_id, model_id, shares=len(holders))
                shares = [
                    {"pool_id": pool_id, "pid": pid, "shares": 1, "acc_seen": 0} for pid in holders
                ]
                connection.execute(holding_table.insert(), shares)

    def withdraw(self, connection: sa.Connection, pid: str) -> None:
        """Stop earning: what was earned stays hers, later windows pay others. No clawback."""
        locked = lock_pools_of(connection, [pid])
        self.settle(connection, pid)
        for row in locked:
            mine = holding_of(connection, row.id, pid)
            if mine.shares == 0:
                continue
            pool, residual = resize(pool_of(row), row.shares - mine.shares)
            connection.execute(
                holding_table.update()
                .where(holding_table.c.pool_id == row.id, holding_table.c.pid == pid)
                .values(shares=0, acc_seen=pool.acc)
            )
            store_pool(connection, row.id, pool)
            log_change(connection, row.id, row.model_id, shares=pool.shares, residual=residual)
            if residual:
                leg = Leg(f"pool:{row.model_id}:{row.site}", "commons", residual)
                key = f"residual:{row.id}:{pool.acc}"
                now = self.now()
                ledger.post(connection, key=key, kind="residual", legs=[leg], now=now)

    def close_window(self, model_id: str) -> dict[str, Json]:
        """Split what the model earned since the last window, and record how.

        Returns:
            `{"model_id", "windows": [signed documents], "revenue_nano"}`; no window if no fee came.
        """
        windows: list[Json] = []
        revenue = 0
        while True:
            closed = retrying(self.database, lambda c: self._close_one(c, model_id))
            if closed is None:
                return {"model_id": model_id, "windows": windows, "revenue_nano": revenue}
            document, amount = closed
            windows.append(document)
            revenue += amount

    def _close_one(
        self, connection: sa.Connection, model_id: str
    ) -> tuple[dict[str, Json], int] | None:
        pools = {row.site: row for row in lock_pools(connection, model_id)}
        # The revenue's lock waits for every payer under way: no fee can commit behind this window.
        revenue_code = f"revenue:{model_id}"
        ledger.lock_accounts(connection, {revenue_code})
        fees = fees_of(connection, model_id, only_open=True)
        if not fees:
            return None
        revenue = NanoCredits(sum(fee.amount_nano for fee in fees))
        sequence = windows_closed(connection, model_id) + 1
        weights = {site: row.weight for site, row in pools.items()}
        shares = {site: row.shares for site, row in pools.items()}
        parts = window_split(
            revenue, model_id=model_id, rule=DIVIDEND_RULE, weights=weights, shares=shares
        )
        now = self.now()
        posted = ledger.post(
            connection,
            key=f"window:{model_id}:{sequence}",
            kind="window",
            legs=[Leg(revenue_code, code, amount) for code, amount in parts.items()],
            now=now,
            meta={"model_id": model_id, "sequence": sequence},
        )
        # Pools advance only with a transfer of their own: a replay must not distribute twice.
        if not posted.created:
            broken(f"window {sequence} of {model_id} was posted and not recorded")
        for site, row in pools.items():
            part = parts.get(f"pool:{model_id}:{site}", 0)
            if part:
                store_pool(connection, row.id, distribute(pool_of(row), NanoCredits(part)))
        window = DividendWindow(
            model_id=model_id,
            sequence=sequence,
            journal_id=posted.journal_id,
            fees=fees,
            revenue_nano=revenue,
            rule=dict(DIVIDEND_RULE),
            weights=weights,
            shares=shares,
            parts=dict(parts),
        )
        document = issue(window, self._key, now)
        self._record(connection, window, document)
        return document, revenue

    def _record(
        self, connection: sa.Connection, window: DividendWindow, document: dict[str, Json]
    ) -> None:
        taken = [
            {"journal_id": fee.journal_id, "model_id": window.model_id, "sequence": window.sequence}
            for fee in window.fees
        ]
        connection.execute(window_fee.insert(), taken)
        logged = self.journal.record(connection, DividendWindow.kind, document)
        connection.execute(
            window_table.insert().values(
                model_id=window.model_id,
                sequence=window.sequence,
                journal_id=window.journal_id,
                digest=document_digest(document),
                log_index=logged.index,
                document=jcs(document).decode(),
                at=self.now(),
            )
        )

    # -- payouts -----------------------------------------------------------------------------------

    def settle(self, connection: sa.Connection, pid: str) -> NanoCredits:
        """Move everything `pid` is owed from her pools to `patient:{pid}`; returns how much."""
        lock_pools_of(connection, [pid])
        due = [accrual for accrual in accruals(connection, pid) if accrual.nano]
        if not due:
            return NanoCredits(0)
        legs = [Leg(f"pool:{a.model_id}:{a.site}", f"patient:{pid}", a.nano) for a in due]
        seen = digest(_TAG, {"settle": [[a.pool_id, str(a.acc), a.shares] for a in due]}).hex()
        posted = ledger.post(
            connection, key=f"settle:{pid}:{seen}", kind="settle", legs=legs, now=self.now()
        )
        # `acc_seen` moves only with a transfer: else a replayed key would eat what she is owed.
        if not posted.created:
            broken("a settlement was posted and not recorded")
        for accrual in due:
            connection.execute(
                holding_table.update()
                .where(holding_table.c.pool_id == accrual.pool_id, holding_table.c.pid == pid)
                .values(acc_seen=accrual.acc)
            )
        return NanoCredits(sum(accrual.nano for accrual in due))

    def claim(self, account_id: int, pids: Sequence[str]) -> NanoCredits:
        """Pay out everything these pids earned to one member, in one entry that merges all pools.

        The caller has checked that the pids are the account's own. Claiming again pays what came
        since.
        """
        return retrying(self.database, lambda c: self._claim(c, account_id, sorted(set(pids))))

    def _claim(self, connection: sa.Connection, account_id: int, pids: list[str]) -> NanoCredits:
        lock_pools_of(connection, pids)
        for pid in pids:
            self.settle(connection, pid)
        member = f"member:{account_id}"
        rows = ledger.lock_accounts(connection, {f"patient:{pid}" for pid in pids} | {member})
        legs, seen = [], []
        for pid in pids:
            row = rows[f"patient:{pid}"]
            if (amount := row.credits_posted - row.debits_posted) > 0:
                legs.append(Leg(f"patient:{pid}", member, NanoCredits(amount)))
                seen.append([pid, str(row.credits_posted)])
        if not legs:
            return NanoCredits(0)
        key = f"claim:{account_id}:{digest(_TAG, {'claim': seen}).hex()}"
        ledger.post(connection, key=key, kind="claim", legs=legs, now=self.now())
        return NanoCredits(sum(leg.amount for leg in legs))


def retrying(database: Database, work: Callable[[sa.Connection], T]) -> T:
    """`work` in a unit of work, again if PostgreSQL chose it as a deadlock's victim."""
    for attempt in range(_TRIES):
        try:
            with database.unit_of_work() as connection:
                return work(connection)
        except OperationalError as error:
            # Rolled back as a whole: nothing of the failed attempt is durable.
            state = getattr(error.orig, "sqlstate", None)
            if state not in _RETRYABLE or attempt == _TRIES - 1:
                raise
    return broken("a retried transaction neither ended nor failed")
