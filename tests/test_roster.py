"""The registry's answer over all patients: after every event what `decide` says of each head."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from budget import budget
from consent_hub import ConsentHub, Hospital, Person, clock
from random_policies import Random
from test_erasure import erase
from test_registry import question

from consent.decide import Request, decide
from consent.roster import Roster
from consent.store import consent_head, snapshot, standing_of
from coop.errors import CoopError

CHOICES = ("all-research", "train-only", "with-companies", "refuse")
ASKED = [
    question(),
    question(action="infer-aggregate"),
    question(commercial=True),
    question(data_class="genome"),
    question(at=0),
]


@pytest.fixture
def hospitals(hub: ConsentHub, tmp_path: Path) -> Iterator[list[Hospital]]:
    found = [Hospital(hub, tmp_path, name) for name in ("basel", "zurich")]
    for hospital in found:
        hospital.connect()
    yield found
    for hospital in found:
        hospital.close()


def one_by_one(hub: ConsentHub, asked: Request) -> dict[str, list[str]]:
    """Every head read and decided on."""
    found: dict[str, list[str]] = {"basel": [], "zurich": []}
    with snapshot(hub.database) as connection:
        for row in connection.execute(sa.select(consent_head).order_by(consent_head.c.pid)):
            if decide(standing_of(row), asked).permits:
                found[row.site].append(row.pid)
    return found


def happen(hub: ConsentHub, person: Person, random: Random) -> None:
    """Something she may or may not be able to say now."""
    name = random.choice(
        ["grant", "grant", "amend", "suspend", "resume", "revoke", "object", "lift"]
    )
    document = person.event(name, choice=random.choice(CHOICES))
    if hub.registry.submit([document])[0]["problem"] is None:
        person.follow(document)


def test_the_roster_follows_every_event(hub: ConsentHub, hospitals: list[Hospital]):
    random = Random(5)
    people = [one for hospital in hospitals for one in hospital.enrol(6)]
    seen = set()
    for step in range(budget(60, 600)):
        if step in {20, 40}:  # a lost key, a new one: what she had said waits for nobody
            (again,) = hospitals[0].enrol_again([f"record {step // 20}"])
            gone = next(one for one in people if one.pid == again.pid)
            again.sequence, again.head = gone.sequence, gone.head
            people[people.index(gone)] = again
        if step == 30:
            erased = people.pop(0)
            hospitals[0].connect()
            hospitals[0].mirror.sync()
            erase(hospitals[0], erased)
            assert erased.pid not in str([hub.registry.permitted(asked) for asked in ASKED])
        for person in random.sample(people, random.choice([1, 1, 4])):
            happen(hub, person, random)
        for asked in ASKED:
            answer = hub.registry.permitted(asked)
            assert answer == one_by_one(hub, asked)
            seen |= {(site, len(pids)) for site, pids in answer.items()}
    assert len(seen) > 5


def test_what_the_hub_restricts_is_seen_at_once(hub: ConsentHub, hospitals: list[Hospital]):
    (person,) = hospitals[0].enrol(1)
    hub.registry.submit([person.event("grant")])
    assert hub.registry.permitted(question(at=clock()))["basel"] == [person.pid]
    hub.registry.restrict(person.pid, "suspend", "session")
    assert hub.registry.permitted(question(at=clock()))["basel"] == []


def test_many_may_ask_and_speak_at_once(hub: ConsentHub, hospitals: list[Hospital]):
    people = hospitals[0].enrol(8)
    failures: list[object] = []

    def speak(person: Person) -> None:
        for name in ("grant", "suspend", "resume", "revoke"):
            document = person.event(name)
            try:
                assert hub.registry.submit([document])[0]["problem"] is None
                person.follow(document)
                # What she has just said is known: the answer is never older than its question.
                known = hub.registry.permitted(ASKED[0])["basel"]
                assert (person.pid in known) == (name in {"grant", "resume"})
            except (AssertionError, CoopError) as error:
                failures.append(error)

    threads = [threading.Thread(target=speak, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_question_reads_the_heads_that_changed_and_no_other(
    hub: ConsentHub, hospitals: list[Hospital]
):
    people = hospitals[0].enrol(5)
    hub.registry.submit([person.event("grant") for person in people])
    roster, read = Roster(), []
    inner = roster._standings
    roster._standings = lambda connection, of: read.append(inner(connection, of)) or read[-1]
    with snapshot(hub.database) as connection:
        roster.permitted(connection, ASKED[0])
        roster.permitted(connection, ASKED[1])
    assert [len(found["basel"]) for found in read] == [5]
    people[0].sequence, people[0].head = 1, hub.registry.overview(people[0].pid)["head_sha256"]
    document = people[0].event("revoke")
    assert hub.registry.submit([document])[0]["problem"] is None
    with snapshot(hub.database) as connection:
        assert len(roster.permitted(connection, ASKED[0])["basel"]) == 4
    assert [len(found["basel"]) for found in read] == [5, 1]
