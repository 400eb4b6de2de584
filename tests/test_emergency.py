"""Break-glass: one score for one patient's treatment, told, logged and judged; never research."""

import numpy as np
import pytest
import sqlalchemy as sa
from coop_world import HOSPITAL, now, world

from coop import catalogue
from coop.canonical import document_digest
from coop.catalogue import Catalogue, Cost
from coop.client import RemoteError
from coop.documents.emergency import BreakGlass, BreakGlassReview
from coop.documents.envelope import issue, open_document
from coop.documents.training import Order
from coop.errors import ConflictError, InvalidInputError, NotFoundError
from coop.journal.store import signed_document
from coop.keys import SigningKey
from federated import doctor
from federated.budget import debit, debit_pid
from federated.desk import UnknownRecordError
from federated.emergency import (
    REVIEW_S,
    RetiredModelError,
    SamePersonError,
    acts,
    break_glass,
    emergency,
    review,
    send,
)
from federated.permits import consent_request, permitted
from federated.records import all_pids
from federated.site import patient as patients
from federated.uses import statement

COST = Cost(
    epsilon_micro=1_000_000,
    training_epsilon_micro=800_000,
    cohort_epsilon_micro=200_000,
    together_epsilon_micro=1_030_000,
)
WHO = ("Dr. Ana Sousa", "unconscious, chest pain, no time to ask")


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


@pytest.fixture(scope="module")
def model(coop):
    run = coop.ready("emergency")
    order = open_document(Order, run.order, issuers={coop.folder.hub_key.did})
    models = Catalogue(coop.journal, coop.folder.hub_key, now)
    weights = {"weight": np.ones_like(run.weights["weight"]) / 10}
    with coop.database.unit_of_work() as connection:
        return models.release(
            connection,
            order=order,
            study=run.study,
            record_sha256s=["1" * 64],
            weights=weights,
            metrics=[],
            hospital_weights={HOSPITAL: 1},
            cost=COST,
        )


def unwilling(coop):
    """A patient with a row who refuses everything, and her record number."""
    (patient,) = coop.newcomers(1)
    coop.say("object", [patient])
    coop.mirror.sync()
    with coop.site.database.reading() as connection:
        query = sa.select(patients.c.record_key).where(patients.c.pid == patient.pid)
        return patient, connection.execute(query).scalar_one()


def count(coop, table):
    with coop.site.database.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table))


def test_a_clinician_gets_a_score_and_the_patient_is_told(coop, model):
    patient, record = unwilling(coop)
    spent = count(coop, debit), count(coop, debit_pid)
    score = break_glass(coop.site, coop.client, record, model, WHO, now=now())
    assert 0 < score.risk < 1
    assert (count(coop, debit), count(coop, debit_pid)) == spent  # her data left in no answer
    said = open_document(BreakGlass, score.document, issuers={coop.site.key.did}).subject
    assert (said.pid, said.review_by) == (patient.pid, pytest.approx(now() + REVIEW_S, abs=5))
    text = str(score.document)
    assert "Sousa" not in text
    assert "chest" not in text
    listed = statement(coop.site, patient.pid, now())["credentialSubject"]["uses"]
    assert [(use["what"], use["model_id"]) for use in listed] == [("emergency", model)]
    assert send(coop.site, coop.client, now=now()) >= 1
    assert send(coop.site, coop.client, now=now()) == 0
    with coop.database.reading() as connection:
        query = sa.select(signed_document.c.digest).where(signed_document.c.kind == BreakGlass.kind)
        assert document_digest(score.document) in connection.execute(query).scalars().all()


def test_it_opens_no_research(coop, model):
    patient, record = unwilling(coop)
    break_glass(coop.site, coop.client, record, model, WHO, now=now())
    run = coop.ready("emergency-research")
    lease = coop.mirror.lease()
    with coop.site.database.reading() as connection:
        pids = all_pids(connection)
    for action in ("train-federated", "evaluate", "infer-aggregate"):
        request = consent_request(run.study, action, now())
        assert patient.pid not in permitted(lease, pids, request)


def test_the_act_is_durable_before_her_row_is_read(coop, model, monkeypatch):
    _, record = unwilling(coop)
    before = count(coop, emergency)

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("federated.emergency.rows_of", cut)
        with pytest.raises(KeyboardInterrupt):
            break_glass(coop.site, coop.client, record, model, WHO, now=now())
    assert count(coop, emergency) == before + 1


@pytest.mark.parametrize("who", [("", WHO[1]), ("  ", WHO[1]), (WHO[0], ""), (WHO[0], "urgent")])
def test_without_a_name_and_a_reason_nothing_happens(coop, model, who):
    _, record = unwilling(coop)
    before = count(coop, emergency)
    with pytest.raises(InvalidInputError):
        break_glass(coop.site, coop.client, record, model, who, now=now())
    assert count(coop, emergency) == before


def test_only_this_hospitals_patients_and_released_models(coop, model):
    with pytest.raises(UnknownRecordError):
        break_glass(coop.site, coop.client, "nobody", model, WHO, now=now())
    _, record = unwilling(coop)
    with pytest.raises(RemoteError):
        break_glass(coop.site, coop.client, record, "no-such-model", WHO, now=now())


def test_a_second_person_judges_once_and_who_does_not_is_named(coop, model):
    _, record = unwilling(coop)
    at = now()
    score = break_glass(coop.site, coop.client, record, model, WHO, now=at)
    digest = document_digest(score.document)
    for name in (WHO[0], WHO[0].upper(), ""):
        with pytest.raises((SamePersonError, InvalidInputError)):
            review(coop.site, digest, name, "justified", at)
    with coop.site.database.reading() as connection:
        (act,) = [a for a in acts(connection, at + REVIEW_S) if a["digest"] == digest]
        assert act["overdue"]
        (act,) = [a for a in acts(connection, at + REVIEW_S - 1) if a["digest"] == digest]
        assert not act["overdue"]
    document = review(coop.site, digest, "Dr. Kim Lee", "not-justified", at)
    said = open_document(BreakGlassReview, document, issuers={coop.site.key.did}).subject
    assert (said.break_glass_sha256, said.verdict) == (digest, "not-justified")
    with pytest.raises(ConflictError):
        review(coop.site, digest, "Dr. Kim Lee", "justified", at)
    with pytest.raises(NotFoundError):
        review(coop.site, "0" * 64, "Dr. Kim Lee", "justified", at)
    assert send(coop.site, coop.client, now=at) >= 1


def test_the_doctor_names_what_nobody_judged_in_time(coop, model):
    _, record = unwilling(coop)
    score = break_glass(coop.site, coop.client, record, model, WHO, now=now() - REVIEW_S - 1)
    found = doctor.checks(coop.site)["checks"]["broken glass"]
    assert not found["ok"]
    assert document_digest(score.document)[:12] in found["found"]
    review(coop.site, document_digest(score.document), "Dr. Kim Lee", "justified", now())


def test_the_hub_logs_a_hospitals_own_acts_only(coop, model):
    _, record = unwilling(coop)
    score = break_glass(coop.site, coop.client, record, model, WHO, now=now())
    path = f"/v1/sites/{HOSPITAL}/emergencies"
    subject = open_document(BreakGlass, score.document, issuers=None).subject
    for key in (SigningKey.generate(), coop.folder.hub_key):
        with pytest.raises(RemoteError):
            coop.client.post(path, {"document": issue(subject, key, now())})
    with pytest.raises(RemoteError):
        coop.client.post("/v1/sites/elsewhere/emergencies", {"document": score.document})


def test_a_withdrawn_model_scores_nobody(coop, model):
    _, record = unwilling(coop)
    mine = catalogue.model_table.c.model_id == model
    with coop.database.unit_of_work() as connection:
        connection.execute(catalogue.model_table.update().where(mine).values(state="retired"))
    try:
        with pytest.raises(RetiredModelError):
            break_glass(coop.site, coop.client, record, model, WHO, now=now())
    finally:
        with coop.database.unit_of_work() as connection:
            connection.execute(catalogue.model_table.update().where(mine).values(state="released"))
