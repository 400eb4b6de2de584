"""The registry's contract, the same over SQLite and PostgreSQL: nothing lost, nothing widened."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from consent_hub import ConsentHub, Person, clock, grant
from fastapi.testclient import TestClient

from consent import events
from consent.chain import heads_digest
from consent.decide import Request, State
from consent.drafts import DRAFT_SECONDS, Choice
from consent.events import NotEnrolledError
from consent.notice import shipped
from consent.notice_store import publish
from consent.policy import preset
from consent.registry import Registry
from consent.store import consent_draft, consent_event, consent_head, site_document
from coop import credentials, members
from coop.canonical import DOCUMENT_BYTES_MAX, b64u, document_digest
from coop.db import Database
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import issue, open_document
from coop.documents.training import Lease
from coop.enrolment import new_code, redemption
from coop.errors import CoopError, InvalidInputError
from coop.journal.receipts import check_bundle
from coop.keys import SigningKey, signature_of, to_sign
from coop.signed_request import sign
from coop.verify import verify_consent

PIDS = [f"{letter * 26}" for letter in "abcdefgh"]
CHOICE = Choice(event="grant", policy=preset("all-research"), notice=shipped()[-1].reference())


@pytest.fixture
def hub(database: Database) -> ConsentHub:
    hub = ConsentHub(database)
    hub.join("basel")
    hub.join("zurich")
    return hub


def enrol(hub: ConsentHub, site: str, *pids: str, account: int | None = None) -> list[Person]:
    """Patients of `site`, enrolled by documents the site signed."""
    people = []
    for pid in pids:
        code_id, _, text = new_code(site)
        person = Person(site, pid, SigningKey.generate())
        (result,) = hub.registry.redeem([redemption(text, person.key)], account)
        assert (result["state"], result["problem"]) == ("pending", None)
        subject = Enrolment(
            site=site, pid=pid, key=person.key.did, method="desk", custody="self", code_id=code_id
        )
        document = issue(subject, hub.site_keys[site], clock())
        (answer,) = hub.registry.add_enrolments(site, [document])
        assert (answer["state"], answer["problem"]) == ("enrolled", None)
        people.append(person)
    return people


def code_of(result: dict[str, Any]) -> str | None:
    return result["problem"] and result["problem"]["code"]


def question(**changes: Any) -> Request:
    asked = {
        "action": "train-federated",
        "purpose": "DUO:0000006",
        "data_class": "cardiology",
        "study_id": "heart",
        "organisation": "University",
        "commercial": False,
        "at": clock(),
    }
    return Request(**(asked | changes))


def test_a_batch_gets_receipts_that_verify_and_one_bad_item_stops_no_other(hub):
    first, second, third = enrol(hub, "zurich", *PIDS[:3])
    broken = {**second.event("grant"), "validFrom": "2020-01-01T00:00:00Z"}
    stranger = Person("zurich", PIDS[7], SigningKey.generate()).event("grant")
    out_of_turn = third.event("grant", sequence=2)
    malformed = {"hello": 1}
    sent = [first.event("grant"), broken, stranger, out_of_turn, malformed, third.event("grant")]
    results = hub.registry.submit(sent)
    assert [code_of(result) for result in results] == [
        None,
        "keys.bad-signature",
        "consent.not-enrolled",
        "consent.chain",
        "documents.wrong-document",
        None,
    ]
    for result, document in ((results[0], sent[0]), (results[5], sent[5])):
        verified = check_bundle(result["receipt"], hub.trust)
        said = verified.document["credentialSubject"]
        assert verified.issuer == hub.hub_key.did
        assert said["consent_sha256"] == document_digest(document)
        assert said["effective_by"] == result["effective_by"]
        assert 0 <= result["effective_by"] - clock() <= 60
        assert verify_consent(result["receipt"], hub.trust).what == "consent"


def test_the_same_document_twice_is_one_event_and_one_receipt(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    document = person.event("grant")
    twice = hub.registry.submit([document, document])
    again = hub.registry.submit([document])
    receipts = [result["receipt"]["document"] for result in (*twice, *again)]
    assert receipts[0] == receipts[1] == receipts[2]
    with hub.database.reading() as connection:
        count = sa.select(sa.func.count()).select_from(consent_event)
        assert connection.execute(count).scalar() == 1


def test_several_events_of_one_chain_may_come_in_one_batch(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    batch = []
    for event in ("grant", "suspend", "resume", "amend"):
        document = person.event(event, choice="train-only" if event == "amend" else "all-research")
        person.follow(document)
        batch.append(document)
    assert [code_of(result) for result in hub.registry.submit(batch)] == [None] * 4
    standing = hub.registry.standing(person.pid)
    assert (standing.state, standing.sequence) == (State.ACTIVE, 4)
    assert standing.head_digest == document_digest(batch[-1])
    assert hub.registry.overview(person.pid)["preset"] == "train-only"


def test_a_decision_without_the_words_she_was_shown_is_refused_and_a_stop_is_not(hub):
    (person,) = enrol(hub, "basel", PIDS[0])
    unknown = shipped()[-1].reference().model_copy(update={"sha256": "0" * 64})

    def said(event: str, **changes: Any) -> str | None:
        document = person.event(event, **changes)
        (answer,) = hub.registry.submit([document])
        if answer["problem"] is None:
            person.follow(document)
        return code_of(answer)

    assert said("grant", notice=None) == "consent.unknown-notice"
    assert said("grant", notice=unknown) == "consent.unknown-notice"
    assert said("grant") is None
    assert said("amend", notice=None) == "consent.unknown-notice"
    new = shipped()[-1].model_copy(update={"version": "2", "what": "Your record."})
    with hub.database.unit_of_work() as connection:
        publish(connection, new, clock())
    assert said("amend", notice=new.reference()) is None
    assert said("revoke", notice=None) is None


def test_what_a_lease_could_not_carry_is_refused_and_one_patient_blocks_no_hospital(hub):
    mallory, ada = enrol(hub, "basel", *PIDS[:2])
    grant(hub, [ada])
    subject = Consent(
        pid=mallory.pid,
        site="basel",
        domain="research",
        sequence=1,
        event="grant",
        policy=preset("all-research"),
        notice=shipped()[-1].reference(),
    )
    long = issue(subject, mallory.key, clock(), id="urn:x:" + "x" * DOCUMENT_BYTES_MAX)
    (answer,) = hub.registry.submit([long])
    assert answer["problem"]["code"] == "documents.wrong-document"
    assert hub.registry.lease("basel", "0" * 32, 0, 0)["documents"]


def test_an_event_from_the_future_or_for_another_hospital_is_refused(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    subject = Consent(
        pid=person.pid,
        site="zurich",
        domain="research",
        sequence=1,
        event="grant",
        policy=preset("all-research"),
        notice=shipped()[-1].reference(),
    )
    ahead = issue(subject, person.key, clock() + 3600)
    elsewhere = person.event("grant", site="basel")
    assert [code_of(result) for result in hub.registry.submit([ahead, elsewhere])] == [
        "coop.invalid-input",
        "documents.wrong-document",
    ]


def test_restricting_needs_no_key_is_idempotent_and_keeps_the_chain(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    with pytest.raises(CoopError, match="not possible"):
        hub.registry.restrict(person.pid, "revoke", "session")
    grant(hub, [person])
    paused = hub.registry.restrict(person.pid, "suspend", "registrar")
    assert hub.registry.restrict(person.pid, "suspend", "session") == paused
    assert hub.registry.permitted(question()) == {"basel": [], "zurich": []}
    withdrawn = hub.registry.restrict(person.pid, "revoke", "session")
    assert hub.registry.restrict(person.pid, "revoke", "session") == withdrawn
    assert hub.registry.restrict(person.pid, "suspend", "session") == withdrawn
    standing = hub.registry.standing(person.pid)
    assert (standing.state, standing.sequence) == (State.REVOKED, 3)
    person.sequence, person.head = standing.sequence, standing.head_digest
    grant(hub, [person], "train-only")
    assert hub.registry.permitted(question()) == {"basel": [], "zurich": [person.pid]}
    with pytest.raises(NotEnrolledError):
        hub.registry.restrict(PIDS[7], "revoke", "session")


def test_a_withdrawal_ends_what_hangs_on_it_in_the_same_unit_of_work(hub):
    told: list[list[str]] = []
    broken: list[str] = []

    def listen(connection: sa.Connection, pids: list[str]) -> None:
        told.append(pids)
        if broken:
            raise InvalidInputError("the pool cannot be settled")

    hub.registry = Registry(hub.database, hub.journal, hub.hub_key, clock, on_revoked=listen)
    first, second = enrol(hub, "zurich", *PIDS[:2])
    grant(hub, [first, second])
    hub.registry.restrict(first.pid, "suspend", "session")
    assert told == []
    hub.registry.restrict(first.pid, "revoke", "session")
    hub.registry.restrict(first.pid, "revoke", "session")
    assert told == [[first.pid]]
    broken.append("now")
    with pytest.raises(InvalidInputError):
        hub.registry.submit([second.event("revoke")])
    assert hub.registry.standing(second.pid).state is State.ACTIVE  # both or neither
    broken.clear()
    assert code_of(hub.registry.submit([second.event("revoke")])[0]) is None
    assert told[-1] == [second.pid]


def test_a_hospital_may_sign_a_withdrawal_itself_and_no_other_hospital(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    grant(hub, [person])
    for site, code in (("basel", "consent.wrong-key"), ("zurich", None)):
        document = person.event("revoke", key=hub.site_keys[site], actor="registrar")
        assert code_of(hub.registry.submit([document])[0]) == code


def test_a_history_is_a_file_that_verifies_offline(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    grant(hub, [person])
    hub.registry.restrict(person.pid, "revoke", "session")
    events = hub.registry.history(person.pid)
    assert [(e["sequence"], e["event"], e["actor"]) for e in events] == [
        (1, "grant", "patient"),
        (2, "revoke", "session"),
    ]
    for entry in events:
        report = verify_consent(entry["proof"], hub.trust)
        assert report.facts["index"] == entry["log_index"]
    pages = [hub.registry.history(person.pid, after=after, limit=1) for after in (0, 1, 2)]
    assert [[e["sequence"] for e in page] for page in pages] == [[1], [2], []]


def test_sixty_four_writers_of_one_chain_at_once_lose_nothing(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    choices = ["all-research", "train-only", "no-companies", "with-companies", "refuse"]
    documents = [person.event("grant", choice=choices[n % 5]) for n in range(64)]
    results: list[str | None] = []

    def write(document: dict[str, Any]) -> None:
        results.append(code_of(hub.registry.submit([document])[0]))

    threads = [threading.Thread(target=write, args=(d,)) for d in documents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=str) == [None, *["consent.chain"] * 63]
    with hub.database.reading() as connection:
        rows = connection.execute(sa.select(consent_event)).all()
        head = connection.execute(sa.select(consent_head)).one()
        size = hub.journal.size(connection)
    assert len(rows) == 1
    assert head.digest == rows[0].digest
    assert size == 3  # enrolment, consent, receipt


def test_sixty_four_patients_at_once_are_all_acknowledged_and_none_is_lost(hub):
    people = enrol(
        hub, "zurich", *(base64.b32encode(bytes([n]) * 16).decode().lower()[:26] for n in range(64))
    )
    answers: dict[str, str | None] = {}

    def write(person: Person) -> None:
        (answer,) = hub.registry.submit([person.event("grant")])
        answers[person.pid] = code_of(answer)

    threads = [threading.Thread(target=write, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {person.pid: None for person in people}
    with hub.database.reading() as connection:
        events = connection.execute(sa.select(consent_event.c.log_index)).scalars().all()
        assert len(set(events)) == 64
        assert hub.journal.size(connection) == 3 * 64


def test_an_objection_needs_no_key_and_ending_it_does(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    grant(hub, [person])
    assert hub.registry.decision(person.pid, question()).permits
    first = hub.registry.restrict(person.pid, "object", "session")
    assert hub.registry.restrict(person.pid, "object", "registrar") == first
    assert hub.registry.decision(person.pid, question()).reasons == ("consent.objected",)
    assert hub.registry.permitted(question())["zurich"] == []
    standing = hub.registry.standing(person.pid)
    person.sequence, person.head = standing.sequence, standing.head_digest
    (refused,) = hub.registry.submit([person.event("lift", key=hub.hub_key, actor="session")])
    assert code_of(refused) == "consent.wrong-key"
    made = hub.registry.draft(person.pid, Choice(event="lift"))
    signature = b64u(person.key.sign(to_sign(made["document"], made["proof"])))
    hub.registry.sign(made["draft_id"], signature, person.key.did)
    assert hub.registry.decision(person.pid, question()).permits


def test_what_a_hospital_proposes_waits_for_her_and_can_be_declined(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    site = hub.site_keys["zurich"]

    def proposed(key: SigningKey) -> str | None:
        document = person.event(
            "propose", key=key, actor="registrar", policy=preset("all-research"),
            notice=shipped()[-1].reference(),
        )  # fmt: skip
        (answer,) = hub.registry.submit([document])
        if answer["problem"] is None:
            person.follow(document)
        return code_of(answer)

    assert proposed(hub.hub_key) == "consent.wrong-key"
    assert proposed(hub.site_keys["basel"]) == "consent.wrong-key"
    assert proposed(site) is None
    assert hub.registry.overview(person.pid)["state"] == "proposed"
    assert not hub.registry.decision(person.pid, question()).permits
    hub.registry.restrict(person.pid, "reject", "session")
    assert hub.registry.overview(person.pid)["state"] == "rejected"
    standing = hub.registry.standing(person.pid)
    person.sequence, person.head = standing.sequence, standing.head_digest
    assert proposed(site) is None
    grant(hub, [person])
    assert hub.registry.decision(person.pid, question()).permits


def test_a_consent_whose_time_is_over_is_shown_as_expired(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    short = preset("all-research", end=clock() + 3600)
    grant_of = person.event("grant", policy=short)
    hub.registry.submit([grant_of])
    assert hub.registry.overview(person.pid)["state"] == "active"
    hub.registry.now = lambda: clock() + 3600
    assert hub.registry.overview(person.pid)["state"] == "expired"


def test_a_draft_is_signed_by_the_browser_over_the_hubs_own_copy(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    made = hub.registry.draft(person.pid, CHOICE)
    assert made["document"]["issuer"] == person.key.did
    assert "proof" not in made["document"]
    assert ["Hospital", "zurich"] in made["summary"]
    signature = person.key.sign(to_sign(made["document"], made["proof"]))
    thief = SigningKey.generate()
    stolen = thief.sign(to_sign(made["document"], made["proof"]))
    with pytest.raises(CoopError) as caught:
        hub.registry.sign(made["draft_id"], b64u(stolen), person.key.did)
    assert caught.value.code == "keys.bad-signature"
    with pytest.raises(InvalidInputError):
        hub.registry.sign(made["draft_id"], b64u(signature), thief.did)
    with pytest.raises(InvalidInputError):
        hub.registry.sign(made["draft_id"], "!", person.key.did)
    done = hub.registry.sign(made["draft_id"], b64u(signature), person.key.did)
    again = hub.registry.sign(made["draft_id"], b64u(signature), person.key.did)
    assert done["receipt"]["document"] == again["receipt"]["document"]
    (entry,) = hub.registry.history(person.pid)
    assert signature_of(entry["proof"]["document"]["proof"]["proofValue"]) == signature


def test_a_draft_after_a_decision_is_an_amendment_and_a_stale_one_is_refused(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    choice = CHOICE
    stale = hub.registry.draft(person.pid, choice)
    grant(hub, [person])
    fresh = hub.registry.draft(person.pid, choice)
    assert fresh["document"]["credentialSubject"]["event"] == "amend"
    signed = b64u(person.key.sign(to_sign(stale["document"], stale["proof"])))
    with pytest.raises(CoopError) as caught:
        hub.registry.sign(stale["draft_id"], signed, person.key.did)
    assert caught.value.code == "consent.chain"
    with hub.database.unit_of_work() as connection:
        connection.execute(consent_draft.update().values(expires=clock() - DRAFT_SECONDS))
    with pytest.raises(CoopError, match="30 minutes"):
        hub.registry.sign(fresh["draft_id"], signed, person.key.did)


def test_a_lease_vouches_for_the_heads_of_one_instant(hub):
    people = enrol(hub, "zurich", *PIDS[:3])
    enrol(hub, "basel", PIDS[5])
    for _ in range(2):  # the remembered digest must not outlive an event
        answer = hub.registry.lease("zurich", "0" * 32, 0)
        opened = open_document(Lease, answer["lease"], issuers={hub.hub_key.did})
        with hub.database.reading() as connection:
            rows = connection.execute(
                sa.select(consent_head.c.pid, consent_head.c.digest).where(
                    consent_head.c.site == "zurich"
                )
            ).all()
            assert opened.subject.log_size == hub.journal.size(connection)
        assert opened.subject.heads_sha256 == heads_digest({r.pid: r.digest for r in rows})
        assert len(answer["entries"]) == opened.subject.log_size
        mine = {str(item["document"]["credentialSubject"]["pid"]) for item in answer["documents"]}
        assert mine == {person.pid for person in people}
        if not rows:
            grant(hub, people)
    later = hub.registry.lease("zurich", "1" * 32, opened.subject.log_size)
    assert (later["entries"], later["documents"]) == ([], [])


def test_the_registry_counts_who_permits_a_study(hub):
    people = enrol(hub, "zurich", *PIDS[:4])
    others = enrol(hub, "basel", PIDS[4])
    grant(hub, people[:2])
    grant(hub, [people[2]], "refuse")
    grant(hub, others, "train-only")
    assert hub.registry.permitted(question()) == {
        "basel": [PIDS[4]],
        "zurich": PIDS[:2],
    }
    assert hub.registry.permitted(question(action="infer-aggregate"))["basel"] == []
    assert hub.registry.permitted(question(commercial=True)) == {"basel": [], "zurich": []}
    assert hub.registry.counts()["zurich"] == {"enrolled": 4, "active": 3}
    assert hub.registry.decision(PIDS[3], question()).reasons == ("consent.none",)


# -- enrolment -------------------------------------------------------------------------------------


def test_only_the_hospital_itself_enrols_and_only_the_key_that_redeemed(hub):
    code_id, _, text = new_code("zurich")
    key = SigningKey.generate()
    hub.registry.redeem([redemption(text, key)], None)
    subject = Enrolment(
        site="zurich", pid=PIDS[0], key=key.did, method="desk", custody="self", code_id=code_id
    )
    other = subject.model_copy(update={"key": SigningKey.generate().did})
    elsewhere = subject.model_copy(update={"site": "basel"})
    documents = [
        issue(subject, hub.hub_key, clock()),
        issue(other, hub.site_keys["zurich"], clock()),
        issue(elsewhere, hub.site_keys["zurich"], clock()),
        issue(subject, hub.site_keys["zurich"], clock()),
    ]
    results = hub.registry.add_enrolments("zurich", documents)
    assert [code_of(result) for result in results] == [
        "documents.wrong-document",
        "enrolment.refused",
        "documents.wrong-document",
        None,
    ]
    assert hub.registry.add_enrolments("zurich", documents[-1:])[0]["state"] == "enrolled"
    assert hub.registry.enrolled(PIDS[0]).did == key.did
    with hub.database.reading() as connection:
        count = sa.select(sa.func.count()).select_from(site_document)
        assert connection.execute(count).scalar() == 1


def test_a_redemption_is_idempotent_and_a_stranger_cannot_block_a_code(hub):
    _, _, text = new_code("zurich")
    mine = redemption(text, SigningKey.generate())
    squatter = redemption(text, SigningKey.generate())
    assert hub.registry.redeem([squatter], None)[0]["state"] == "pending"
    assert code_of(hub.registry.redeem([mine], None)[0]) == "enrolment.refused"
    code_id = str(mine["code_id"])
    hub.registry.add_enrolments("zurich", [], [{"code_id": code_id, "code": "desk.code-refused"}])
    state = hub.registry.redemption_state(code_id)
    assert state == {"state": "refused", "reason": "desk.code-refused"}
    assert hub.registry.redeem([mine, mine], None)[1]["state"] == "pending"
    assert hub.registry.pending_redemptions("zurich") == [mine]
    assert hub.registry.pending_redemptions("basel") == []
    unknown = redemption(new_code("geneva")[2], SigningKey.generate())
    assert code_of(hub.registry.redeem([unknown], None)[0]) == "enrolment.unknown-site"


def test_a_key_change_and_a_withdrawal_at_once_both_happen(hub, monkeypatch):
    (person,) = enrol(hub, "basel", PIDS[0])
    grant(hub, [person])
    code_id, _, text = new_code("basel")
    key = SigningKey.generate()
    hub.registry.redeem([redemption(text, key)], None)
    subject = Enrolment(
        site="basel", pid=PIDS[0], key=key.did, method="desk", custody="self", code_id=code_id
    )
    document = issue(subject, hub.site_keys["basel"], clock())
    # Each is slow between its two locks, the record's row and the log's head.
    record_many, standings = hub.journal.record_many, events.standings

    def slow_record(connection, kind, documents):
        logged = record_many(connection, kind, documents)
        if kind == "enrolment":
            time.sleep(0.4)
        return logged

    def slow_standings(connection, pids):
        time.sleep(0.2)
        return standings(connection, pids)

    monkeypatch.setattr(hub.journal, "record_many", slow_record)
    monkeypatch.setattr(events, "standings", slow_standings)
    with ThreadPoolExecutor(2) as pool:
        enrolled = pool.submit(hub.registry.add_enrolments, "basel", [document])
        revoked = pool.submit(hub.registry.restrict, PIDS[0], "revoke", "session")
    assert enrolled.result()[0]["state"] == "enrolled"
    assert revoked.result()["problem"] is None


def test_who_redeemed_an_earlier_code_loses_the_record_to_who_redeems_the_next(hub):
    enrol(hub, "basel", PIDS[0], account=1)  # a stolen letter
    enrol(hub, "basel", PIDS[0], account=2)  # the desk checked who she is and gave a new code
    with hub.database.reading() as connection:
        assert members.pids_of(connection, 1) == []
        assert members.pids_of(connection, 2) == [(PIDS[0], "basel")]


def test_an_earlier_key_cannot_link_the_record_to_an_account_any_more(hub):
    code_id, _, text = new_code("basel")
    early = SigningKey.generate()
    sent = redemption(text, early)
    hub.registry.redeem([sent], None)
    subject = Enrolment(
        site="basel", pid=PIDS[0], key=early.did, method="desk", custody="self", code_id=code_id
    )
    hub.registry.add_enrolments("basel", [issue(subject, hub.site_keys["basel"], clock())])
    enrol(hub, "basel", PIDS[0])
    hub.registry.redeem([sent], 1)
    with hub.database.reading() as connection:
        assert members.pids_of(connection, 1) == []


def test_an_enrolment_the_hub_refuses_is_not_asked_for_again_and_again(hub):
    key, documents = SigningKey.generate(), []
    for pid in PIDS[:2]:  # one key for two records, before either is enrolled
        code_id, _, text = new_code("basel")
        hub.registry.redeem([redemption(text, key)], None)
        subject = Enrolment(
            site="basel", pid=pid, key=key.did, method="desk", custody="self", code_id=code_id
        )
        documents.append(issue(subject, hub.site_keys["basel"], clock()))
    states = [r["state"] for r in hub.registry.add_enrolments("basel", documents)]
    assert states == ["enrolled", "refused"]
    assert hub.registry.pending_redemptions("basel") == []
    refused = documents[1]["credentialSubject"]["code_id"]
    assert hub.registry.redemption_state(refused) == {
        "state": "refused",
        "reason": "enrolment.refused",
    }


def test_a_key_speaks_for_one_record(hub):
    (person,) = enrol(hub, "zurich", PIDS[0])
    again = redemption(new_code("zurich")[2], person.key)
    assert code_of(hub.registry.redeem([again], None)[0]) == "enrolment.refused"


def test_a_signed_in_patients_record_is_linked_when_her_hospital_confirms(hub):
    with hub.database.unit_of_work() as connection:
        account = members.account_of(connection, "i", "s")
    enrol(hub, "zurich", PIDS[0], account=account)
    enrol(hub, "zurich", PIDS[1])
    with hub.database.reading() as connection:
        assert members.pids_of(connection, account) == [(PIDS[0], "zurich")]


# -- over HTTP -------------------------------------------------------------------------------------


@pytest.fixture
def web(sqlite_database: Database) -> Iterator[tuple[ConsentHub, TestClient]]:
    hub = ConsentHub(sqlite_database)
    for name in ("basel", "zurich"):
        hub.join(name)
    with TestClient(hub.app(), raise_server_exceptions=False) as client:
        yield hub, client


def session_of(hub: ConsentHub, subject: str, *roles: str) -> tuple[dict[str, str], int]:
    with hub.database.unit_of_work() as connection:
        account = members.account_of(connection, "i", subject)
        token, _ = credentials.open_session(connection, account, roles=roles, now=clock())
    return {"Authorization": f"Bearer {token}"}, account


def signed(key: SigningKey, method: str, path: str, body: bytes = b"") -> dict[str, str]:
    return sign(key, method=method, path=path, body=body, now=clock())


def test_a_patient_signs_in_decides_and_withdraws_over_http(web):
    hub, client = web
    headers, account = session_of(hub, "ada", "patient")
    (person,) = enrol(hub, "zurich", PIDS[0], account=account)
    body = {"pid": person.pid, "event": "grant", "preset": "all-research"}
    unasked = client.post("/v1/consents:draft", json=body, headers=headers)
    assert (unasked.status_code, unasked.json()["code"]) == (422, "consent.unknown-notice")
    body |= {"notice": client.get("/v1/notices:current").json()["notice"]}
    made = client.post("/v1/consents:draft", json=body, headers=headers).json()
    signature = b64u(person.key.sign(to_sign(made["document"], made["proof"])))
    body = {"draft_id": made["draft_id"], "did": person.key.did, "signature": signature}
    done = client.post("/v1/consents:sign", json=body, headers=headers)
    assert done.status_code == 200
    check_bundle(done.json()["receipt"], hub.trust)
    (mine,) = client.get("/v1/me/consents", headers=headers).json()["consents"]
    assert (mine["state"], mine["preset"]) == ("active", "all-research")
    stopped = client.post(f"/v1/consents/{person.pid}/revoke", headers=headers).json()
    assert stopped["effective_by"] - clock() <= 60
    assert client.get(f"/v1/consents/{person.pid}", headers=headers).json()["state"] == "revoked"


def test_somebody_elses_record_looks_absent(web):
    hub, client = web
    ada, account = session_of(hub, "ada", "patient")
    bob, _ = session_of(hub, "bob", "patient")
    basel, _ = session_of(hub, "carl", "staff:basel")
    zurich, _ = session_of(hub, "dora", "staff:zurich")
    (person,) = enrol(hub, "zurich", PIDS[0], account=account)
    grant(hub, [person])
    for pid in (person.pid, PIDS[7]):
        answers = [
            client.get(f"/v1/consents/{pid}", headers=bob),
            client.get(f"/v1/consents/{pid}/history", headers=bob),
            client.post(f"/v1/consents/{pid}/revoke", headers=bob),
            client.post(f"/v1/consents/{pid}/suspend", headers=basel),
            client.post("/v1/consents:draft", json={"pid": pid, "event": "revoke"}, headers=bob),
        ]
        assert {(a.status_code, a.json()["code"]) for a in answers} == {(404, "coop.not-found")}
    assert client.get(f"/v1/consents/{person.pid}").status_code == 401
    assert client.post(f"/v1/consents/{person.pid}/suspend", headers=zurich).status_code == 200
    assert client.post(f"/v1/consents/{person.pid}/revoke", headers=ada).status_code == 200
    listed, after = [], 0
    while after is not None:
        page = f"/v1/consents/{person.pid}/history?limit=1&after={after}"
        answer = client.get(page, headers=ada).json()
        listed += [event["event"] for event in answer["events"]]
        after = answer["next"]
    assert listed == ["grant", "suspend", "revoke"]


def test_a_patients_own_key_opens_her_own_record_only(web):
    hub, client = web
    first, second = enrol(hub, "zurich", *PIDS[:2])
    grant(hub, [first, second])
    mine = client.get("/v1/me", headers=signed(first.key, "GET", "/v1/me")).json()
    assert mine == {"pids": [{"pid": first.pid, "site": "zurich", "own": True}]}
    path = f"/v1/consents/{second.pid}/revoke"
    assert client.post(path, headers=signed(first.key, "POST", path)).status_code == 404
    assert client.post(path, headers=signed(second.key, "POST", path)).status_code == 200


def test_the_hospital_channel_is_the_hospitals_own(web):
    hub, client = web
    _, _, text = new_code("zurich")
    key = SigningKey.generate()
    sent = redemption(text, key)
    results = client.post("/v1/enrolments:redeem", json={"redemptions": [sent]}).json()
    assert results["results"][0]["state"] == "pending"
    path = "/v1/sites/zurich/enrolments"
    own, other = hub.site_keys["zurich"], hub.site_keys["basel"]
    assert client.get(path, headers=signed(own, "GET", path)).json() == {"redemptions": [sent]}
    assert client.get(path, headers=signed(other, "GET", path)).status_code == 404
    assert client.get(path).status_code == 401
    state = client.get(f"/v1/enrolments/{sent['code_id']}").json()
    assert state == {"state": "pending", "reason": None}
    lease = f"/v1/lease?nonce={'0' * 32}&have=0"
    answer = client.get(lease, headers=signed(own, "GET", lease)).json()
    assert answer["lease"]["credentialSubject"]["site"] == "zurich"
    bad = "/v1/lease?nonce=x"
    assert client.get(bad, headers=signed(own, "GET", bad)).status_code in {400, 422}


def test_anyone_may_bring_signed_consents_and_a_batch_is_bounded(web):
    hub, client = web
    people = enrol(hub, "zurich", *PIDS[:2])
    documents = [person.event("grant") for person in people]
    answer = client.post("/v1/consents", json={"documents": documents}).json()
    assert [code_of(result) for result in answer["results"]] == [None, None]
    too_many = {"documents": [{}] * 1001}
    assert client.post("/v1/consents", json=too_many).status_code in {400, 413, 422}


def test_a_researcher_learns_a_band_and_never_a_small_number(web):
    hub, client = web
    people = enrol(hub, "zurich", *PIDS[:3])
    grant(hub, people)
    headers, _ = session_of(hub, "eve", "researcher")
    asked = {
        "action": "train-federated",
        "purpose": "DUO:0000006",
        "data_class": "cardiology",
        "study_id": "heart",
        "organisation": "University",
        "commercial": False,
    }
    answer = client.post("/v1/cohorts:count", json=asked, headers=headers)
    assert answer.json() == {"at_least": None}
    path = "/v1/decisions"
    body = {**asked, "pid": people[0].pid}
    assert client.post(path, json=body, headers=headers).status_code == 403
    staff, _ = session_of(hub, "dora", "staff:zurich")
    assert client.post(path, json=body, headers=staff).json()["effect"] == "permit"


def test_what_a_question_leaves_out_is_above_her_cap_and_below_her_least_number(web):
    hub, client = web
    (person,) = enrol(hub, "zurich", PIDS[0])
    careful = preset("all-research", epsilon_cap_micro=500_000).model_copy(
        update={"min_cohort": 100}
    )
    (result,) = hub.registry.submit([person.event("grant", policy=careful)])
    assert result["problem"] is None
    staff, _ = session_of(hub, "dora", "staff:zurich")
    asked = {
        "pid": person.pid,
        "action": "train-federated",
        "purpose": "DUO:0000006",
        "data_class": "cardiology",
        "study_id": "heart",
        "organisation": "University",
        "commercial": False,
    }

    def said(**more: int) -> tuple[str, list[str]]:
        answer = client.post("/v1/decisions", json={**asked, **more}, headers=staff).json()
        return answer["effect"], answer["reasons"]

    assert said()[0] == "deny"
    assert said(epsilon_micro=500_000) == ("deny", ["policy.min-cohort"])
    assert said(population=100) == ("deny", ["policy.epsilon-cap"])
    assert said(population=99, epsilon_micro=500_000) == ("deny", ["policy.min-cohort"])
    assert said(population=100, epsilon_micro=500_001) == ("deny", ["policy.epsilon-cap"])
    assert said(population=100, epsilon_micro=500_000)[0] == "permit"


GARBAGE = [None, 0, -1, 2**63, 1.5, "", "\x00", "\ud800", "é" * 300, [], {}, [[]], {"a": {"b": []}}]


def test_garbage_is_refused_and_never_a_bug(web):
    hub, client = web
    headers, account = session_of(hub, "ada", "patient")
    (person,) = enrol(hub, "zurich", PIDS[0], account=account)
    grant(hub, [person])
    sound = person.event("suspend")
    draft = {"pid": person.pid, "event": "amend", "preset": "all-research"}
    sent = redemption(new_code("zurich")[2], SigningKey.generate())
    own = hub.site_keys["zurich"]
    statuses = set()
    for value in GARBAGE:
        bodies: list[tuple[str, object]] = [
            ("/v1/consents", {"documents": [value]}),
            ("/v1/consents", {"documents": [{**sound, "credentialSubject": value}]}),
            ("/v1/consents", {"documents": [{**sound, "proof": value}]}),
            ("/v1/enrolments:redeem", {"redemptions": [value]}),
            *(("/v1/enrolments:redeem", {"redemptions": [{**sent, name: value}]}) for name in sent),
            *(
                ("/v1/consents:draft", {**draft, name: value})
                for name in ("policy", "preset", "data_class", "epsilon_cap_micro", "notice")
            ),
            ("/v1/consents:sign", {"draft_id": "0" * 32, "did": value, "signature": value}),
            ("/v1/decisions", {"pid": person.pid, "action": value}),
        ]
        for path, body in bodies:
            content = json.dumps(body).encode()  # noqa: TID251  (lone surrogates are not canonical)
            answer = client.post(
                path, content=content, headers={**headers, "content-type": "application/json"}
            )
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (path, body, answer.text)
        path = "/v1/sites/zurich/enrolments"
        for body in ({"documents": [value]}, {"refused": [{"code_id": value, "code": value}]}):
            content = json.dumps(body).encode()  # noqa: TID251  (lone surrogates are not canonical)
            answer = client.post(
                path,
                content=content,
                headers={
                    **signed(own, "POST", path, content),
                    "content-type": "application/json",
                },
            )
            assert answer.status_code < 500, (body, answer.text)
    assert hub.registry.standing(person.pid).state is State.ACTIVE
    assert {200, 422} <= statuses or {200, 400} <= statuses
