"""`/fhir` on the real hub: who sees what, what a search finds, what a create takes."""

import base64
import copy
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from doors_world import PID, Actor, World, now, world
from fhir.resources.bundle import Bundle as R5Bundle
from fhir.resources.capabilitystatement import CapabilityStatement as R5Capability
from fhir.resources.consent import Consent as R5Consent
from fhir.resources.operationoutcome import OperationOutcome
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.capabilitystatement import CapabilityStatement
from fhir.resources.R4B.consent import Consent as R4Consent
from fhir.resources.R4B.operationoutcome import OperationOutcome as R4Outcome
from fhir_vectors import hl7

from consent.fhir import words
from consent.fhir.record import Record, resource
from consent.fhir.words import Version
from consent.notice import shipped
from consent.policy import Preset, preset
from coop.canonical import document_digest, jcs
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import issue
from coop.documents.provision import Policy
from coop.enrolment import new_code, redemption
from coop.keys import SigningKey

ID = f"{PID}-research"
R5 = {"accept": "application/fhir+json; fhirVersion=5.0"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fhir")) as here:
        yield here


def get(actor: Actor, path: str, headers: dict[str, str] | None = None) -> Any:
    """With headers of the reader's choice, in a session."""
    signed = {"authorization": f"Bearer {actor.token}"} if actor.token else {}
    return actor.client.get(path, headers={**signed, **(headers or {})})


def post(actor: Actor, path: str, body: Any, kind: str = "application/fhir+json") -> Any:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return actor.client.post(
        path,
        content=content,
        headers={"authorization": f"Bearer {actor.token}", "content-type": kind},
    )


def issues(answer: Any) -> list[str]:
    assert answer.headers["content-type"] == "application/fhir+json"
    OperationOutcome.model_validate(answer.json())
    R4Outcome.model_validate(answer.json())
    return [issue["details"]["coding"][0]["code"] for issue in answer.json()["issue"]]


def enrolled(hub: World, site: str, pid: str, account: str = "ada") -> SigningKey:
    """A record of somebody, enrolled at a hospital under a fresh key."""
    key = SigningKey.generate()
    _, _, text = new_code(site)
    sent = {"redemptions": [redemption(text, key)]}
    code_id = hub.actors[account].ok("POST", "/v1/enrolments:redeem", sent)["results"][0]["code_id"]
    hospital = hub.actors[site]
    assert hospital.key is not None
    said = Enrolment(
        site=site, pid=pid, key=key.did, method="desk", custody="self", code_id=code_id
    )
    document = issue(said, hospital.key, now())
    hospital.ok("POST", f"/v1/sites/{site}/enrolments", {"documents": [document]})
    return key


def event(
    pid: str, site: str, key: SigningKey, policy: Policy | None, **changes: Any
) -> dict[str, Any]:
    notice = shipped()[-1].reference() if policy else None
    subject = {"sequence": 1, "event": "grant", "notice": notice, **changes}
    said = Consent(pid=pid, site=site, domain="research", policy=policy, **subject)
    return dict(issue(said, key, now()))


def fhir_of(
    document: dict[str, Any], policy: Policy, version: Version = Version.R4
) -> dict[str, Any]:
    """What a sender makes of a signed event."""
    said = document["credentialSubject"]
    record = Record(
        pid=said["pid"],
        site=said["site"],
        domain="research",
        did=document["issuer"],
        custody="self",
        state="active",  # type: ignore[arg-type]
        sequence=said["sequence"],
        at=now(),
        event=said["event"],
        head_sha256="0" * 64,
        log_index=0,
        policy=policy,
        envelope=document,
    )
    made = resource(record, version, now())
    return {**orjson.loads(orjson.dumps(made)), "status": "active"}


# -- reading ---------------------------------------------------------------------------------------


def test_nobody_reads_a_consent_without_signing_in(hub: World):
    for path in ("/fhir/Consent", f"/fhir/Consent/{ID}", "/fhir/Consent?status=active"):
        answer = hub.actors["public"].send("GET", path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert issues(answer) == ["doors.unauthenticated"]


def test_a_patient_reads_her_own_and_a_hospital_its_own(hub: World):
    for name in ("ada", "ada-key", "staff-cleveland", "cleveland"):
        answer = hub.actors[name].send("GET", f"/fhir/Consent/{ID}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/fhir+json; fhirVersion=4.0"
        assert answer.headers["etag"] == 'W/"1"'
        shown = answer.json()
        R4Consent.model_validate(shown)
        assert shown["id"] == ID
        signed = orjson.loads(base64.b64decode(shown["sourceAttachment"]["data"]))
        assert document_digest(signed) == hub.objects["digest"]
    for name in ("bea", "stranger", "staff-budapest", "staff-coop", "budapest"):
        answer = hub.actors[name].send("GET", f"/fhir/Consent/{ID}")
        assert answer.status_code == 404
        assert issues(answer) == ["coop.not-found"]
        assert ID not in found(hub.actors[name], status="active,inactive")
    assert hub.actors["rosa"].send("GET", "/fhir/Consent").status_code == 403


@pytest.mark.parametrize("resource_id", [PID, f"{PID}-treatment", "x", f"{'b' * 26}-research"])
def test_what_is_not_there_and_what_is_not_hers_look_alike(hub: World, resource_id: str):
    answer = hub.actors["ada"].send("GET", f"/fhir/Consent/{resource_id}")
    assert (answer.status_code, issues(answer)) == (404, ["coop.not-found"])


def test_r5_is_spoken_to_whoever_asks_for_it(hub: World):
    answer = get(hub.actors["ada"], f"/fhir/Consent/{ID}", R5)
    assert answer.headers["content-type"] == "application/fhir+json; fhirVersion=5.0"
    R5Consent.model_validate(answer.json())
    bundle = get(hub.actors["ada"], "/fhir/Consent", R5).json()
    R5Bundle.model_validate(bundle)
    R5Capability.model_validate(get(hub.actors["public"], "/fhir/metadata", R5).json())
    for said in ("application/fhir+xml", "application/fhir+json; fhirVersion=3.0"):
        answer = get(hub.actors["ada"], "/fhir/Consent", {"accept": said})
        assert issues(answer) == ["fhir.unsupported-version"]


def test_the_capability_statement_says_what_the_search_takes(hub: World):
    answer = hub.actors["public"].send("GET", "/fhir/metadata")
    statement = answer.json()
    CapabilityStatement.model_validate(statement)
    (consent,) = statement["rest"][0]["resource"]
    assert [one["code"] for one in consent["interaction"]] == ["read", "search-type", "create"]
    for parameter in consent["searchParam"]:
        value = "2030" if parameter["type"] == "date" else "x"
        asked = hub.actors["ada"].send("GET", f"/fhir/Consent?{parameter['name']}={value}")
        assert asked.status_code == 200, asked.text


# -- searching -------------------------------------------------------------------------------------


def found(actor: Actor, /, **parameters: str) -> list[str]:
    named = {name.replace("__", ":"): value for name, value in parameters.items()}
    bundle = actor.ok("GET", f"/fhir/Consent?{urlencode(named)}")
    Bundle.model_validate(bundle)
    assert bundle["type"] == "searchset"
    return [entry["resource"]["id"] for entry in bundle.get("entry", [])]


def test_a_search_finds_what_all_its_parameters_say(hub: World):
    site = hub.actors["cleveland"]
    assert ID in found(site, status="active")
    for yes, no in (
        ({"status": "active"}, {"status": "inactive"}),
        ({"status": "inactive,active"}, {"status": "draft"}),
        ({"status": "http://hl7.org/fhir/consent-state-codes|active"}, {"status": "x|active"}),
        ({"patient": f"Patient/{PID}"}, {"patient": f"Patient/{'b' * 26}"}),
        ({"patient": PID}, {"patient": ""}),
        (
            {"patient__identifier": f"{words.PID}|{PID}"},
            {"patient__identifier": f"urn:else|{PID}"},
        ),
        ({"_profile": words.PROFILE}, {"_profile": "urn:else"}),
        ({"_id": ID}, {"_id": PID}),
        ({"purpose": "DUO:0000042"}, {"purpose": "DUO:0000006"}),
        ({"purpose": f"{words.DUO}|DUO:0000042"}, {"purpose": f"{words.MONDO}|DUO:0000042"}),
        ({"actor": "commercial"}, {"actor": "University"}),
        ({"actor__identifier": f"{words.ACTOR}|commercial"}, {"actor__identifier": "x|commercial"}),
        ({"period": "ge2030"}, {"period": "eb2030"}),
        ({"period": "ap2030-01-01"}, {"period": "2030"}),
        ({"period": "gt2030,eq2031"}, {"period": "sa2030"}),
    ):
        assert ID in found(site, **yes), yes
        assert ID not in found(site, **no), no
    both = {"status": "active", "purpose": "DUO:0000006"}
    assert found(site, **both) == []
    assert site.ok("GET", "/fhir/Consent?status=active&status=inactive").get("entry") is None


@pytest.mark.parametrize(
    "query",
    [
        "color=red",
        "period=soon",
        "period=xx2030",
        "patient.name=x",
        "_include=x",
        "status:not=active",
    ],
)
def test_a_parameter_that_is_not_understood_is_refused_and_not_ignored(hub: World, query: str):
    answer = hub.actors["ada"].send("GET", f"/fhir/Consent?{query}")
    assert answer.status_code == 400
    assert issues(answer) == ["fhir.bad-search"]


@pytest.mark.parametrize("query", ["_count=0", "_count=100000", "_after=" + "a" * 30])
def test_a_page_has_a_size(hub: World, query: str):
    answer = hub.actors["ada"].send("GET", f"/fhir/Consent?{query}")
    assert issues(answer) == ["request.invalid"]


def test_pages_lead_through_every_consent_once(hub: World):
    for letter in "cdefg":
        pid = letter * 26
        key = enrolled(hub, "budapest", pid, "bea")
        policy = preset(Preset.ALL_RESEARCH if letter != "e" else Preset.REFUSE)
        hub.actors["bea"].ok(
            "POST", "/v1/consents", {"documents": [event(pid, "budapest", key, policy)]}
        )
    for name in ("bea", "budapest", "staff-budapest"):
        seen, url, pages = [], "/fhir/Consent?status=active&_count=2", 0
        while url:
            bundle = hub.actors[name].ok("GET", url)
            pages += 1
            seen += [entry["resource"]["id"][0] for entry in bundle.get("entry", [])]
            links = {link["relation"]: link["url"] for link in bundle["link"]}
            assert "self" in links
            url = links.get("next")
        assert seen == sorted(seen)
        assert "".join(letter for letter in seen if letter < "h") == "cdefg"
        assert pages >= 3
    assert found(hub.actors["budapest"], purpose="DUO:0000042", _count="1") == [
        f"{'c' * 26}-research"
    ]


def test_a_page_looks_at_so_many_rows_and_the_next_goes_on(hub: World, monkeypatch):
    monkeypatch.setattr("consent.fhir.records._CHUNK", 1)
    monkeypatch.setattr("consent.fhir.records.SCANNED_MAX", 2)
    for letter in "pqrst":
        key = enrolled(hub, "budapest", letter * 26, "ada")
        policy = preset(Preset.ALL_RESEARCH if letter == "t" else Preset.REFUSE)
        granted = event(letter * 26, "budapest", key, policy)
        hub.actors["ada"].ok("POST", "/v1/consents", {"documents": [granted]})
    seen, url, pages = [], "/fhir/Consent?purpose=DUO:0000042&_after=" + "o" * 26, 0
    while url:
        bundle = hub.actors["budapest"].ok("GET", url)
        pages += 1
        seen += [entry["resource"]["id"][0] for entry in bundle.get("entry", [])]
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url = links.get("next")
    assert "".join(seen) == "t"
    assert pages >= 3


# -- creating --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [Version.R4, Version.R5])
def test_a_consent_the_patient_signed_is_created_from_fhir(hub: World, version: Version):
    pid = {"4.0": "h", "5.0": "i"}[version.value] * 26
    key = enrolled(hub, "cleveland", pid)
    policy = preset(Preset.THIS_STUDY, study_id="heart", epsilon_cap_micro=500_000)
    document = event(pid, "cleveland", key, policy)
    kind = f"application/fhir+json; fhirVersion={version.value}"
    answer = post(hub.actors["ada"], "/fhir/Consent", fhir_of(document, policy, version), kind)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/fhir/Consent/{pid}-research"
    standing = hub.actors["ada"].ok("GET", f"/v1/consents/{pid}")
    assert standing["state"] == "active"
    assert standing["head_sha256"] == document_digest(document)
    assert standing["policy"] == policy.model_dump(mode="json", exclude_none=True)
    # The same again is the same consent.
    again = post(hub.actors["ada"], "/fhir/Consent", fhir_of(document, policy, version), kind)
    assert (again.status_code, again.headers["etag"]) == (201, 'W/"1"')


def test_a_fhir_consent_without_the_patients_signature_is_told_how(hub: World):
    unsigned = fhir_of(
        event(PID, "cleveland", SigningKey.generate(), None),
        Policy.model_validate({"provision": {"type": "permit"}}),
    )
    del unsigned["sourceAttachment"]
    for sent in (unsigned, hl7("r4", "basic"), hl7("r4", "signature"), {}):
        answer = post(hub.actors["ada"], "/fhir/Consent", sent)
        assert answer.status_code == 422
        assert issues(answer) == ["fhir.unsigned"]
        assert "/v1/consents:draft" in answer.json()["issue"][0]["diagnostics"]


def test_what_the_resource_says_must_be_what_she_signed(hub: World):
    pid = "j" * 26
    key = enrolled(hub, "cleveland", pid)
    narrow, wide = preset(Preset.TRAIN_ONLY), preset(Preset.WITH_COMPANIES)
    document = event(pid, "cleveland", key, narrow)
    ada = hub.actors["ada"]
    assert issues(post(ada, "/fhir/Consent", fhir_of(document, wide))) == [
        "fhir.not-what-is-signed"
    ]
    other = fhir_of(document, narrow)
    other["patient"] = {"identifier": {"system": words.PID, "value": PID}}
    assert issues(post(ada, "/fhir/Consent", other)) == ["fhir.not-what-is-signed"]
    unclear = fhir_of(document, narrow)
    unclear["provision"]["provision"][0]["securityLabel"] = [{"system": "x", "code": "R"}]
    unclear["performer"] = [{"reference": "RelatedPerson/peter"}]
    answer = post(ada, "/fhir/Consent", unclear)
    assert sorted(issues(answer)) == ["fhir.representative", "fhir.unsupported-restriction"]
    assert answer.json()["issue"][0]["expression"] == ["Consent.performer[0]"]
    revoking = event(pid, "cleveland", key, None, event="revoke")
    assert issues(post(ada, "/fhir/Consent", fhir_of(revoking, narrow))) == [
        "fhir.not-what-is-signed"
    ]
    assert ada.ok("GET", f"/v1/consents/{pid}")["state"] == "none"


def test_a_forged_or_foreign_envelope_creates_nothing(hub: World):
    pid = "k" * 26
    key = enrolled(hub, "cleveland", pid)
    policy = preset(Preset.ALL_RESEARCH)
    ada = hub.actors["ada"]
    stranger = event(pid, "cleveland", SigningKey.generate(), policy)
    assert issues(post(ada, "/fhir/Consent", fhir_of(stranger, policy))) == ["consent.wrong-key"]
    tampered = copy.deepcopy(event(pid, "cleveland", key, preset(Preset.TRAIN_ONLY)))
    tampered["credentialSubject"]["policy"] = policy.model_dump(mode="json", exclude_none=True)
    answer = post(ada, "/fhir/Consent", fhir_of(tampered, policy))
    assert answer.status_code in {400, 401, 403}
    assert issues(answer) == ["keys.bad-signature"]
    good = fhir_of(event(pid, "cleveland", key, policy), policy)
    for name in ("bea", "staff-budapest"):
        assert issues(post(hub.actors[name], "/fhir/Consent", good)) == ["coop.not-found"]
    assert ada.ok("GET", f"/v1/consents/{pid}")["state"] == "none"
    late = event(pid, "cleveland", key, policy, sequence=5, previous="0" * 64)
    assert issues(post(ada, "/fhir/Consent", fhir_of(late, policy))) == ["consent.chain"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "canonical.not-signable"),
        (b"{", "canonical.not-signable"),
        (b"[]", "canonical.not-signable"),
        (b'{"a": NaN}', "canonical.not-signable"),
        (b'{"a": 1, "a": 2}', "canonical.not-signable"),
        (b'{"a": 0.5}', "canonical.not-signable"),
        (b"\xff\xfe", "canonical.not-signable"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "request.too-deep"),
        (b'{"a": "' + b"x" * 300_000 + b'"}', "canonical.not-signable"),
        (b'{"a": "' + b"x" * 2_000_000 + b'"}', "request.too-large"),
        (b'{"resourceType": "Patient"}', "fhir.unsigned"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value[:24]),
)
def test_hostile_bodies_are_refused_in_fhirs_own_words(hub: World, body: bytes, code: str):
    assert issues(post(hub.actors["ada"], "/fhir/Consent", body)) == [code]


def test_the_framework_answers_in_fhirs_own_words_too(hub: World):
    for method, path, status in (
        ("GET", "/fhir/Patient", 404),
        ("PUT", f"/fhir/Consent/{ID}", 405),
        ("DELETE", "/fhir/Consent", 405),
        ("GET", "/fhir", 404),
    ):
        answer = hub.actors["ada"].send(method, path)
        assert answer.status_code == status
        assert issues(answer)


# -- withdrawing -----------------------------------------------------------------------------------


def test_a_withdrawal_through_fhir_is_a_withdrawal(hub: World):
    pid = "m" * 26
    key = enrolled(hub, "cleveland", pid)
    policy = preset(Preset.ALL_RESEARCH)
    created = post(
        hub.actors["ada"], "/fhir/Consent", fhir_of(event(pid, "cleveland", key, policy), policy)
    )
    assert created.status_code == 201
    path = f"/fhir/Consent/{pid}-research/$revoke"
    for name in ("bea", "staff-budapest", "staff-coop"):
        assert hub.actors[name].send("POST", path).status_code == 404
    assert hub.actors["cleveland"].send("POST", path).status_code == 403
    answer = hub.actors["ada"].send("POST", path)
    assert answer.status_code == 200
    shown = answer.json()
    R4Consent.model_validate(shown)
    assert shown["status"] == "inactive"
    extensions = {one["url"]: one for one in shown["extension"]}
    assert extensions[words.IN_STATE]["valueCoding"]["code"] == "revoked"
    assert extensions[words.EFFECTIVE_BY]["valueDateTime"].endswith("Z")
    assert hub.actors["ada"].ok("GET", f"/v1/consents/{pid}")["state"] == "revoked"
    assert f"{pid}-research" in found(hub.actors["ada"], status="inactive")
    # Again: nothing more to withdraw, the same answer.
    assert hub.actors["staff-cleveland"].send("POST", path).json()["status"] == "inactive"
    signed = orjson.loads(base64.b64decode(shown["sourceAttachment"]["data"]))
    assert signed["credentialSubject"]["event"] == "revoke"
    assert jcs(signed)


def test_nothing_to_withdraw_is_said_in_fhir(hub: World):
    enrolled(hub, "cleveland", "n" * 26)
    answer = hub.actors["ada"].send("POST", f"/fhir/Consent/{'n' * 26}-research/$revoke")
    assert issues(answer) == ["coop.not-found"]
