"""The ledger as a state machine: any order of any operations, every invariant after each."""

import itertools
from collections import Counter
from pathlib import Path
from typing import ClassVar, Final

import psycopg
import pytest
from budget import budget
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coop import ledger
from coop.db import Database
from coop.dividend_audit import differences
from coop.documents.dividend import DividendWindow
from coop.economy import Economy
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.ledger import HoldResolvedError, HoldState, InsufficientCreditsError, KeyReusedError, Leg
from coop.ledger_check import check
from coop.money import NanoCredits
from coop.pools import accruals, published

MODEL: Final = "heart-v1-0123abcd"
SITES: Final = {"cleveland": ["a" * 26, "b" * 26, "c" * 26], "zurich": ["d" * 26]}
PIDS: Final = [pid for pids in SITES.values() for pid in pids]
_NAMES = itertools.count()
CASES: Final = (
    "paid",
    "paid again",
    "too poor",
    "key used for another sum",
    "captured",
    "captured too late",
    "voided",
    "split",
    "claimed",
)
amount = st.sampled_from([1, 7, 10**6 + 1, 10**9, 10**12 - 1, 10**13])
small = st.integers(0, 2)


class Books(RuleBasedStateMachine):
    """Money in, fees, holds, windows, withdrawals, claims; and replays of all of them."""

    database: Database
    postgres: str | None
    folder: Path
    reached: ClassVar[Counter[str]]
    """How often each case worth a check was met: a run that met none of one has not checked it."""

    @initialize()
    def start(self) -> None:
        if self.postgres is None:
            self.database = Database(f"sqlite:///{self.folder / f'{next(_NAMES)}.sqlite'}")
        else:
            name = f"machine{next(_NAMES)}"
            with psycopg.connect(f"{self.postgres}/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            self.database = Database(f"{self.postgres}/{name}")
        self.database.upgrade()
        self.now = 100
        journal = Journal(self.database, SigningKey.generate(), "hub.test/log", lambda: self.now)
        self.economy = Economy(self.database, journal, SigningKey.generate(), lambda: self.now)
        weights = {site: len(pids) for site, pids in SITES.items()}
        with self.database.unit_of_work() as connection:
            self.economy.open_pools(connection, MODEL, SITES, weights)
        self.issued, self.spent = 0, 0
        self.holds: dict[str, int] = {}
        self.posted: dict[str, tuple[int, int]] = {}
        self.issue(4 * 10**12)

    @rule(nano=amount)
    def issue(self, nano: int) -> None:
        with self.database.unit_of_work() as connection:
            key = str(self.issued)
            self.economy.issue(connection, account_id=1, amount=NanoCredits(nano), key=key)
        self.issued += nano

    @rule(nano=amount, key=small)
    def pay(self, nano: int, key: int) -> None:
        leg = Leg("researcher:1", f"revenue:{MODEL}", NanoCredits(nano))
        before = self.posted.get(f"pay:{key}")
        try:
            with self.database.unit_of_work() as connection:
                name = f"pay:{key}"
                posted = ledger.post(connection, key=name, kind="x", legs=[leg], now=self.now)
            outcome = (posted.journal_id, nano)
            assert posted.created == (before is None)
        except (InsufficientCreditsError, KeyReusedError) as error:
            outcome = (0, error.facts.get("missing_nano", 0))
        if outcome[0]:
            assert before in {None, outcome}
            self.reached["paid" if before is None else "paid again"] += 1
            self.posted[f"pay:{key}"] = outcome
        elif outcome[1]:
            assert before is None
            assert 0 < outcome[1] <= nano
            self.reached["too poor"] += 1
        else:
            assert before is not None
            assert before[1] != nano
            self.reached["key used for another sum"] += 1

    @rule(nano=st.sampled_from([100, 10**9]), seconds=st.sampled_from([1, 20]))
    def hold(self, nano: int, seconds: int) -> None:
        key = f"hold:{len(self.holds)}"
        leg = Leg("researcher:1", f"revenue:{MODEL}", NanoCredits(nano))
        try:
            with self.database.unit_of_work() as connection:
                held = ledger.hold(
                    connection, key=key, leg=leg, expires=self.now + seconds, now=self.now
                )
                assert ledger.hold(connection, key=key, leg=leg, expires=0, now=0) == held
            self.holds[key] = held.id
        except InsufficientCreditsError:
            pass

    @precondition(lambda self: self.holds)
    @rule(which=small, part=st.sampled_from([1, 50, 100]))
    def capture(self, which: int, part: int) -> None:
        number = self.holds[f"hold:{which % len(self.holds)}"]
        with self.database.reading() as connection:
            held = ledger.find_hold(connection, number)
        nano = NanoCredits(max(held.leg.amount * part // 100, 1))
        may = (held.state is HoldState.PENDING and self.now < held.expires) or (
            held.state is HoldState.POSTED and held.captured == nano
        )
        try:
            with self.database.unit_of_work() as connection:
                first = ledger.capture(connection, number, amount=nano, now=self.now)
                again = ledger.capture(connection, number, amount=nano, now=self.now)
                assert again.journal_id == first.journal_id
                assert not again.created
            assert may
            self.reached["captured"] += 1
        except HoldResolvedError:
            assert not may
            self.reached["captured too late"] += 1

    @precondition(lambda self: self.holds)
    @rule(which=small)
    def void(self, which: int) -> None:
        number = self.holds[f"hold:{which % len(self.holds)}"]
        try:
            with self.database.unit_of_work() as connection:
                ledger.void(connection, number)
            self.reached["voided"] += 1
        except HoldResolvedError:
            with self.database.reading() as connection:
                assert ledger.find_hold(connection, number).state is HoldState.POSTED

    @rule(seconds=st.sampled_from([0, 1, 15]), swept=st.booleans())
    def later(self, seconds: int, *, swept: bool) -> None:
        self.now += seconds
        if swept:
            with self.database.unit_of_work() as connection:
                ledger.expire(connection, self.now)

    @rule()
    def window(self) -> None:
        with self.database.reading() as connection:
            revenue = ledger.balance(connection, f"revenue:{MODEL}").posted
        assert self.economy.close_window(MODEL)["revenue_nano"] == revenue
        self.reached["split"] += revenue > 0

    @rule(pid=st.sampled_from(PIDS))
    def withdraw(self, pid: str) -> None:
        with self.database.unit_of_work() as connection:
            self.economy.withdraw(connection, pid)

    @rule(pids=st.lists(st.sampled_from(PIDS), min_size=1, max_size=4), member=st.integers(1, 2))
    def claim(self, pids: list[str], member: int) -> None:
        with self.database.reading() as connection:
            due = sum(
                sum(accrual.nano for accrual in accruals(connection, pid))
                + ledger.balance(connection, f"patient:{pid}").posted
                for pid in set(pids)
            )
        assert self.economy.claim(member, pids) == due
        assert self.economy.claim(member, pids) == 0
        self.reached["claimed"] += due > 0

    @invariant()
    def everything_holds(self) -> None:
        if not hasattr(self, "economy"):
            return
        with self.database.reading() as connection:
            checked = check(connection)
            assert checked.findings == []
            assert checked.supply_nano == self.issued
            found = published(connection, MODEL)
        windows = [
            DividendWindow.model_validate(window.document["credentialSubject"])
            for window in found.windows
        ]
        assert differences(found, windows) == []

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_books_hold_after_any_operations_in_any_order(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
    reached: Counter[str] = Counter()
    machine = type("Books", (Books,), {"postgres": url, "folder": tmp_path, "reached": reached})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=budget(16, 60),
            stateful_step_count=budget(25, 50),
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert {case for case in CASES if not reached[case]} == set()
