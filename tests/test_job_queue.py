import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from budget import budget

from coop.db import Database
from coop.errors import NotFoundError
from inference_gateway import jobs
from inference_gateway.jobs import ATTEMPTS_MAX, CLAIM_S, JobState, LateAttemptError, NewJob

NOON = 1_800_000_000


def put(database: Database, *ids: str, site: str = "zurich", not_after: int = NOON + 3600):
    with database.unit_of_work() as connection:
        for name in ids:
            new = NewJob(
                id=name,
                site=site,
                kind="cohort",
                payload={"n": name},
                at=NOON,
                not_after=not_after,
                question="q1",
            )
            jobs.add(connection, new)


def take(database: Database, now: int = NOON, site: str = "zurich"):
    with database.unit_of_work() as connection:
        return jobs.claim(connection, site, now)


def finish(database: Database, claimed: jobs.Claimed, text: str = "answer"):
    with database.unit_of_work() as connection:
        jobs.finish(connection, "zurich", claimed.id, claimed.attempt, result={"said": text})


def state(database: Database, job_id: str) -> jobs.Outcome:
    with database.reading() as connection:
        found = jobs.outcome(connection, job_id)
    assert found is not None
    return found


def test_jobs_come_oldest_first_and_only_to_their_own_hospital(database: Database):
    first, second = jobs.new_id(NOON), jobs.new_id(NOON + 1)
    put(database, second, first)
    assert take(database, site="budapest") is None
    claimed = take(database)
    assert claimed is not None
    assert (claimed.id, claimed.attempt, claimed.payload) == (first, 1, {"n": first})
    assert take(database).id == second
    assert take(database) is None


def test_a_claim_that_runs_out_is_handed_out_again_with_a_higher_attempt(database: Database):
    put(database, "a")
    assert take(database).attempt == 1
    assert take(database, NOON + CLAIM_S) is None
    assert take(database, NOON + CLAIM_S + 1).attempt == 2


def test_a_late_attempt_cannot_overwrite_and_the_newest_can(database: Database):
    put(database, "a")
    late = take(database)
    newest = take(database, NOON + CLAIM_S + 1)
    with pytest.raises(LateAttemptError):
        finish(database, late, "late")
    finish(database, newest, "newest")
    with pytest.raises(LateAttemptError):
        finish(database, late, "late")
    assert state(database, "a").result == {"said": "newest"}


def test_an_answer_after_its_claim_ran_out_counts_while_nobody_else_has_the_job(
    database: Database,
):
    put(database, "a")
    claimed = take(database)
    finish(database, claimed)
    assert state(database, "a").state is JobState.DONE


def test_the_same_answer_twice_is_welcome_and_another_is_not(database: Database):
    put(database, "a")
    claimed = take(database)
    finish(database, claimed)
    finish(database, claimed)
    with pytest.raises(LateAttemptError):
        finish(database, claimed, "other")
    assert take(database, NOON + CLAIM_S + 1) is None


def test_another_hospital_can_neither_see_nor_answer_a_job(database: Database):
    put(database, "a")
    claimed = take(database)
    with database.unit_of_work() as connection:
        with pytest.raises(NotFoundError):
            jobs.payload_of(connection, "budapest", "a")
        with pytest.raises(LateAttemptError):
            jobs.finish(connection, "budapest", "a", claimed.attempt, result={"said": "x"})


def test_a_refusal_is_stored_as_its_code(database: Database):
    put(database, "a")
    claimed = take(database)
    with database.unit_of_work() as connection:
        jobs.finish(connection, "zurich", "a", claimed.attempt, code="budget.exhausted")
    assert (state(database, "a").state, state(database, "a").code) == (
        JobState.REFUSED,
        "budget.exhausted",
    )


def test_a_job_is_dead_after_its_last_claim_ran_out(database: Database):
    put(database, "a")
    now = NOON
    for attempt in range(1, ATTEMPTS_MAX + 1):
        assert take(database, now).attempt == attempt
        now += CLAIM_S + 1
    assert take(database, now) is None
    with database.unit_of_work() as connection:
        assert jobs.bury(connection, now - 1) == []
        assert jobs.bury(connection, now) == ["q1"]
    assert (state(database, "a").state, state(database, "a").code) == (
        JobState.DEAD,
        "site.no-answer",
    )


def test_an_overdue_job_is_not_handed_out_and_dies_as_offline(database: Database):
    put(database, "a", not_after=NOON + 10)
    assert take(database, NOON + 10) is None
    with database.unit_of_work() as connection:
        assert jobs.bury(connection, NOON + 9) == []
        assert jobs.bury(connection, NOON + 10) == ["q1"]
    assert state(database, "a").code == "site.offline"


def test_the_look_agrees_with_the_claim(database: Database):
    put(database, "a")
    with database.reading() as connection:
        assert jobs.is_waiting(connection, "zurich", NOON)
        assert not jobs.is_waiting(connection, "budapest", NOON)
    take(database)
    with database.reading() as connection:
        assert not jobs.is_waiting(connection, "zurich", NOON)
        assert jobs.is_waiting(connection, "zurich", NOON + CLAIM_S + 1)


def test_no_job_is_lost_and_none_is_done_twice_by_many_workers(database: Database):
    names = [f"job-{number:04d}" for number in range(budget(60, 500))]
    put(database, *names)
    done: list[str] = []
    lock = threading.Lock()

    def work(worker: int) -> None:
        while (claimed := take(database)) is not None:
            # Every third job's first answer is lost on the way: it must come back.
            if claimed.attempt == 1 and int(claimed.id[-4:]) % 3 == worker % 3:
                continue
            finish(database, claimed)
            with lock:
                done.append(claimed.id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    while (claimed := take(database, NOON + CLAIM_S + 1)) is not None:
        assert claimed.attempt == 2
        finish(database, claimed)
        done.append(claimed.id)
    assert sorted(done) == names
