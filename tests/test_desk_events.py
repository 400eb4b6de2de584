"""What only the hospital says of a chain: it prepares and corrects, and never gives anything."""

import pytest
from coop_world import now, world

from consent.decide import State
from consent.notice import shipped
from consent.policy import preset
from coop.errors import InvalidInputError
from coop.keys import sign_document
from federated import custody
from federated.budget import cohort_of
from federated.round import answer_round


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


def in_training(coop):
    return next(p for p in coop.newcomers(12) if not coop.site.is_evaluation(p.pid, 40))


def said(coop, patient, event, key=None, **parts):
    """The desk's event, sent as the command sends it; the hub's refusal, if any."""
    coop.mirror.sync()
    standing = coop.mirror.standings().get(patient.pid)
    document = custody.as_hospital(coop.site, patient.pid, standing, event, parts, now=now())
    if key is not None:
        unsigned = {name: part for name, part in document.items() if name != "proof"}
        document = sign_document({**unsigned, "issuer": key.did}, key, created=now())
    (answer,) = coop.registry.submit([document])
    coop.cosign()
    coop.mirror.sync()
    return answer["problem"] and answer["problem"]["code"]


def in_cohort(coop, patient, name):
    run = coop.ready(name)
    receipt = answer_round(coop.site, coop.mirror, run.input()).receipt
    with coop.site.database.reading() as connection:
        sequence = receipt["credentialSubject"]["debit_sequence"]
        return patient.pid in cohort_of(connection, sequence)


def test_a_reported_death_ends_what_she_did_not_choose_to_continue(coop):
    patient = in_training(coop)
    assert in_cohort(coop, patient, "before-death")
    assert said(coop, patient, "deceased", key=coop.folder.hub_key) == "consent.wrong-key"
    assert said(coop, patient, "deceased") is None
    assert coop.mirror.standings()[patient.pid].state is State.REVOKED
    assert not in_cohort(coop, patient, "after-death")


def test_what_was_entered_in_error_trains_no_round_and_two_must_have_seen_it(coop):
    patient = in_training(coop)
    for second in ("Rui  Costa", ""):
        with pytest.raises(InvalidInputError):
            custody.correction(coop.site, "wrong form", "Rui Costa", second)
    correction = custody.correction(coop.site, "wrong form", "Rui Costa", "Kim Lee")
    assert "Rui" not in correction.model_dump_json()
    assert said(coop, patient, "void", correction=correction) is None
    assert coop.mirror.standings()[patient.pid].state is State.VOID
    assert not in_cohort(coop, patient, "void")


def test_a_proposal_trains_no_round_before_she_signs(coop):
    patient = in_training(coop)
    coop.say("revoke", [patient])
    coop.mirror.sync()
    parts = {"policy": preset("all-research"), "notice": shipped()[-1].reference()}
    assert said(coop, patient, "propose", **parts) is None
    assert coop.mirror.standings()[patient.pid].state is State.PROPOSED
    assert not in_cohort(coop, patient, "proposed")
    standing = coop.mirror.standings()[patient.pid]
    patient.sequence, patient.head = standing.sequence, standing.head_digest
    coop.say("grant", [patient], preset("all-research"))
    coop.cosign()
    assert in_cohort(coop, patient, "signed")
