"""A document that does not verify stops every lease, and staff set exactly that entry aside."""

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa
from consent_hub import ConsentHub, Hospital, Person, clock, grant
from typer.testing import CliRunner

from consent.decide import Request, decide
from consent.store import consent_head, site_document
from coop.canonical import document_digest, jcs, parse_object
from coop.cli import app
from coop.documents.consent import Enrolment
from coop.documents.envelope import issue, open_document
from coop.documents.quarantine import Quarantine
from coop.errors import CoopError
from coop.journal.rows import signed_document
from coop.keys import SigningKey
from federated.doctor import _documents, checks
from federated.held_lease import HeadsMismatchError
from federated.mirror import Mirror
from federated.quarantine import (
    NothingToSetAsideError,
    acts,
    mirror_quarantine,
    mirror_refused,
    refusals,
    set_aside,
)


@pytest.fixture
def hospitals(hub: ConsentHub, tmp_path: Path) -> Iterator[list[Hospital]]:
    """Two hospitals: one must see what the other's patients grant."""
    found = [Hospital(hub, tmp_path, name) for name in ("basel", "zurich")]
    for hospital in found:
        hospital.connect()
    yield found
    for hospital in found:
        hospital.close()


@pytest.fixture
def basel(hospitals: list[Hospital]) -> Hospital:
    return hospitals[0]


def cosign(hospitals: list[Hospital]) -> None:
    for hospital in hospitals:
        hospital.mirror.witness()


def trains(mirror: Mirror) -> set[str]:
    """The pids whose rows a study may touch under a fresh lease."""
    request = Request(
        action="train-federated",
        purpose="DUO:0000006",
        data_class="cardiology",
        study_id="heart",
        organisation="University",
        commercial=False,
        at=clock(),
    )
    lease = mirror.lease()
    return {pid for pid in lease.usable if decide(lease.standings.get(pid), request).permits}


def refused(mirror: Mirror) -> str:
    """The code a lease is refused with."""
    with pytest.raises(CoopError) as caught:
        mirror.lease()
    return caught.value.code


def hub_writes(
    hub: ConsentHub, person: Person, document: dict, *, kind: str = "consent", moves: bool = False
) -> int:
    """What somebody with the hub's database and log can write; returns the log index.

    `moves`: the hub now holds the patient at this document and says so in every lease.
    """
    with hub.database.unit_of_work() as connection:
        place = hub.journal.record(connection, kind, document)
        row = {"site": person.site, "pid": person.pid, "digest": place.digest}
        connection.execute(site_document.insert().values(log_index=place.index, **row))
        if moves:
            connection.execute(consent_head.delete().where(consent_head.c.pid == person.pid))
            said = document["credentialSubject"]
            after = {"state": "active", "sequence": said["sequence"], "policy": None}
            index = {"log_index": place.index, "widened_index": place.index}
            connection.execute(consent_head.insert().values(**row, **after, **index))
    hub.registry._leases._heads.clear()
    return place.index


def forged(hub: ConsentHub, person: Person, event: str = "grant") -> dict:
    return person.event(event, key=hub.hub_key)


def says(hub: ConsentHub, person: Person, event: str, **changes) -> None:
    """She signs the next event; the hub takes it."""
    document = person.event(event, **changes)
    assert hub.registry.submit([document])[0]["problem"] is None
    person.follow(document)


def follows(person: Person, document: dict) -> None:
    """Her portal shows the hub's chain, so what she signs next follows the forged document."""
    person.sequence = document["credentialSubject"]["sequence"]
    person.head = document_digest(document)


def quarantine(hospital: Hospital, index: int) -> Quarantine:
    document = set_aside(hospital.site, index, "the hub's staff know nothing of it", now=clock())
    return open_document(Quarantine, document, issuers={hospital.site.key.did}).subject


@pytest.mark.parametrize("moves", [True, False])
def test_only_the_patient_it_names_is_denied_and_all_others_train_again(
    hub, hospitals, basel, moves
):
    people = basel.enrol(3)
    grant(hub, people)
    cosign(hospitals)
    assert trains(basel.mirror) == {person.pid for person in people}
    index = hub_writes(hub, people[0], forged(hub, people[0], "amend"), moves=moves)
    cosign(hospitals)
    assert [refused(basel.mirror) for _ in range(2)] == ["consent.wrong-key"] * 2
    said = quarantine(basel, index)
    assert (said.pid, said.log_index, said.code) == (people[0].pid, index, "consent.wrong-key")
    assert trains(basel.mirror) == {person.pid for person in people[1:]}
    assert trains(Mirror(basel.site, basel.client)) == {person.pid for person in people[1:]}


def test_the_doctor_names_entry_digest_and_code_and_the_evidence_stays(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    grant(hub, [person])
    document = forged(hub, person, "amend")
    index = hub_writes(hub, person, document, moves=True)
    assert _documents(basel.site)["ok"]
    refused(basel.mirror)
    found = _documents(basel.site)
    assert not found["ok"]
    assert (
        f"entry {index}, document {document_digest(document)}: consent.wrong-key" in found["found"]
    )
    assert f"coop hospital quarantine {index} " in found["fix"]
    assert "docs/runbook.md" in found["fix"]
    quarantine(basel, index)
    assert basel.mirror.sync()
    assert _documents(basel.site)["ok"]
    (shown,) = checks(basel.site)["set_aside"]
    assert (shown["log_index"], shown["pid"]) == (index, person.pid)
    with basel.site.database.reading() as connection:
        (kept,) = connection.execute(sa.select(mirror_refused)).all()
    assert parse_object(kept.document) == document
    assert kept.settled_at is not None


@pytest.mark.parametrize("moves", [True, False])
def test_she_trains_again_once_she_signed_a_choice_again(hub, hospitals, basel, moves):
    (person,) = basel.enrol(1)
    grant(hub, [person], "refuse")
    document = forged(hub, person, "amend")
    index = hub_writes(hub, person, document, moves=moves)
    refused(basel.mirror)
    quarantine(basel, index)
    if moves:
        follows(person, document)
    cosign(hospitals)
    assert trains(basel.mirror) == set()
    says(hub, person, "amend", choice="all-research")
    assert trains(basel.mirror) == set()  # nobody has cosigned it yet
    cosign(hospitals)
    assert trains(basel.mirror) == {person.pid}
    assert trains(Mirror(basel.site, basel.client)) == {person.pid}


def test_pausing_and_resuming_bring_no_older_choice_back(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    grant(hub, [person])  # she allowed; what the forged document stands for, nobody knows
    document = forged(hub, person, "amend")
    index = hub_writes(hub, person, document, moves=True)
    refused(basel.mirror)
    quarantine(basel, index)
    follows(person, document)
    for event in ("suspend", "resume"):
        says(hub, person, event)
        cosign(hospitals)
        assert trains(basel.mirror) == trains(Mirror(basel.site, basel.client)) == set()
    says(hub, person, "amend", choice="train-only")
    cosign(hospitals)
    assert trains(basel.mirror) == {person.pid}


def test_stopping_counts_and_so_does_the_grant_after_it(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    document = forged(hub, person)
    index = hub_writes(hub, person, document, moves=True)
    refused(basel.mirror)
    quarantine(basel, index)
    basel.mirror.sync()
    hub.registry.restrict(person.pid, "revoke", "session")
    assert basel.mirror.lease().standings[person.pid].state == "revoked"
    standing = hub.registry.standing(person.pid)
    person.sequence, person.head = standing.sequence, standing.head_digest
    says(hub, person, "grant")
    cosign(hospitals)
    assert trains(basel.mirror) == {person.pid}


@pytest.mark.parametrize("signer", ["hub", "stranger"])
@pytest.mark.parametrize("event", ["grant", "amend", "resume"])
def test_nothing_counts_after_it_that_her_key_did_not_sign(hub, hospitals, basel, signer, event):
    (person,) = basel.enrol(1)
    grant(hub, [person])
    document = forged(hub, person, "amend")
    index = hub_writes(hub, person, document, moves=True)
    refused(basel.mirror)
    quarantine(basel, index)
    cosign(hospitals)
    assert trains(basel.mirror) == set()
    follows(person, document)
    key = hub.hub_key if signer == "hub" else SigningKey.generate()
    for actor in ("patient", "session"):
        later = hub_writes(hub, person, person.event(event, key=key, actor=actor), moves=True)
        assert refused(basel.mirror) == "consent.wrong-key"
        quarantine(basel, later)
        assert trains(basel.mirror) == set()


def test_an_event_of_hers_that_follows_neither_document_does_not_count(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    grant(hub, [person])
    first = person.head
    says(hub, person, "amend", choice="refuse")
    document = forged(hub, person, "amend")
    index = hub_writes(hub, person, document, moves=True)
    refused(basel.mirror)
    quarantine(basel, index)
    assert trains(basel.mirror) == set()
    for place in ({"previous": first, "sequence": 4}, {"previous": person.head, "sequence": 2}):
        replayed = person.event("amend", **place)
        later = hub_writes(hub, person, replayed, moves=True)
        assert refused(basel.mirror) == "consent.chain"
        quarantine(basel, later)
        assert trains(basel.mirror) == set()


def test_a_forged_enrolment_and_the_consent_of_its_key_are_set_aside_one_by_one(
    hub, hospitals, basel
):
    person, other = basel.enrol(2)
    grant(hub, [person, other])
    cosign(hospitals)
    thief = Person(person.site, person.pid, SigningKey.generate())
    subject = Enrolment(
        site="basel", pid=person.pid, key=thief.key.did, method="desk", custody="self", code_id="x"
    )
    enrolment = issue(subject, hub.hub_key, clock())
    thief.sequence, thief.head = person.sequence, person.head
    first = hub_writes(hub, person, enrolment, kind="enrolment")
    second = hub_writes(hub, person, thief.event("amend"), moves=True)
    cosign(hospitals)
    assert refused(basel.mirror) == "documents.wrong-document"
    assert quarantine(basel, first).document_kind == "enrolment"
    assert refused(basel.mirror) == "consent.wrong-key"
    quarantine(basel, second)
    assert trains(basel.mirror) == {other.pid}
    # Her own next signature counts again, and the thief's key never does.
    follows(person, thief.event("amend"))
    person.head = hub.registry.standing(person.pid).head_digest
    mine = person.event("amend", choice="train-only")
    hub_writes(hub, person, mine, moves=True)
    cosign(hospitals)
    assert trains(basel.mirror) == {person.pid, other.pid}
    assert trains(Mirror(basel.site, basel.client)) == {person.pid, other.pid}


def test_a_document_damaged_at_the_hub_is_set_aside_by_the_digest_the_log_holds(
    hub, hospitals, basel
):
    people = basel.enrol(2)
    grant(hub, people)
    true = people[0].head
    with hub.database.unit_of_work() as connection:
        of_hers = signed_document.c.digest == true
        row = connection.execute(sa.select(signed_document).where(of_hers)).one()
        damaged = {**parse_object(row.body), "credentialSubject": "lost"}
        values = {"body": jcs(damaged).decode()}
        connection.execute(sa.update(signed_document).where(of_hers).values(**values))
    cosign(hospitals)
    assert refused(basel.mirror) == "mirror.not-in-log"
    said = quarantine(basel, row.log_index)
    assert (said.document_sha256, said.pid) == (true, people[0].pid)
    assert trains(basel.mirror) == {people[1].pid}
    # The hub puts the true document back: what staff set aside stays so until she signs again.
    with hub.database.unit_of_work() as connection:
        connection.execute(sa.update(signed_document).where(of_hers).values(body=row.body))
    assert trains(Mirror(basel.site, basel.client)) == {people[1].pid}
    says(hub, people[0], "amend")
    cosign(hospitals)
    assert trains(basel.mirror) == {person.pid for person in people}


def test_a_damaged_document_that_the_hub_mends_needs_nothing_set_aside(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    grant(hub, [person])
    cosign(hospitals)
    of_hers = signed_document.c.digest == person.head
    with hub.database.unit_of_work() as connection:
        row = connection.execute(sa.select(signed_document).where(of_hers)).one()
        values = {"body": row.body.replace('"grant"', '"amend"')}
        connection.execute(sa.update(signed_document).where(of_hers).values(**values))
    refused(basel.mirror)
    assert not _documents(basel.site)["ok"]
    with hub.database.unit_of_work() as connection:
        connection.execute(sa.update(signed_document).where(of_hers).values(body=row.body))
    assert trains(basel.mirror) == {person.pid}
    assert _documents(basel.site)["ok"]
    assert acts(basel.site) == []


def test_only_what_was_refused_and_stands_in_the_log_can_be_set_aside(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    grant(hub, [person])
    cosign(hospitals)
    lease = basel.mirror.lease()
    for index in range(lease.log_size + 1):
        with pytest.raises(NothingToSetAsideError):
            quarantine(basel, index)
    # The hub sends something the log does not commit to, under no digest the log bears out.
    true = person.event("revoke")
    index = hub_writes(hub, person, true)
    with hub.database.unit_of_work() as connection:
        of_hers = signed_document.c.digest == document_digest(true)
        values = {"salt": "0" * 64}
        connection.execute(sa.update(signed_document).where(of_hers).values(**values))
    assert refused(basel.mirror) == "mirror.not-in-log"
    with pytest.raises(NothingToSetAsideError, match="another document"):
        quarantine(basel, index)
    assert refused(basel.mirror) == "mirror.not-in-log"


def test_the_heads_of_everybody_else_stay_exact(hub, hospitals, basel):
    person, other = basel.enrol(2)
    grant(hub, [person, other])
    cosign(hospitals)
    index = hub_writes(hub, person, forged(hub, person, "amend"), moves=True)
    refused(basel.mirror)
    quarantine(basel, index)
    assert trains(basel.mirror) == {other.pid}
    hub.registry.restrict(other.pid, "revoke", "session")
    with hub.database.unit_of_work() as connection:  # the hub withholds the other's withdrawal
        newest = connection.execute(sa.select(sa.func.max(site_document.c.log_index))).scalar()
        connection.execute(site_document.delete().where(site_document.c.log_index == newest))
    hub.registry._leases._heads.clear()
    with pytest.raises(HeadsMismatchError):
        basel.mirror.lease()


def test_of_a_patient_set_aside_only_the_two_known_documents_are_accepted_as_head(
    hub, hospitals, basel
):
    (person,) = basel.enrol(1)
    grant(hub, [person])
    index = hub_writes(hub, person, forged(hub, person, "amend"), moves=True)
    refused(basel.mirror)
    quarantine(basel, index)
    basel.mirror.lease()

    def hub_holds_her_at(digest: str) -> None:
        with hub.database.unit_of_work() as connection:
            connection.execute(consent_head.update().values(digest=digest))
        hub.registry._leases._heads.clear()

    hub_holds_her_at(person.head)  # the hub has put its table right
    basel.mirror.lease()
    hub_holds_her_at("f" * 64)
    with pytest.raises(HeadsMismatchError):
        basel.mirror.lease()


def test_what_was_set_aside_stays_so_when_the_hub_no_longer_sends_it(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    grant(hub, [person])
    cosign(hospitals)
    basel.mirror.lease()
    index = hub_writes(hub, person, forged(hub, person, "amend"))
    refused(basel.mirror)
    with hub.database.unit_of_work() as connection:
        connection.execute(site_document.delete().where(site_document.c.log_index == index))
    hub.registry._leases._heads.clear()
    assert trains(basel.mirror) == {person.pid}
    quarantine(basel, index)  # staff believe none of it
    cosign(hospitals)
    assert trains(basel.mirror) == set()
    assert trains(Mirror(basel.site, basel.client)) == set()


def test_several_patients_may_be_set_aside_at_once(hub, hospitals, basel):
    people = basel.enrol(6)
    grant(hub, people)
    cosign(hospitals)
    indexes = [
        hub_writes(hub, person, forged(hub, person, "amend"), moves=number % 2 == 0)
        for number, person in enumerate(people[:5])
    ]
    for index in indexes:
        assert refused(basel.mirror) == "consent.wrong-key"
        quarantine(basel, index)
    assert trains(basel.mirror) == {people[5].pid}


def test_nobody_without_the_hospitals_key_sets_a_document_aside(hub, hospitals, basel):
    (person,) = basel.enrol(1)
    index = hub_writes(hub, person, forged(hub, person), moves=True)
    refused(basel.mirror)
    said = quarantine(basel, index)
    for subject, key in (
        (said, hub.hub_key),
        (said.model_copy(update={"pid": "a" * 26}), SigningKey.generate()),
    ):
        text = jcs(issue(subject, key, clock())).decode()
        with basel.site.database.unit_of_work() as connection:
            connection.execute(mirror_quarantine.update().values(document=text))
        with pytest.raises(CoopError):
            Mirror(basel.site, basel.client).lease()


def test_the_commands_of_the_staff(hub, hospitals, basel):
    person, other = basel.enrol(2)
    grant(hub, [person, other])
    cosign(hospitals)
    index = hub_writes(hub, person, forged(hub, person, "amend"), moves=True)
    refused(basel.mirror)

    def run(*arguments: str) -> tuple[int, str]:
        state = ["--state", str(basel.site.folder)]
        done = CliRunner().invoke(app, ["hospital", *arguments, *state])
        return done.exit_code, done.stdout

    code, text = run("doctor")
    assert code == 1
    assert f"FAIL consent documents entry {index}, document" in " ".join(text.split())
    code, text = run("quarantine", str(index), "--reason", "no", "--json")
    assert code == 1
    assert acts(basel.site) == []
    reason = "asked the cooperative; nobody there signed it"
    code, text = run("quarantine", str(index), "--reason", reason, "--json")
    assert code == 0
    said = orjson.loads(text)
    assert said["lease"] == "leases are possible again"
    code, text = run("quarantine", str(index), "--reason", "again", "--json")
    assert orjson.loads(text)["quarantine"] == said["quarantine"]
    _, text = run("doctor")
    assert "ok   consent documents" in text
    assert reason in text
    assert refusals(basel.site) == []
    assert trains(basel.mirror) == {other.pid}  # the running node noticed
