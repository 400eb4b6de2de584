"""The code systems of FHIR consents, and what of them is a word of ours.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from consent.purposes import HMB

# -- ours --
USE: Final = "urn:coop:fhir:CodeSystem:use"
DATA_CLASS: Final = "urn:coop:fhir:CodeSystem:data-class"
STATE: Final = "urn:coop:fhir:CodeSystem:state"
ACTOR: Final = "urn:coop:fhir:actor"
"""System of actors' identifiers: study ids, organisation names, the word `commercial`."""
SITE: Final = "urn:coop:fhir:site"
PID: Final = "urn:coop:fhir:pid"
PROFILE: Final = "urn:coop:fhir:StructureDefinition:consent"
POLICY: Final = "urn:coop:consent:v1"
"""What the rules mean: docs/spec/fhir.md."""

EPSILON_CAP: Final = "urn:coop:fhir:epsilon-cap-micro"
MIN_COHORT: Final = "urn:coop:fhir:min-cohort"
SECONDS: Final = "urn:coop:fhir:seconds"
"""An instant beyond the year 9999, as UTC seconds."""
FLIP: Final = "urn:coop:fhir:flip"
"""R5: this level only turns permit and deny round again for the level below."""
ROOT: Final = "urn:coop:fhir:root"
"""R5: this provision is the root rule, which has conditions."""
IN_STATE: Final = "urn:coop:fhir:state"
CHAIN: Final = "urn:coop:fhir:chain"
EFFECTIVE_BY: Final = "urn:coop:fhir:effective-by"
ENVELOPE_TYPE: Final = "application/vc"
"""Of the attachment that holds the signed envelope (W3C VC Data Model 2.0)."""

# -- HL7's and others' --
SCOPE: Final = "http://terminology.hl7.org/CodeSystem/consentscope"
CATEGORY: Final = "http://terminology.hl7.org/CodeSystem/consentcategorycodes"
ACT_CODE: Final = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
ACT_REASON: Final = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
PARTICIPATION: Final = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
LOINC: Final = "http://loinc.org"
DUO: Final = "http://purl.obolibrary.org/obo/duo.owl"
MONDO: Final = "http://purl.obolibrary.org/obo/mondo.owl"

BASE_RULES: Final[Mapping[str, str]] = {"OPTIN": "permit", "OPTOUT": "deny"}
RESEARCH: Final = "research"
CATEGORIES: Final = frozenset(
    {(LOINC, "59284-0"), (LOINC, "57016-8"), (CATEGORY, RESEARCH), (ACT_CODE, "INFA")}
)
"""Categories that only say that it is a consent; any other may mean a restriction."""
PURPOSES: Final[Mapping[str, str]] = {"HRESCH": HMB}
"""HL7's reasons that are one of our purposes: research in health care."""


class Version(StrEnum):
    """Which FHIR."""

    R4 = "4.0"
    R5 = "5.0"
