"""The CapabilityStatement: what `/fhir` can be asked.

Core: pure, no I/O.
"""

from typing import Final

from consent.fhir.refusals import UnreadableConsentError
from consent.fhir.search import PARAMETERS
from consent.fhir.times import moment
from consent.fhir.words import PROFILE, Version
from coop.canonical import Json

_VERSIONS: Final = {Version.R4: "4.0.1", Version.R5: "5.0.0"}
_CREATE: Final = (
    "A consent is created only with the event that the patient's own key signed in its "
    "sourceAttachment (contentType application/vc), and only if both say the same; otherwise it is "
    f"refused ({UnreadableConsentError.code} and others) and the OperationOutcome says why."
)


def statement(version: Version, now: int) -> dict[str, Json]:
    """The statement for one FHIR version.

    Args:
        version: Which FHIR.
        now: UTC seconds.
    """
    consent: dict[str, Json] = {
        "type": "Consent",
        "supportedProfile": [PROFILE],
        "documentation": _CREATE,
        "interaction": [{"code": code} for code in ("read", "search-type", "create")],
        "versioning": "versioned",
        "searchParam": [
            {"name": name, "type": kind, "documentation": text}
            for name, (kind, text) in PARAMETERS.items()
        ],
        "operation": [{"name": "revoke", "definition": "urn:coop:fhir:OperationDefinition:revoke"}],
    }
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": moment(now),
        "kind": "instance",
        "implementation": {"description": "Consent registry of a health data cooperative"},
        "fhirVersion": _VERSIONS[version],
        "format": ["application/fhir+json"],
        "rest": [
            {
                "mode": "server",
                "security": {
                    "description": "Bearer session of a patient or of hospital staff, or a "
                    "request signed by the patient's or the hospital's own key"
                },
                "resource": [consent],
            }
        ],
    }
