"""An objection with everything she has holds for what she is given later, until she lifts it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from consent_hub import ConsentHub, Hospital, clock

from coop import members
from coop.db import Database
from coop.documents.consent import Consent
from coop.documents.envelope import issue
from coop.enrolment import redemption
from coop.keys import SigningKey
from federated import desk
from federated.site import patient


@pytest.fixture
def hub(database: Database):
    made = ConsentHub(database)
    made.url = made.serve()
    yield made
    made.stop()


def account(hub: ConsentHub, name: str) -> int:
    with hub.database.unit_of_work() as connection:
        return members.account_of(connection, "https://id.test", name)


def answer(hub: ConsentHub, hospital: Hospital) -> None:
    said = desk.answer(
        hospital.site, hub.registry.pending_redemptions(hospital.site.name), now=clock()
    )
    hub.registry.add_enrolments(hospital.site.name, said.documents, said.refused)


def ask(
    hub: ConsentHub, hospital: Hospital, record: str, who: int | None
) -> tuple[str, SigningKey, dict]:
    pid = hospital.site.pid_of(record)
    with hospital.site.database.unit_of_work() as connection:
        connection.execute(patient.insert(), [{"pid": pid, "record_key": record}])
    (code,) = desk.enrol(hospital.site, [record], method="demo", now=clock()).values()
    key = SigningKey.generate()
    sent = redemption(code, key)
    (result,) = hub.registry.redeem([sent], who)
    assert result["problem"] is None
    return pid, key, sent


def events(hub: ConsentHub, pid: str) -> list[str]:
    return [f"{event['event']} by {event['actor']}" for event in hub.registry.history(pid)]


def lift(hub: ConsentHub, pid: str, key: SigningKey) -> None:
    standing = hub.registry.standing(pid)
    subject = Consent(
        pid=pid,
        site=hub.registry.enrolled(pid).site,
        domain="research",
        sequence=standing.sequence + 1,
        previous=standing.head_digest,
        event="lift",
    )
    (result,) = hub.registry.submit([issue(subject, key, clock())])
    assert result["problem"] is None


Two = tuple[Hospital, Hospital, int, str]
"""Two hospitals, Ann's account, and her record at the first of them."""


@pytest.fixture
def two(hub: ConsentHub, tmp_path: Path) -> Iterator[Two]:
    basel, bern = Hospital(hub, tmp_path, "basel"), Hospital(hub, tmp_path, "bern")
    basel.connect()
    bern.connect()
    ann = account(hub, "ann")
    first, _, _ = ask(hub, basel, "1", ann)
    answer(hub, basel)
    yield basel, bern, ann, first
    basel.close()
    bern.close()


@pytest.mark.parametrize("late", [False, True], ids=["at the enrolment", "linked afterwards"])
def test_a_record_that_becomes_hers_is_objected_like_all_others(
    hub: ConsentHub, two: Two, *, late: bool
):
    _basel, bern, ann, first = two
    assert events(hub, first) == []  # nothing to carry over
    hub.registry.restrict(first, "object", "session")
    second, key, sent = ask(hub, bern, "2", None if late else ann)
    answer(hub, bern)
    if late:
        assert events(hub, second) == []
        hub.registry.redeem([sent], ann)  # she proves with the key that the record is hers
    assert events(hub, second) == ["object by session"]
    # What she says for one record alone stays so, whoever repeats what.
    lift(hub, second, key)
    hub.registry.redeem([sent], ann)
    answer(hub, bern)
    assert events(hub, second) == ["object by session", "lift by patient"]
    # And with one record free, her objection is no longer to everything.
    third, _, _ = ask(hub, bern, "3", ann)
    answer(hub, bern)
    assert events(hub, third) == []
    # Somebody else's record is nobody's business.
    other, _, _ = ask(hub, bern, "4", account(hub, "ben"))
    answer(hub, bern)
    assert events(hub, other) == []


def test_no_enrolment_is_stored_without_its_objection(
    hub: ConsentHub, two: Two, monkeypatch: pytest.MonkeyPatch
):
    _basel, bern, ann, first = two
    hub.registry.restrict(first, "object", "session")
    second, _, _ = ask(hub, bern, "2", ann)
    monkeypatch.setattr(hub.registry._events, "append", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(hub, bern)
    monkeypatch.undo()
    with hub.database.reading() as connection:
        assert (second, "bern") not in members.pids_of(connection, ann)
    answer(hub, bern)
    assert events(hub, second) == ["object by session"]


@pytest.mark.parametrize("late", [False, True], ids=["at the enrolment", "linked afterwards"])
def test_two_records_that_become_hers_at_once_do_not_hide_each_other(
    hub: ConsentHub, two: Two, *, late: bool
):
    _basel, bern, ann, first = two
    hub.registry.restrict(first, "object", "session")
    made = [ask(hub, bern, name, None if late else ann) for name in ("2", "3")]
    answer(hub, bern)
    if late:
        hub.registry.redeem([sent for _, _, sent in made], ann)
    for pid, _, _ in made:
        assert events(hub, pid) == ["object by session"]


def test_a_record_that_becomes_hers_while_she_objects_is_objected(
    hub: ConsentHub, two: Two, monkeypatch: pytest.MonkeyPatch
):
    _basel, bern, ann, first = two
    second, _, _ = ask(hub, bern, "2", ann)
    objecting, go_on = threading.Event(), threading.Event()
    real = members.pids_of

    def slow(connection, account_id):
        found = real(connection, account_id)
        if threading.current_thread().name == "objects":
            objecting.set()
            go_on.wait(0.5)  # as long as the enrolment needs, if nothing held it up
        return found

    monkeypatch.setattr(members, "pids_of", slow)
    objects = threading.Thread(target=hub.registry.object_everywhere, args=(ann,), name="objects")
    objects.start()
    assert objecting.wait(5)
    answer(hub, bern)
    go_on.set()
    objects.join()
    assert events(hub, first) == ["object by session"]
    assert events(hub, second) == ["object by session"]


def test_redeeming_and_enrolling_the_same_codes_at_once_never_waits_in_a_circle(
    hub: ConsentHub, two: Two, monkeypatch: pytest.MonkeyPatch
):
    basel, bern, ann, first = two
    hub.registry.restrict(first, "object", "session")
    second, _, sent = ask(hub, bern, "2", None)
    answer(hub, bern)
    third, _, also = ask(hub, basel, "3", None)
    holds = threading.Event()
    real = hub.registry._events.object_too

    def slow(connection, linked):
        if threading.current_thread().name == "redeems":
            holds.set()
            time.sleep(0.3)
        return real(connection, linked)

    monkeypatch.setattr(hub.registry._events, "object_too", slow)
    redeems = threading.Thread(target=hub.registry.redeem, args=([also, sent], ann), name="redeems")
    redeems.start()
    assert holds.wait(5)
    answer(hub, basel)  # raised DeadlockDetected on PostgreSQL when rows were locked as they came
    redeems.join()
    for pid in (second, third):
        assert events(hub, pid) == ["object by session"]
