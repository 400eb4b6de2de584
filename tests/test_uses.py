"""The patient's list of uses: what left and used her record, and nothing after she withdrew."""

import time

import pytest
from coop_world import HOSPITAL, now, world
from coop_world import digest as digest_of

from consent.proofs.cohort import Leaf, arrange
from coop.documents.consent import UseRequest, UseStatement
from coop.documents.envelope import WrongDocumentError, issue, open_document
from coop.documents.serving import CohortJob, CohortQuery
from coop.errors import NotFoundError
from coop.journal.merkle import verify_inclusion
from coop.keys import BadSignatureError, SigningKey
from federated.answers import of_debit
from federated.budget import cohort_of
from federated.cohort import answer_cohort
from federated.node import Node
from federated.round import WithdrawnError, answer_round
from federated.site import enrolled
from federated.uses import NotAskedError, asked_for, statement


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


def uses(coop, pid):
    document = statement(coop.site, pid, now())
    return open_document(UseStatement, document, issuers={coop.site.key.did}).subject


def question(coop, run, job_id):
    query = CohortQuery(where=[], release="count", rho_nano=10_000)
    subject = CohortJob(
        job_id=job_id,
        site=HOSPITAL,
        study_sha256=digest_of(run.document),
        study_id=run.study.study_id,
        version=1,
        query=query,
        not_after=now() + 60,
    )
    return issue(subject, coop.folder.hub_key, now())


def in_training(coop):
    return next(p for p in coop.newcomers(12) if not coop.site.is_evaluation(p.pid, 40))


def test_every_document_that_left_and_used_her_record_is_on_her_list(coop):
    patient, run = in_training(coop), coop.ready("uses-all")
    first = answer_round(coop.site, coop.mirror, run.input(1)).receipt
    second = answer_round(coop.site, coop.mirror, run.input(2)).receipt
    tested = answer_round(coop.site, coop.mirror, run.input(5, "evaluate")).receipt
    counted = answer_cohort(coop.site, coop.mirror, question(coop, run, "uses-1"))
    found = uses(coop, patient.pid)
    assert [(use.what, use.round, use.document_sha256) for use in found.uses] == [
        ("training round", 1, digest_of(first)),
        ("training round", 2, digest_of(second)),
        ("cohort answer", None, digest_of(counted)),
    ]
    assert found.excluded_from is None
    other = next(p for p in coop.patients if coop.site.is_evaluation(p.pid, 40))
    assert digest_of(tested) in {use.document_sha256 for use in uses(coop, other.pid).uses}


def test_a_receipt_for_a_request_signed_anew_replaces_no_earlier_one_on_her_list(coop):
    patient, run = in_training(coop), coop.ready("uses-anew")
    asked = [run.input(1)]
    while len(asked) < 3 and len({digest_of(a.request) for a in asked}) == len(asked):
        time.sleep(1.1)  # the signature's second is in the document
        asked.append(run.input(1))
    left = [answer_round(coop.site, coop.mirror, each).receipt for each in asked]
    assert [answer_round(coop.site, coop.mirror, each).receipt for each in asked] == left
    listed = [u.document_sha256 for u in uses(coop, patient.pid).uses if u.study_id == "uses-anew"]
    assert sorted(listed) == sorted(digest_of(receipt) for receipt in left)
    assert len(listed) == 3


def test_her_salt_opens_her_leaf_of_the_published_commitment(coop):
    patient, run = in_training(coop), coop.ready("uses-salt")
    receipt = answer_round(coop.site, coop.mirror, run.input()).receipt
    (use,) = [u for u in uses(coop, patient.pid).uses if u.study_id == "uses-salt"]
    sequence = receipt["credentialSubject"]["debit_sequence"]
    with coop.site.database.reading() as connection:
        members = cohort_of(connection, sequence)
        (kept,) = of_debit(connection, sequence)
    made = arrange(members, kept.places, bytes.fromhex(kept.seed))
    assert made.commitment == receipt["credentialSubject"]["cohort_commitment"]
    hers = Leaf(salt=use.salt, pid=patient.pid, consent=members[patient.pid])
    place = made.leaves.index(hers)
    proof = made.tree.inclusion(place)
    verify_inclusion(hers.hashed(), place, kept.places, proof, made.tree.root())


def test_what_was_discarded_never_left_and_is_not_listed(coop):
    patient, run = in_training(coop), coop.ready("uses-discarded")

    class Leaving:
        calls = 0

        def lease(self):
            self.calls += 1
            if self.calls == 2:
                coop.say("revoke", [patient])
            return coop.mirror.lease()

    with pytest.raises(WithdrawnError):
        answer_round(coop.site, Leaving(), run.input())
    assert uses(coop, patient.pid).uses == []


def test_nothing_after_her_withdrawal_is_on_her_list(coop):
    patient, run = in_training(coop), coop.ready("uses-withdrawn")
    answer_round(coop.site, coop.mirror, run.input(1))
    answer_cohort(coop.site, coop.mirror, question(coop, run, "uses-2"))
    coop.say("revoke", [patient])
    answer_round(coop.site, coop.mirror, run.input(2))
    # A replay reads no row; it is listed under the time of the answer it repeats.
    answer_cohort(coop.site, coop.mirror, question(coop, run, "uses-3"))
    found = uses(coop, patient.pid)
    assert found.excluded_from is not None
    assert [use.what for use in found.uses] == ["training round"] + ["cohort answer"] * 2
    assert all(use.at <= found.excluded_from for use in found.uses)


def test_a_withdrawal_of_a_moment_ago_is_on_the_list_though_no_round_came_since(coop):
    patient = in_training(coop)
    coop.mirror.sync()
    coop.say("revoke", [patient])
    node = Node(coop.site)
    node.mirror = coop.mirror
    request = issue(UseRequest(site=HOSPITAL, pid=patient.pid), patient.key, now())
    document = node._job({"kind": "uses", "payload": {"pid": patient.pid, "request": request}})
    said = open_document(UseStatement, document, issuers={coop.site.key.did}).subject
    assert said.excluded_from is not None


def asked(coop, key, *, pid, site=HOSPITAL, at=None):
    request = issue(UseRequest(site=site, pid=pid), key, now() if at is None else at)
    coop.mirror.sync()
    return asked_for(coop.site, coop.mirror.speakers(), request, now())


def test_a_list_is_given_to_the_records_own_key_only(coop):
    her, other = coop.newcomers(2)
    assert asked(coop, her.key, pid=her.pid) == her.pid
    for key in (other.key, coop.folder.hub_key, coop.site.key, SigningKey.generate()):
        with pytest.raises(NotAskedError):
            asked(coop, key, pid=her.pid)
    for pid, site in ((other.pid, HOSPITAL), ("z" * 26, HOSPITAL), (her.pid, "elsewhere")):
        with pytest.raises(NotAskedError):
            asked(coop, her.key, pid=pid, site=site)


def test_a_request_counts_for_ten_minutes(coop):
    (her,) = coop.newcomers(1)
    request = issue(UseRequest(site=HOSPITAL, pid=her.pid), her.key, 1_900_000_000)
    coop.mirror.sync()
    speakers = coop.mirror.speakers()
    for at, good in ((-121, False), (-120, True), (0, True), (599, True), (600, False)):
        if good:
            assert asked_for(coop.site, speakers, request, 1_900_000_000 + at) == her.pid
            continue
        with pytest.raises(NotAskedError):
            asked_for(coop.site, speakers, request, 1_900_000_000 + at)


def test_an_earlier_key_and_an_altered_request_get_no_list(coop):
    (her,) = coop.newcomers(1)
    request = issue(UseRequest(site=HOSPITAL, pid=her.pid), her.key, now())
    subject = {**request["credentialSubject"], "pid": "z" * 26}
    coop.mirror.sync()
    speakers = coop.mirror.speakers()
    with pytest.raises(BadSignatureError):
        asked_for(coop.site, speakers, {**request, "credentialSubject": subject}, now())
    with pytest.raises(WrongDocumentError):
        asked_for(coop.site, speakers, {}, now())
    assert asked_for(coop.site, speakers, request, now()) == her.pid
    with coop.site.database.unit_of_work() as connection:
        new = {"digest": "f" * 64, "pid": her.pid, "did": SigningKey.generate().did}
        connection.execute(enrolled.insert().values(**new, document="{}", at=now() + 1))
    with pytest.raises(NotAskedError):
        asked_for(coop.site, coop.mirror.speakers(), request, now())


def test_a_stranger_has_no_list(coop):
    with pytest.raises(NotFoundError):
        statement(coop.site, "z" * 26, now())


def test_she_sees_who_asked_what_for_and_what_she_refused(coop):
    patient, other = (
        in_training(coop),
        next(p for p in coop.newcomers(12) if coop.site.is_evaluation(p.pid, 40)),
    )
    run = coop.ready("uses-studies")
    answer_round(coop.site, coop.mirror, run.input(1))
    coop.say("object", [patient])
    answer_round(coop.site, coop.mirror, run.input(2))
    answer_round(coop.site, coop.mirror, run.input(3))

    def of(pid):
        return next(s for s in uses(coop, pid).studies if s.study_id == "uses-studies")

    hers = of(patient.pid)
    assert (hers.used, hers.refused, hers.not_needed) == (1, 2, 0)
    assert (hers.title, hers.organisation, hers.purpose) == (
        run.study.title,
        run.study.proposer,
        run.study.purpose,
    )
    beside = of(other.pid)
    assert (beside.used, beside.refused, beside.not_needed) == (0, 0, 3)
    found = uses(coop, patient.pid)
    assert found.excluded_from is not None
    coop.say("lift", [patient])
    coop.mirror.sync()
    assert uses(coop, patient.pid).excluded_from is None
