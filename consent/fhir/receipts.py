"""One decision as other receipts: an ISO/IEC TS 27560 record in DPV JSON-LD, a Kantara receipt.

Both are for reading and filing. What they cannot say of a policy (exceptions, limits of privacy
cost) stands in full beside it, and the signed envelope stays the proof.
"""

from collections.abc import Mapping
from typing import Final

from consent.decide import State
from consent.fhir.record import Record, state_at
from consent.fhir.refusals import NotExpressibleError
from consent.fhir.times import YEAR_9999, moment
from consent.fhir.words import POLICY
from consent.policy import walk
from consent.purposes import DISEASES, MODIFIERS, PURPOSES, USES
from coop.canonical import Json
from coop.documents.consent import Notice
from coop.documents.provision import Provision

_CONTEXT: Final = {
    "dpv": "https://w3id.org/dpv#",
    "dct": "http://purl.org/dc/terms/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
    "coop": "urn:coop:",
}
_STATUS: Final[Mapping[str, str]] = {
    State.ACTIVE: "dpv:ConsentGiven",
    # DPV has no word for a pause: nothing is permitted, as after a withdrawal.
    State.SUSPENDED: "dpv:ConsentWithdrawn",
    State.REVOKED: "dpv:ConsentWithdrawn",
    State.PROPOSED: "dpv:ConsentRequested",
    State.VOID: "dpv:ConsentInvalidated",
    "objected": "dpv:ConsentWithdrawn",
    "expired": "dpv:ConsentExpired",
    "waiting": "dpv:ConsentRequested",
}
_HOW: Final = "signed by the patient's own key over the exact text shown"
_WITHDRAW: Final = "when the patient withdraws (at once, in the portal, by key or at the desk)"


def dpv(
    record: Record, now: int, *, notice: Notice | None = None, jurisdiction: str | None = None
) -> dict[str, Json]:
    """The ISO/IEC TS 27560 consent record of a chain as it stands, in DPV terms."""
    permits = _permits(record)
    status = _STATUS.get(state_at(record, now), "dpv:ConsentRefused")
    if record.state is State.ACTIVE and not permits:
        status = "dpv:ConsentRefused"
    made: dict[str, Json] = {
        "@context": _CONTEXT,
        "@id": f"urn:coop:consent:{record.head_sha256}",
        "@type": "dpv:ConsentRecord",
        "dct:identifier": record.head_sha256,
        "dct:conformsTo": "https://w3id.org/dpv/schema/dpv-27560#record",
        "dct:hasVersion": str(record.sequence),
        "dct:modified": _time(record.at),
        "dpv:hasDataSubject": {"@id": f"urn:coop:pid:{record.pid}", "@type": "dpv:Patient"},
        "dpv:hasDataController": {
            "@id": f"urn:coop:site:{record.site}",
            "@type": "dpv:DataController",
            "dct:title": record.site,
        },
        "dpv:hasConsentStatus": {"@id": status},
        "dpv:hasLegalBasis": {"@id": "dpv:ExplicitlyExpressedConsent"},
        "dpv:isIndicatedBy": {"@id": record.did},
        "dpv:isIndicatedAtTime": _time(record.at),
        "dpv:hasProcess": [_process(part) for part in permits],
    }
    if notice is not None:
        made["dpv:hasNotice"] = {
            "@id": notice.uri,
            "@type": "dpv:ConsentNotice",
            "dct:language": notice.language,
            "dct:hasVersion": notice.version,
            "coop:sha256": notice.sha256,
        }
    if jurisdiction is not None:
        made["dpv:hasJurisdiction"] = jurisdiction
    if record.policy is not None:
        made["coop:policy"] = {
            "@type": "@json",
            "@value": record.policy.model_dump(mode="json", exclude_none=True),
        }
    return made


def kantara(
    record: Record, *, notice: Notice | None = None, jurisdiction: str | None = None
) -> dict[str, Json]:
    """The Kantara consent receipt (v1.1) of a decision that permits something.

    The hospital's postal address and telephone are for the hospital to add: no hub holds them.

    Raises:
        NotExpressibleError: Nothing is permitted, or no jurisdiction is named.
    """
    permits = _permits(record)
    if record.event not in {"grant", "amend"} or not permits:
        raise NotExpressibleError("receipt: Kantara has receipts for what is permitted only")
    if not jurisdiction:
        raise NotExpressibleError("jurisdiction: a Kantara receipt must name one")
    return {
        "version": "KI-CR-v1.1.0",
        "jurisdiction": jurisdiction,
        "consentTimestamp": record.at,
        "collectionMethod": _HOW,
        "consentReceiptID": record.head_sha256,
        "publicKey": record.did,
        "language": notice.language if notice is not None else "en",
        "piiPrincipalId": record.pid,
        "piiControllers": [{"piiController": record.site, "onBehalf": False}],
        "policyUrl": notice.uri if notice is not None else POLICY,
        "services": [
            {
                "service": "federated health research",
                "purposes": [_purpose(part, first=part is permits[0]) for part in permits],
            }
        ],
        "sensitive": True,
        "spiCat": ["health"],
    }


def _permits(record: Record) -> list[Provision]:
    in_force = record.state in {State.ACTIVE, State.SUSPENDED} and not record.objected
    if record.policy is None or not in_force:
        return []
    return [part for _, _, part in walk(record.policy.provision) if part.type == "permit"]


def _process(part: Provision) -> dict[str, Json]:
    codes = [code for code in part.purposes if code not in MODIFIERS]
    made: dict[str, Json] = {
        "@type": "dpv:Process",
        "dpv:hasPurpose": [
            {"@id": _iri(code), "@type": "dpv:Purpose", "dct:title": _words(code)} for code in codes
        ]
        or [{"@id": "dpv:ResearchAndDevelopment"}],
        "dpv:hasProcessing": [
            {"@type": "dpv:Processing", "dct:title": USES[action]} for action in part.actions
        ]
        or [{"@id": "dpv:Use"}],
        "dpv:hasPersonalData": [
            {"@type": "dpv:SensitivePersonalData", "dct:title": name}
            for name in part.classes or ("health data",)
        ],
        "dpv:hasDuration": {"@type": "dpv:Duration", "dct:description": _until(part)},
    }
    if part.actors:
        made["dpv:hasRecipient"] = [
            {"@type": "dpv:Recipient", "dct:title": name} for name in part.actors
        ]
    return made


def _purpose(part: Provision, *, first: bool) -> dict[str, Json]:
    codes = [code for code in part.purposes if code not in MODIFIERS]
    return {
        "purpose": "; ".join(_words(code) for code in codes) or "any purpose",
        "purposeCategory": ["research"],
        "consentType": "EXPLICIT",
        "piiCategory": list(part.classes) or ["health data"],
        "primaryPurpose": first,
        "termination": _until(part),
        # Records never leave the hospital: models and noisy figures do.
        "thirdPartyDisclosure": False,
    }


def _until(part: Provision) -> str:
    if part.end > YEAR_9999:
        return _WITHDRAW
    return f"{moment(part.end)}, or before {_WITHDRAW}"


def _words(code: str) -> str:
    return DISEASES[code][0] if code in DISEASES else PURPOSES.get(code, code)


def _iri(code: str) -> str:
    return f"http://purl.obolibrary.org/obo/{code.replace(':', '_')}"


def _time(seconds: int) -> dict[str, Json]:
    return {"@type": "xsd:dateTime", "@value": moment(seconds)}
