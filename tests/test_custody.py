"""Keys a hospital holds, and paper forms: labelled everywhere, bound to paper, ended by her own."""

from base64 import b64encode

import pytest
import sqlalchemy as sa
from coop_world import Patient, csv_line, now, world
from test_desk_events import in_cohort

from consent.decide import State
from consent.notice import shipped
from consent.policy import preset
from coop.canonical import jcs, sha256
from coop.client import RemoteError
from coop.documents.consent import Capture, Consent
from coop.documents.envelope import issue
from coop.errors import ConflictError, InvalidInputError
from coop.keys import SigningKey
from federated import custody
from federated.custody import Form, NoCustodialKeyError
from federated.desk import UnknownRecordError
from federated.importers import import_csv
from federated.site import custodial_key

PAPER = Form(paper_sha256=sha256(b"a scanned form").hex(), registrar="Rui Costa", language="de")


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("custody")) as made:
        yield made


def newcomer(coop, number):
    """A record of the hospital whose patient holds no key, not yet enrolled; one it trains on."""
    while True:
        record = f"P{number:03d}"
        path = coop.site.folder / "one.csv"
        header = (coop.site.folder.parent / "patients.csv").read_text().splitlines()[0]
        path.write_text(f"{header}\n{csv_line(number)}")
        import_csv(coop.site, path)
        if not coop.site.is_evaluation(coop.site.pid_of(record), 40):
            return record
        number += 1


def held(coop, number):
    return custody.enrol(coop.site, coop.client, newcomer(coop, number), now=now())


def known(coop, pid):
    coop.mirror.sync()
    return coop.mirror.speakers().get(pid), coop.mirror.standings().get(pid)


def captured(coop, pid, policy, form=PAPER):
    return custody.capture(coop.site, pid, known(coop, pid), (policy, form), now=now())


def sent(coop, document):
    """The hub's refusal, if any."""
    (answer,) = coop.registry.submit([document])
    coop.cosign()
    coop.mirror.sync()
    return answer["problem"] and answer["problem"]["code"]


def test_a_key_that_the_hospital_holds_is_called_so_by_hub_and_hospital(coop):
    made = held(coop, 300)
    said = coop.registry.people.who_speaks(made["pid"])
    assert said["key"]["custody"] == "custodial"
    assert said["key"]["did"] == made["did"]
    assert coop.registry.overview(made["pid"])["custody"] == "custodial"
    speakers, _ = known(coop, made["pid"])
    assert (speakers.custody, speakers.key) == ("custodial", made["did"])


def test_the_held_key_leaves_the_hospital_in_no_document_and_lies_in_an_owner_only_folder(coop):
    made = held(coop, 310)
    assert sent(coop, captured(coop, made["pid"], preset("all-research"))) is None
    with coop.site.database.reading() as connection:
        query = sa.select(custodial_key.c.seed).where(custodial_key.c.did == made["did"])
        seed = bytes(connection.execute(query).scalar_one())
    assert SigningKey(seed).did == made["did"]
    spellings = [seed, seed.hex().encode(), b64encode(seed).rstrip(b"=")]
    files = [path for path in coop.folder.path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not any(spelling in content for spelling in spellings), path.name
    assert coop.site.folder.stat().st_mode & 0o007 == 0


def test_a_paper_form_trains_a_round_and_every_trace_says_who_signed_from_what(coop):
    made = held(coop, 320)
    pid = made["pid"]
    document = captured(coop, pid, preset("all-research"))
    assert document["issuer"] == made["did"]
    subject = document["credentialSubject"]
    assert subject["actor"] == "custodian"
    assert subject["capture"] == {
        "paper_sha256": PAPER.paper_sha256,
        "registrar": custody.registrar_digest(coop.site, "Rui  Costa"),
        "language": "de",
    }
    assert sent(coop, document) is None
    assert known(coop, pid)[1].state is State.ACTIVE
    assert in_cohort(coop, Patient(pid=pid, key=SigningKey.generate()), "from-paper")
    (event,) = coop.registry.history(pid)
    assert (event["actor"], event["event"]) == ("custodian", "grant")


def test_a_registrars_name_stays_in_the_house_and_two_houses_write_it_differently(coop):
    made = held(coop, 330)
    document = captured(coop, made["pid"], preset("refuse"))
    assert b"Rui" not in jcs(document)
    other = coop.sites["budapest"]
    ours = custody.registrar_digest(coop.site, "Rui Costa")
    assert ours != custody.registrar_digest(other, "Rui Costa")
    with pytest.raises(InvalidInputError, match="registrar"):
        custody.registrar_digest(coop.site, "  ")


def test_what_the_held_key_gives_without_the_paper_or_as_the_patient_is_refused(coop):
    made = held(coop, 340)
    key = custody.held_key(coop.site, made["pid"], made["did"])
    whole = {
        "pid": made["pid"],
        "site": coop.site.name,
        "domain": "research",
        "sequence": 1,
        "previous": None,
        "event": "grant",
        "policy": preset("all-research"),
        "notice": shipped()[-1].reference(),
    }
    paper = Capture(paper_sha256=PAPER.paper_sha256, registrar="0" * 64, language="de")
    for wrong in (
        Consent(**whole, actor="custodian"),
        Consent(**whole, actor="patient", capture=paper),
        Consent(**whole, actor="patient"),
    ):
        assert sent(coop, issue(wrong, key, now())) == "consent.wrong-key"
    assert known(coop, made["pid"])[1] is None


def test_another_hospital_captures_nothing_for_a_record_that_is_not_its_own(coop):
    made = held(coop, 360)
    other = coop.sites["budapest"]
    with pytest.raises(NoCustodialKeyError):
        custody.capture(
            other, made["pid"], known(coop, made["pid"]), (preset("refuse"), PAPER), now=now()
        )
    with pytest.raises(UnknownRecordError):
        custody.enrol(other, coop.clients["budapest"], "P360", now=now())


def test_whoever_holds_a_key_of_her_own_is_never_signed_for(coop):
    (patient,) = coop.newcomers(1)
    with pytest.raises(NoCustodialKeyError):
        captured(coop, patient.pid, preset("all-research"))


def test_she_takes_over_with_a_key_of_her_own_and_the_held_one_gives_nothing_more(coop):
    record = newcomer(coop, 370)
    made = custody.enrol(coop.site, coop.client, record, now=now())
    pid = made["pid"]
    assert sent(coop, captured(coop, pid, preset("all-research"))) is None
    late = captured(coop, pid, preset("all-research"))  # signed, not sent yet
    (herself,) = coop.enrol([record])
    assert sent(coop, late) is not None
    with pytest.raises(NoCustodialKeyError):
        captured(coop, pid, preset("all-research"))
    said = coop.registry.people.who_speaks(pid)
    assert (said["key"]["custody"], said["key"]["did"]) == ("self", herself.key.did)
    speakers, _ = known(coop, pid)
    assert (speakers.custody, speakers.key) == ("self", herself.key.did)


def test_a_form_that_stops_takes_effect_and_there_must_be_something_to_stop(coop):
    pid = held(coop, 380)["pid"]
    with pytest.raises(ConflictError):
        captured(coop, pid, None)
    assert sent(coop, captured(coop, pid, preset("all-research"))) is None
    patient = Patient(pid=pid, key=SigningKey.generate())
    assert in_cohort(coop, patient, "before-stop")
    assert sent(coop, captured(coop, pid, None)) is None
    assert known(coop, pid)[1].state is State.REVOKED
    assert not in_cohort(coop, patient, "after-stop")
    assert sent(coop, captured(coop, pid, preset("all-research"))) is None
    assert known(coop, pid)[1].state is State.ACTIVE


def test_she_may_stop_by_her_account_what_the_hospitals_key_allowed(coop):
    pid = held(coop, 390)["pid"]
    assert sent(coop, captured(coop, pid, preset("all-research"))) is None
    coop.registry.restrict(pid, "revoke", "registrar")
    coop.mirror.sync()
    assert known(coop, pid)[1].state is State.REVOKED


def test_a_hub_that_refuses_leaves_nothing_that_speaks_for_the_record(coop):
    record = newcomer(coop, 400)
    with pytest.raises(RemoteError):  # another hospital's client may not speak for this one
        custody.enrol(coop.site, coop.clients["budapest"], record, now=now())
    assert known(coop, coop.site.pid_of(record))[0] is None
