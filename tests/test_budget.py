"""The privacy ledger: spent never passes the cap, never falls, and a repeat debits once."""

import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import sqlalchemy as sa
from budget import budget as small_or_full
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coop.db import Database
from coop.errors import InvariantError
from federated.accounting import lifetime_cap_nano
from federated.answers import State, answer, attempts, discard, store, stored
from federated.budget import (
    LIFETIME_CAP_NANO,
    BudgetExhaustedError,
    Draw,
    Lines,
    afford,
    charge_everybody,
    cohort_of,
    debit,
    debit_pid,
    grant,
    lock,
    permitted_by,
    site_spend,
)
from federated.odometer import patient_budget

PIDS = [letter * 26 for letter in "abcdef"]
HEADS = {pid: index for index, pid in enumerate(PIDS)}
WIDE = 10**12
CAP_RHO = LIFETIME_CAP_NANO // 4
"""The most rho a life holds."""


def lines(study_id="heart", training=WIDE, evaluation=WIDE, reserve=WIDE, cohort=WIDE):
    return Lines(
        study_id=study_id,
        version=1,
        training_nano=training,
        evaluation_nano=evaluation,
        reserve_nano=reserve,
        cohort_nano=cohort,
    )


def draw(key="round:o:train:1:1", rho=1000, phase="train"):
    return Draw(
        key=key,
        input_sha256="1" * 64,
        lease_sha256="2" * 64,
        phase=phase,
        attempt=1,
        rho_nano=rho,
        sigma_micro=5_000_000,
        places=8,
        order_sha256="3" * 64,
        round=1,
    )


def debited(database, asked, pids=PIDS, plan=None):
    with database.unit_of_work() as connection:
        lock(connection)
        payers = afford(connection, pids, asked.rho_nano)
        permits = {pid: index for index, pid in enumerate(sorted(pids))}
        return grant(connection, asked, payers, plan or lines(), permits=permits, now=1)


def test_everybodys_charge_is_the_rest_of_the_lines_and_is_made_once(database: Database):
    short = lines(training=5000, evaluation=0, reserve=700, cohort=300)
    debited(database, draw(rho=1000), PIDS[:2], plan=short)
    for expected in (5000, 0, 0):
        with database.unit_of_work() as connection:
            lock(connection)
            assert charge_everybody(connection, short, now=2) == expected
    with database.reading() as connection:
        spent = {pid: patient_budget(connection, pid).rho_nano for pid in [*PIDS, "z" * 26]}
        assert site_spend(connection, "heart", 1)["training"] == 1000
    assert [spent[pid] for pid in PIDS[:2]] == [
        6000,
        6000,
    ]  # what she truly paid is not added twice
    assert {spent[pid] for pid in [*PIDS[2:], "z" * 26]} == {5000}  # whoever comes later, too


def test_everybodys_charge_bars_whoever_cannot_pay_any_more(database: Database):
    left = LIFETIME_CAP_NANO // 4
    with database.unit_of_work() as connection:
        lock(connection)
        charge_everybody(connection, lines(training=left, evaluation=0, reserve=0, cohort=0), now=1)
        assert afford(connection, PIDS, 1) == set()
        assert afford(connection, PIDS, 0) == set(PIDS)


def test_the_lifetime_cap_is_that_of_epsilon_ten_at_one_in_a_million():
    assert lifetime_cap_nano() == LIFETIME_CAP_NANO
    assert LIFETIME_CAP_NANO // 10**6 == 6144


def test_debit_and_granted_row_are_one_transaction(database: Database):
    with pytest.raises(ZeroDivisionError), database.unit_of_work() as connection:  # noqa: PT012
        grant(connection, draw(), set(PIDS), lines(), permits=HEADS, now=1)
        _ = 1 // 0
    with database.reading() as connection:
        for table in (debit, debit_pid, answer):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_a_repeat_of_the_same_draw_debits_once(database: Database):
    first = debited(database, draw())
    assert debited(database, draw()) == first
    with database.reading() as connection:
        assert site_spend(connection, "heart", 1)["training"] == 1000
        assert patient_budget(connection, PIDS[0]).rdp_nano == 4000


def test_who_cannot_pay_leaves_the_cohort_before_anything_is_drawn(database: Database):
    nearly = LIFETIME_CAP_NANO // 4 - 10
    debited(database, draw("a:1", nearly), PIDS[:2])
    with database.reading() as connection:
        assert afford(connection, PIDS, 10) == set(PIDS)  # the cap itself is still within
        assert afford(connection, PIDS, 11) == set(PIDS[2:])
    with pytest.raises(InvariantError), database.unit_of_work() as connection:
        grant(connection, draw("b:1", 11), set(PIDS), lines(), permits=HEADS, now=1)


def test_who_permitted_and_cannot_pay_is_kept_beside_the_cohort(database: Database):
    debited(database, draw("a:1", LIFETIME_CAP_NANO // 4 - 10), PIDS[:2])
    second = debited(database, draw("b:1", 11))
    with database.reading() as connection:
        assert set(cohort_of(connection, second.debit_sequence)) == set(PIDS[2:])
        assert permitted_by(connection, second.debit_sequence) == set(PIDS)


def test_spending_adds_up_over_studies(database: Database):
    debited(database, draw("a:1", 700), plan=lines("heart"))
    debited(database, draw("b:1", 800), plan=lines("lung"))
    with database.reading() as connection:
        assert patient_budget(connection, PIDS[0]).rho_nano == 1500
        assert site_spend(connection, "lung", 1)["training"] == 800


def test_the_odometer_composes_exactly_and_the_cap_is_worth_less_than_epsilon_ten(
    sqlite_database: Database,
):
    from federated.accounting import epsilon_of, rho_nano_of

    for number in range(4):
        debited(sqlite_database, draw(f"o{number}:1", rho_nano_of(5_000_000)))
    with sqlite_database.reading() as connection:
        seen = patient_budget(connection, PIDS[0])
    assert seen.epsilon == pytest.approx(epsilon_of([(5_000_000, 4)], 1e-6), rel=1e-6)
    assert replace(seen, rho_nano=LIFETIME_CAP_NANO // 4).epsilon < 10


def test_a_line_ends_where_the_plan_says_then_the_reserve_pays_then_nobody(database: Database):
    plan = lines(training=1000, reserve=1000)
    for number in (1, 2):
        debited(database, draw(f"round:o:train:{number}:1"), plan=plan)
    with database.reading() as connection:
        spent = site_spend(connection, "heart", 1)
    assert (spent["training"], spent["reserve"]) == (1000, 1000)
    with pytest.raises(BudgetExhaustedError):
        debited(database, draw("round:o:train:3:1"), plan=plan)


def test_cohort_questions_never_touch_the_reserve(database: Database):
    with pytest.raises(BudgetExhaustedError):
        debited(database, draw("c:1", phase="cohort"), plan=lines(cohort=999))


def test_nobody_is_debited_whose_consent_nothing_shows(database: Database):
    with pytest.raises(InvariantError, match="consent"), database.unit_of_work() as connection:
        grant(connection, draw(), set(PIDS), lines(), permits={PIDS[0]: 3}, now=1)


def test_what_a_receipt_commits_to_is_durable_with_the_debit(database: Database):
    granted = debited(database, draw(), PIDS[:2])
    with database.reading() as connection:
        kept = stored(connection, granted.key)
        assert cohort_of(connection, granted.debit_sequence) == {PIDS[0]: 0, PIDS[1]: 1}
    assert (kept.places, len(kept.seed)) == (8, 64)
    assert kept.seed != debited(database, draw("b:1")).seed


def test_an_empty_cohort_is_debited_to_the_study_like_any_other(database: Database):
    granted = debited(database, draw(), [])
    with database.reading() as connection:
        assert cohort_of(connection, granted.debit_sequence) == {}
        assert site_spend(connection, "heart", 1)["training"] == 1000


def test_the_database_itself_refuses_to_unspend(database: Database):
    debited(database, draw())
    for statement in (
        sa.update(debit).values(rho_nano=1),
        sa.delete(debit),
        sa.update(debit_pid).values(pid=PIDS[1]),
        sa.delete(debit_pid),
    ):
        with (
            pytest.raises(sa.exc.DatabaseError, match="append-only"),
            database.unit_of_work() as connection,
        ):
            connection.execute(statement)


def test_only_the_first_stored_bytes_of_a_debit_ever_leave(database: Database):
    granted = debited(database, draw())
    with database.unit_of_work() as connection:
        assert store(connection, granted.key, b"first").body == b"first"
        assert store(connection, granted.key, b"second").body == b"first"
        discard(connection, granted.key)
        late = store(connection, granted.key, b"third")
    assert (late.state, late.body) == (State.DISCARDED, None)


def test_attempts_of_round_one_are_not_those_of_round_eleven(database: Database):
    debited(database, draw("round:o:train:1:1"))
    debited(database, draw("round:o:train:11:1"))
    with database.reading() as connection:
        found = attempts(connection, "round:o:train:1")
        assert [one.key for one in found] == ["round:o:train:1:1"]
        assert stored(connection, "round:o:train:2:1") is None


def test_two_draws_at_once_never_pass_the_cap_together(database: Database):
    rho = LIFETIME_CAP_NANO // 4 // 2 + 1  # one fits, two do not
    start = threading.Barrier(4)

    def one(number):
        start.wait()
        debited(database, draw(f"t{number}:1", rho))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert patient_budget(connection, PIDS[0]).rho_nano == rho


class Ledger(RuleBasedStateMachine):
    """Any order of debits, repeats, discards and refusals, against a model in memory."""

    database: Database
    barred: ClassVar[list[str]]
    """Whom the cap kept out of a draw; a run in which it kept out nobody has checked no cap."""

    @initialize()
    def begin(self):
        # Keys and pids of this run only: the ledger is append-only, even for tests.
        with self.database.reading() as connection:
            self.run = connection.scalar(sa.select(sa.func.count()).select_from(debit)) or 0
        self.pids = [f"{self.run:020d}{letter * 6}" for letter in "abcd"]
        self.spent = dict.fromkeys(self.pids, 0)
        self.keys: dict[str, int] = {}
        self.plan = lines(f"s{self.run}", training=4 * CAP_RHO, reserve=CAP_RHO)

    @rule(
        number=st.integers(0, 8),
        # Two of the large ones fill a life to the last, or but for a billionth.
        rho=st.sampled_from([1, CAP_RHO // 2, CAP_RHO // 2 + 1, CAP_RHO]),
        who=st.sets(st.integers(0, 3), min_size=1),
    )
    def ask(self, number, rho, who):
        key = f"{self.run}:{number}:1"
        pids = {self.pids[index] for index in who}
        before = dict(self.spent)
        try:
            granted = debited(self.database, draw(key, rho), pids, self.plan)
        except BudgetExhaustedError:
            assert key not in self.keys
            return
        if key in self.keys:
            assert granted.debit_sequence == self.keys[key]
            return
        self.keys[key] = granted.debit_sequence
        with self.database.reading() as connection:
            paying = set(cohort_of(connection, granted.debit_sequence))
        fits = {pid for pid in pids if 4 * (before[pid] + rho) <= LIFETIME_CAP_NANO}
        assert paying == fits
        self.barred.extend(pids - fits)
        for pid in paying:
            self.spent[pid] += rho

    @rule(number=st.integers(0, 8))
    def throw_away(self, number):
        key = f"{self.run}:{number}:1"
        with self.database.unit_of_work() as connection:
            discard(connection, key)

    @invariant()
    def spent_is_exact_and_within_the_cap(self):
        if not hasattr(self, "spent"):
            return
        with self.database.reading() as connection:
            for pid, spent in self.spent.items():
                seen = patient_budget(connection, pid)
                assert seen.rho_nano == spent
                assert seen.rdp_nano <= seen.cap_nano


def test_the_ledger_holds_whatever_happens(database: Database):
    bound = type("BoundLedger", (Ledger,), {"database": database, "barred": []})
    case = bound.TestCase
    case.settings = settings(
        max_examples=small_or_full(30, 200), stateful_step_count=15, deadline=None, derandomize=True
    )
    case().runTest()
    assert bound.barred, "the machine never came to the cap"
