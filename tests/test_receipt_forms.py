"""A decision as other systems' receipts: what they must hold, and what they cannot say."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from doors_world import PID, now, world
from fhir.resources.consent import Consent as R5Consent
from fhir.resources.R4B.consent import Consent as R4Consent

from consent.decide import State
from consent.fhir import reader
from consent.fhir.receipts import dpv, kantara
from consent.fhir.record import Record
from consent.fhir.refusals import NotExpressibleError
from consent.fhir.words import Version
from consent.policy import Preset, preset
from coop.cli.receipt_forms import exports
from coop.documents.consent import Notice
from coop.documents.provision import Policy
from coop.errors import InvalidInputError

NOON = 1_800_000_000
NOTICE = Notice(uri="https://coop.example/notice", language="de", version="3", sha256="a" * 64)


def record(policy: Policy | None, **changes: Any) -> Record:
    fields = {
        "pid": PID,
        "site": "cleveland",
        "domain": "research",
        "did": "did:key:z6Mk",
        "custody": "self",
        "state": State.ACTIVE,
        "sequence": 2,
        "at": NOON - 60,
        "event": "grant",
        "head_sha256": "b" * 64,
        "log_index": 7,
        "policy": policy,
        "envelope": None,
    }
    return Record(**{**fields, **changes})


HEART = preset(Preset.DISEASE_ONLY, disease="MONDO:0005010", end=NOON + 60)


def test_a_27560_record_says_who_what_for_which_data_until_when_and_under_which_notice():
    made = dpv(record(HEART), NOON, notice=NOTICE, jurisdiction="EU")
    assert made["@type"] == "dpv:ConsentRecord"
    assert made["dct:conformsTo"] == "https://w3id.org/dpv/schema/dpv-27560#record"
    assert made["dpv:hasDataSubject"]["@id"].endswith(PID)
    assert made["dpv:hasDataController"]["dct:title"] == "cleveland"
    assert made["dpv:hasConsentStatus"] == {"@id": "dpv:ConsentGiven"}
    assert made["dpv:hasJurisdiction"] == "EU"
    assert made["dpv:hasNotice"]["coop:sha256"] == NOTICE.sha256
    (process,) = made["dpv:hasProcess"]
    (purpose,) = process["dpv:hasPurpose"]
    assert purpose["@id"] == "http://purl.obolibrary.org/obo/MONDO_0005010"
    assert purpose["dct:title"] == "coronary artery disorder"
    assert process["dpv:hasPersonalData"][0]["dct:title"] == "cardiology"
    assert "2027-01-15T08:01:00Z" in process["dpv:hasDuration"]["dct:description"]
    # Nothing of the policy is lost beside what DPV can say.
    assert Policy.model_validate(made["coop:policy"]["@value"]) == HEART
    prefixes = {name.partition(":")[0] for name in _names(made)}
    assert prefixes <= {*made["@context"], "@context", "@id", "@type", "@value"}


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name != "@value" or not isinstance(item, dict):
                yield name
                yield from _names(item) if name != "@context" else ()
    elif isinstance(value, list):
        for item in value:
            yield from _names(item)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"state": State.REVOKED, "event": "revoke"}, "ConsentWithdrawn"),
        ({"state": State.SUSPENDED, "event": "suspend"}, "ConsentWithdrawn"),
        ({"policy": preset(Preset.REFUSE)}, "ConsentRefused"),
        ({"policy": preset(Preset.ALL_RESEARCH, end=NOON)}, "ConsentExpired"),
        ({"policy": None, "state": State.REVOKED}, "ConsentWithdrawn"),
    ],
)
def test_a_27560_record_tells_a_consent_from_everything_else(changes, status):
    policy = changes.pop("policy", HEART)
    made = dpv(record(policy, **changes), NOON)
    assert made["dpv:hasConsentStatus"] == {"@id": f"dpv:{status}"}
    if changes.get("state") is State.REVOKED:
        assert made["dpv:hasProcess"] == []


def test_a_kantara_receipt_has_the_members_the_standard_asks_for():
    made = kantara(record(HEART), notice=NOTICE, jurisdiction="EU")
    assert made["version"] == "KI-CR-v1.1.0"
    assert isinstance(made["consentTimestamp"], int)
    for name in ("jurisdiction", "collectionMethod", "consentReceiptID", "publicKey"):
        assert made[name]
    assert (made["language"], made["policyUrl"]) == ("de", NOTICE.uri)
    assert made["piiPrincipalId"] == PID
    assert made["piiControllers"][0]["piiController"] == "cleveland"
    assert (made["sensitive"], made["spiCat"]) == (True, ["health"])
    ((purpose,),) = [service["purposes"] for service in made["services"]]
    assert purpose["purpose"] == "coronary artery disorder"
    assert purpose["consentType"] == "EXPLICIT"
    assert purpose["piiCategory"] == ["cardiology"]
    assert purpose["thirdPartyDisclosure"] is False
    assert purpose["primaryPurpose"] is True
    assert "withdraws" in purpose["termination"]


def test_there_is_no_kantara_receipt_for_what_permits_nothing():
    for refused in (
        record(HEART, event="revoke", state=State.REVOKED),
        record(preset(Preset.REFUSE)),
        record(None),
    ):
        with pytest.raises(NotExpressibleError):
            kantara(refused, jurisdiction="EU")
    with pytest.raises(NotExpressibleError, match="jurisdiction"):
        kantara(record(HEART))


def test_a_real_history_is_exported_event_by_event(tmp_path):
    with world(tmp_path) as hub:
        ada = hub.actors["ada"]
        ada.ok("POST", f"/v1/consents/{PID}/suspend", {})
        ada.ok("POST", f"/v1/consents/{PID}/revoke", {})
        events = ada.ok("GET", f"/v1/consents/{PID}/history")["events"]
        standing = ada.ok("GET", f"/v1/consents/{PID}")
    granted = preset("all-research", data_class="cardiology")
    for form, model, version in (
        ("fhir", R4Consent, Version.R4),
        ("fhir-r5", R5Consent, Version.R5),
    ):
        made = exports(form, events, standing, None, now())
        assert [one["status"] for one in made.values()] == ["active", "inactive", "inactive"]
        for one in made.values():
            model.model_validate(orjson.loads(orjson.dumps(one)))
        assert reader.read(made[1], version) == granted
    made = exports("kantara", events, standing, "EU", now())
    assert made[1] is not None
    assert (made[2], made[3]) == (None, None)
    statuses = [
        one["dpv:hasConsentStatus"]["@id"]
        for one in exports("dpv", events, standing, None, now()).values()
    ]
    assert statuses == ["dpv:ConsentGiven", "dpv:ConsentWithdrawn", "dpv:ConsentWithdrawn"]
    with pytest.raises(NotExpressibleError, match="--jurisdiction"):
        exports("kantara", events, standing, None, now())
    with pytest.raises(InvalidInputError, match="--format"):
        exports("pdf", events, standing, None, now())
