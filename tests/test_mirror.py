"""The hub can only narrow: what a hospital believes about consent, against hubs that lie."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from consent_hub import ORIGIN, ConsentHub, Hospital, Person, clock, grant
from doors_world import served

from consent.decide import Request, decide
from consent.store import consent_head, site_document
from coop import members
from coop.canonical import b64u, document_digest, jcs
from coop.client import Client
from coop.db import Database
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import issue
from coop.enrolment import redemption
from coop.errors import CoopError
from coop.hub.app import create_app
from coop.hub.folder import HubFolder
from coop.journal.rows import log_checkpoint, log_entry, log_head
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.settings import Settings
from federated import desk
from federated.join import join
from federated.mirror import (
    HeldLease,
    LeaseExpiredError,
    LeaseRefusedError,
    LogRollbackError,
    Mirror,
    WitnessForkError,
)
from federated.site import patient

STUDY = {
    "action": "train-federated",
    "purpose": "DUO:0000006",
    "data_class": "cardiology",
    "study_id": "heart",
    "organisation": "University",
    "commercial": False,
}


@pytest.fixture
def hospitals(hub: ConsentHub, tmp_path: Path) -> Iterator[list[Hospital]]:
    """Three hospitals that know each other: two others must cosign."""
    found = [Hospital(hub, tmp_path, name) for name in ("basel", "cleveland", "zurich")]
    for hospital in found:
        hospital.connect()
    yield found
    for hospital in found:
        hospital.close()


def cosign(hospitals: list[Hospital]) -> None:
    for hospital in hospitals:
        hospital.mirror.witness()


def trains(lease: HeldLease) -> set[str]:
    """The pids whose rows a study may touch under this lease."""
    request = Request(**STUDY, at=clock())
    return {pid for pid in lease.usable if decide(lease.standings.get(pid), request).permits}


def refused(mirror: Mirror) -> str:
    """The code a lease is refused with."""
    with pytest.raises(CoopError) as caught:
        mirror.lease()
    return caught.value.code


def hub_writes(hub: ConsentHub, kind: str, document: dict, person: Person, *, grant: bool) -> None:
    """What a hub with full access to database and keys can write."""
    with hub.database.unit_of_work() as connection:
        place = hub.journal.record(connection, kind, document)
        row = {"site": person.site, "pid": person.pid, "digest": place.digest}
        connection.execute(site_document.insert().values(log_index=place.index, **row))
        if grant:
            connection.execute(consent_head.delete().where(consent_head.c.pid == person.pid))
            connection.execute(
                consent_head.insert().values(
                    **row,
                    state="active",
                    sequence=1,
                    log_index=place.index,
                    widened_index=place.index,
                    policy=None,
                )
            )


def test_a_patient_trains_once_two_others_have_seen_her_grant(hub, hospitals):
    people = hospitals[0].enrol(3)
    grant(hub, people)
    mirror = hospitals[0].mirror
    assert trains(mirror.lease()) == set()
    hospitals[1].mirror.witness()
    assert trains(mirror.lease()) == set()
    hospitals[0].mirror.witness()  # its own cosignature does not count for itself
    assert trains(mirror.lease()) == set()
    hospitals[2].mirror.witness()
    assert trains(mirror.lease()) == {person.pid for person in people}


def test_a_withdrawn_patient_is_out_at_the_next_lease_without_any_cosignature(hub, hospitals):
    people = hospitals[0].enrol(2)
    grant(hub, people)
    cosign(hospitals)
    mirror = hospitals[0].mirror
    assert trains(mirror.lease()) == {person.pid for person in people}
    hub.registry.restrict(people[0].pid, "revoke", "session")
    assert trains(mirror.lease()) == {people[1].pid}
    document = people[1].event("suspend")
    assert hub.registry.submit([document])[0]["problem"] is None
    assert trains(mirror.lease()) == set()


def test_resuming_needs_the_witnesses_again(hub, hospitals):
    (person,) = hospitals[0].enrol(1)
    grant(hub, [person])
    cosign(hospitals)
    for event in ("suspend", "resume"):
        document = person.event(event)
        assert hub.registry.submit([document])[0]["problem"] is None
        person.follow(document)
    mirror = hospitals[0].mirror
    assert trains(mirror.lease()) == set()
    cosign(hospitals)
    assert trains(mirror.lease()) == {person.pid}


def test_a_refusal_is_kept_and_permits_nothing(hub, hospitals):
    people = hospitals[0].enrol(1)
    grant(hub, people, "refuse")
    cosign(hospitals)
    lease = hospitals[0].mirror.lease()
    assert lease.usable == {people[0].pid}
    assert trains(lease) == set()


@pytest.mark.parametrize("signer", ["hub", "stranger"])
@pytest.mark.parametrize("actor", ["patient", "session"])
def test_a_grant_the_hub_forges_trains_no_row(hub, hospitals, signer, actor):
    (person,) = hospitals[0].enrol(1)
    key = hub.hub_key if signer == "hub" else SigningKey.generate()
    forged = person.event("grant", key=key, actor=actor)
    hub_writes(hub, "consent", forged, person, grant=True)
    cosign(hospitals)
    assert refused(hospitals[0].mirror) == "consent.wrong-key"


def test_an_enrolment_the_hub_forges_trains_no_row(hub, hospitals):
    (person,) = hospitals[0].enrol(1)
    grant(hub, [person], "refuse")
    thief = SigningKey.generate()
    subject = Enrolment(
        site=person.site, pid=person.pid, key=thief.did, method="desk", custody="self", code_id="x"
    )
    for signer in (hub.hub_key, hub.site_keys["zurich"]):
        forged = issue(subject, signer, clock())
        stolen = Person(person.site, person.pid, thief)
        hub_writes(hub, "enrolment", forged, stolen, grant=False)
        hub_writes(hub, "consent", stolen.event("grant"), stolen, grant=True)
        cosign(hospitals)
        assert refused(hospitals[0].mirror) == "documents.wrong-document"


def test_a_hub_that_restricts_cannot_widen_afterwards(hub, hospitals):
    (person,) = hospitals[0].enrol(1)
    grant(hub, [person])
    hub.registry.restrict(person.pid, "suspend", "session")
    standing = hub.registry.standing(person.pid)
    resume = Consent(
        pid=person.pid,
        site=person.site,
        domain="research",
        sequence=3,
        previous=standing.head_digest,
        event="resume",
        actor="session",
    )
    hub_writes(hub, "consent", issue(resume, hub.hub_key, clock()), person, grant=True)
    assert refused(hospitals[0].mirror) == "consent.wrong-key"


def test_an_altered_policy_is_refused(hub, hospitals):
    (person,) = hospitals[0].enrol(1)
    document = person.event("grant", choice="refuse")
    altered = person.event("grant")
    altered["proof"] = document["proof"]
    hub_writes(hub, "consent", altered, person, grant=True)
    assert refused(hospitals[0].mirror) == "keys.bad-signature"


def test_a_document_that_is_not_the_logged_one_is_refused(hub, hospitals):
    people = hospitals[0].enrol(2)
    grant(hub, people)
    with hub.database.unit_of_work() as connection:
        rows = connection.execute(sa.select(site_document.c.log_index)).scalars().all()
        last = site_document.c.log_index == max(rows)
        connection.execute(
            site_document.update()
            .where(last)
            .values(digest=document_digest(people[0].event("revoke")))
        )
    # The hub lost track of one document: what it sends does not add up to what it vouches for.
    assert refused(hospitals[0].mirror) == "mirror.heads-mismatch"


def test_a_withheld_withdrawal_contradicts_the_digest_or_convicts_the_hub(hub, hospitals):
    (person,) = hospitals[0].enrol(1)
    grant(hub, [person])
    cosign(hospitals)
    mirror = hospitals[0].mirror
    mirror.lease()
    answer = hub.registry.restrict(person.pid, "revoke", "session")
    with hub.database.unit_of_work() as connection:
        newest = connection.execute(sa.select(sa.func.max(site_document.c.log_index))).scalar()
        connection.execute(site_document.delete().where(site_document.c.log_index == newest))
    hub.registry._leases._heads.clear()
    assert refused(mirror) == "mirror.heads-mismatch"
    # It also rewrites the head: the lease is then signed evidence against the patient's receipt.
    with hub.database.unit_of_work() as connection:
        values = {"digest": person.head, "state": "active", "sequence": 1}
        connection.execute(consent_head.update().values(values))
    hub.registry._leases._heads.clear()
    lease = mirror.lease()
    index = answer["receipt"]["document"]["credentialSubject"]["index"]
    assert index < lease.log_size
    assert lease.standings[person.pid].head_digest == person.head


def test_what_was_withheld_once_is_taken_in_later_and_what_was_seen_is_never_forgotten(
    hub, hospitals
):
    people = hospitals[0].enrol(2)
    grant(hub, people)
    cosign(hospitals)
    mirror = hospitals[0].mirror
    with hub.database.unit_of_work() as connection:
        rows = connection.execute(sa.select(site_document)).all()
        hidden = [row for row in rows if row.pid == people[0].pid]
        heads = connection.execute(sa.select(consent_head)).all()
        connection.execute(site_document.delete().where(site_document.c.pid == people[0].pid))
        connection.execute(consent_head.delete().where(consent_head.c.pid == people[0].pid))
    assert trains(mirror.lease()) == {people[1].pid}
    with hub.database.unit_of_work() as connection:
        for row in hidden:
            connection.execute(site_document.insert().values(**row._mapping))
        for row in heads:
            if row.pid == people[0].pid:
                connection.execute(consent_head.insert().values(**row._mapping))
    hub.registry._leases._heads.clear()
    assert trains(mirror.lease()) == {person.pid for person in people}
    # Now the hub drops a withdrawal the node has seen: no digest without it is believed again.
    before = hub.registry.standing(people[1].pid)
    hub.registry.restrict(people[1].pid, "revoke", "session")
    assert trains(mirror.lease()) == {people[0].pid}
    with hub.database.unit_of_work() as connection:
        newest = connection.execute(sa.select(sa.func.max(site_document.c.log_index))).scalar()
        connection.execute(site_document.delete().where(site_document.c.log_index == newest))
        values = {"digest": before.head_digest, "state": "active", "sequence": 1}
        same = consent_head.c.pid == people[1].pid
        connection.execute(consent_head.update().where(same).values(values))
    hub.registry._leases._heads.clear()
    assert refused(mirror) == "mirror.heads-mismatch"


def test_a_lease_counts_from_before_the_question_and_one_percent_less(hub, hospitals):
    hospital = hospitals[0]
    hospital.boot = 5000.0
    lease = hospital.mirror.lease()
    seconds = lease.document["credentialSubject"]["seconds"]
    assert seconds <= 60
    assert lease.expires_boottime == pytest.approx(5000.0 + seconds * 0.99)
    lease.check(lease.expires_boottime - 0.001)
    with pytest.raises(LeaseExpiredError):
        lease.check(lease.expires_boottime)


def replaying(mirror: Mirror, answer: dict) -> None:
    mirror._client.get = lambda *_path, **_query: answer  # what a hub may answer


def test_an_old_lease_replayed_is_refused(hub, hospitals):
    hospital = hospitals[0]
    answer = hub.registry.lease("basel", "0" * 32, 0)
    replaying(hospital.mirror, answer)
    with pytest.raises(LeaseRefusedError):
        hospital.mirror.lease()


def test_a_lease_for_another_hospital_is_refused(hub, hospitals):
    hospital = hospitals[0]
    hospital.mirror._client.get = lambda _path, nonce, have, documents: hub.registry.lease(
        "zurich", nonce, have, documents
    )
    with pytest.raises(LeaseRefusedError):
        hospital.mirror.lease()


def test_a_lease_by_another_hub_key_is_refused(hub, hospitals):
    other = SigningKey.generate()
    hub.registry._leases._key = other
    assert refused(hospitals[0].mirror) == "documents.wrong-document"


def test_a_log_that_shrinks_is_refused(hub, hospitals):
    people = hospitals[0].enrol(2)
    size = hospitals[0].mirror.sync()
    with hub.database.reading() as connection:
        head = connection.execute(sa.select(log_head)).one()
        notes = connection.execute(sa.select(log_checkpoint)).all()
    grant(hub, people)
    hospitals[0].mirror.witness()
    hospitals[1].mirror.sync()
    with hub.database.unit_of_work() as connection:  # restored from a backup, or rolled back
        for table in (log_entry, site_document):
            connection.execute(table.delete().where(table.c.log_index >= size))
        connection.execute(log_checkpoint.delete().where(log_checkpoint.c.size > size))
        connection.execute(log_head.update().values(size=head.size, frontier=head.frontier))
        connection.execute(consent_head.delete())
    assert notes
    for hospital in hospitals[:2]:
        with pytest.raises(LogRollbackError):
            hospital.mirror.lease()
        with pytest.raises(LogRollbackError):
            hospital.mirror.witness()


def test_a_forked_log_is_not_cosigned_and_the_evidence_is_kept(hub, hospitals, tmp_path):
    people = hospitals[0].enrol(2)
    cosign(hospitals)
    # The hub rewrites history under the same log key: another log of a greater size.
    other = Database(f"sqlite:///{tmp_path / 'fork.sqlite'}")
    other.upgrade()
    fork = Journal(other, hub.log_key, ORIGIN, clock)
    with other.unit_of_work() as connection:
        fork.record_many(connection, "consent", [person.event("grant") for person in people])
        fork.record_many(connection, "consent", [person.event("revoke") for person in people])
        fork.record_many(connection, "consent", [people[0].event("resume")])
    mirror = hospitals[1].mirror
    real = hub.journal
    with other.reading() as connection:
        forged = fork.checkpoint(connection)
        leaves = [b64u(leaf) for leaf in fork.entries(connection, mirror.size())]
    client_get = mirror._client.get
    mirror._client.get = lambda *_p, **_q: {"checkpoint": forged, "entries": leaves}
    with pytest.raises(WitnessForkError):
        mirror.witness()
    (evidence,) = mirror.evidence()
    assert evidence["theirs"] == forged
    assert evidence["ours"].startswith(ORIGIN)
    mirror._client.get = client_get
    other.close()
    with hub.database.reading() as connection:  # and it goes on verifying the true log
        assert real.size(connection) == mirror.sync()


def test_a_restarted_node_verifies_what_it_stored_and_goes_on(hub, hospitals):
    people = hospitals[0].enrol(3)
    grant(hub, people)
    cosign(hospitals)
    first = hospitals[0].mirror.lease()
    again = Mirror(hospitals[0].site, hospitals[0].client, now=clock)
    assert again.size() == first.log_size
    assert set(again.standings()) == {person.pid for person in people}
    assert trains(again.lease()) == {person.pid for person in people}


def test_a_reissued_key_signs_from_then_on_and_the_old_one_no_more(hub, hospitals):
    (person,) = hospitals[0].enrol(1)
    grant(hub, [person])
    cosign(hospitals)
    (again,) = hospitals[0].enrol_again(["record 0"])
    stale = hub.registry.submit([person.event("amend", choice="refuse")])
    assert stale[0]["problem"]["code"] == "consent.wrong-key"
    # What it gave stays given; what the new key says to stop is stopped at once.
    assert trains(hospitals[0].mirror.lease()) == {person.pid}
    new = person.event("revoke", key=again.key)
    assert hub.registry.submit([new])[0]["problem"] is None
    assert trains(hospitals[0].mirror.lease()) == set()


def test_a_key_change_the_hub_withholds_silences_the_old_key(hub, hospitals):
    (person,) = hospitals[0].enrol(1)
    grant(hub, [person])
    cosign(hospitals)
    mirror = hospitals[0].mirror
    assert trains(mirror.lease()) == {person.pid}
    code = desk.enrol(hospitals[0].site, ["record 0"], method="desk", now=clock())["record 0"]
    sent = redemption(code, SigningKey.generate())
    assert desk.answer(hospitals[0].site, [sent], now=clock() + 5).documents
    assert trains(mirror.lease()) == set()


def test_two_processes_of_one_hospital_share_the_mirror(hub, hospitals):
    people = hospitals[0].enrol(4)
    first = hospitals[0].mirror
    second = Mirror(hospitals[0].site, hospitals[0].client, now=clock)
    for number, person in enumerate(people):
        grant(hub, [person])
        order = (first, second) if number % 2 else (second, first)
        order[0].witness()
        order[1].lease()
        order[0].lease()
        cosign(hospitals)
    everyone = {person.pid for person in people}
    assert trains(first.lease()) == trains(second.lease()) == everyone
    assert first.evidence() == []


def test_a_single_hospital_is_alone_and_its_grants_count(hub, tmp_path):
    alone = Hospital(hub, tmp_path, "alone")
    alone.connect()
    people = alone.enrol(1)
    grant(hub, people)
    assert trains(alone.mirror.lease()) == {people[0].pid}
    alone.close()


def test_a_lease_costs_little_when_nothing_changed(hub, hospitals):
    people = hospitals[0].enrol(230)
    grant(hub, people)
    cosign(hospitals)
    mirror = hospitals[0].mirror
    mirror.lease()
    start = time.process_time()  # hub and node both run in this process
    for _ in range(5):
        mirror.lease()
    assert (time.process_time() - start) / 5 < 0.070


@pytest.mark.parametrize(("limit", "value"), [("DOCUMENTS_MAX", 3), ("DOCUMENTS_BYTES", 4000)])
def test_every_page_of_a_long_log_is_verified(hub, hospitals, monkeypatch, limit, value):
    monkeypatch.setattr(f"consent.lease.{limit}", value)
    whole = hub.registry.lease
    pages = []

    def counted(*args):
        pages.append(whole(*args))
        return pages[-1]

    monkeypatch.setattr(hub.registry, "lease", counted)
    people = hospitals[0].enrol(5)
    grant(hub, people)
    cosign(hospitals)
    assert trains(hospitals[0].mirror.lease()) == {person.pid for person in people}
    assert len(pages) > 2
    for page in pages:
        held = sum(len(jcs(one["document"])) for one in page["documents"])
        assert len(page["documents"]) <= 3 or held <= 4000


def test_the_whole_hub_from_invitation_to_withdrawal_over_http(tmp_path):
    """Only routes: what the node, the patient's device and the hub say to each other."""
    settings = Settings(state=tmp_path / "hub")
    HubFolder.init(settings, legal_mode="strictest", origin=ORIGIN, now=clock())
    app = create_app(settings)
    database = Database(settings.database())
    with socket.create_server(("127.0.0.1", 0)) as listening, served(app, listening):
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        nodes = {}
        for name in ("basel", "zurich"):
            with database.unit_of_work() as connection:
                token = members.create_invite(connection, name, now=clock())
            site = join(tmp_path / name, name, token=token, hub_url=url, ca_file=None)
            nodes[name] = (site, Client(url, key=site.key))
        site, client = nodes["zurich"]
        mirror, other = Mirror(site, client), Mirror(*nodes["basel"])
        with site.database.unit_of_work() as connection:
            pid = site.pid_of("17")
            connection.execute(patient.insert().values(pid=pid, record_key="17"))
        code = desk.enrol(site, ["17"], method="desk", now=clock())["17"]
        person = Person("zurich", pid, SigningKey.generate())
        with Client(url, key=person.key) as device:
            sent = {"redemptions": [redemption(code, person.key)]}
            assert device.post("/v1/enrolments:redeem", sent)["results"][0]["state"] == "pending"
            path = "/v1/sites/zurich/enrolments"
            said = desk.answer(site, client.get(path, wait=5)["redemptions"], now=clock())
            client.post(path, {"documents": said.documents, "refused": said.refused})
            assert device.post("/v1/enrolments:redeem", sent)["results"][0]["pid"] == pid
            assert device.get("/v1/me")["pids"] == [{"pid": pid, "site": "zurich", "own": True}]
            (result,) = device.post("/v1/consents", {"documents": [person.event("grant")]})[
                "results"
            ]
            assert result["problem"] is None
            # The other hospital was pinned when it joined, so it has to see the grant first.
            assert trains(mirror.lease()) == set()
            other.witness(wait=1)
            assert trains(mirror.lease()) == {pid}
            stopped = device.post(f"/v1/consents/{pid}/revoke")
            assert stopped["effective_by"] - clock() <= 60
            assert trains(mirror.lease()) == set()
        for node_site, node_client in nodes.values():
            node_client.close()
            node_site.close()
    database.close()
