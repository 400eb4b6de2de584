"""The words of a consent: purposes as DUO and MONDO codes, uses as our own codes.

Permissions form a lattice: GRU ⊒ HMB ⊒ a disease ⊒ its kinds, and GRU ⊒ POA; NRES stands above
all. A request for a purpose is covered by a permission for that purpose or for anything above it,
never below. Diseases are a pinned extract of MONDO (`consent.mondo`): one outside it is covered
only by itself and by what covers all disease research, which is the narrow reading.

A study may also name its purpose by DUO's words for research, which are below the permissions:
biomedical research is HMB, ancestry research is POA. What no permission speaks of (population,
age, sex, control material) is for people to judge: `consent.duo`.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from consent.mondo import DISEASES, above, is_disease

__all__ = ["DISEASES", "is_disease"]  # read from here: the words of a consent stand in one place

NRES: Final = "DUO:0000004"  # no restriction
GRU: Final = "DUO:0000042"  # general research use
HMB: Final = "DUO:0000006"  # health, medical or biomedical research
DS: Final = "DUO:0000007"  # research on one disease, named by a MONDO code
POA: Final = "DUO:0000011"  # population origins or ancestry research only

METHODS: Final = "DUO:0000031"  # developing methods, algorithms or software
ANCESTRY: Final = "DUO:0000033"
BIOMEDICAL: Final = "DUO:0000037"
GENETIC: Final = "DUO:0000038"
DRUGS: Final = "DUO:0000039"
DISEASE: Final = "DUO:0000040"  # research on one disease, as a study says it

PERMISSION: Final = "DUO:0000001"  # DUO's class of all permissions
MODIFIER: Final = "DUO:0000017"  # DUO's class of all modifiers

CARDIOVASCULAR: Final = "MONDO:0004995"
HEART: Final = "MONDO:0005267"
CORONARY: Final = "MONDO:0005010"

PERMISSIONS: Final[Mapping[str, str]] = {
    NRES: "any use",
    GRU: "any research",
    HMB: "health research",
    POA: "research on population origins",
}
"""DUO permissions a policy may name (a disease permission is a MONDO code), with plain words."""

PURPOSES: Final[Mapping[str, str]] = {
    **PERMISSIONS,
    DS: "research on one disease",
    METHODS: "developing methods or software",
    ANCESTRY: "research on ancestry",
    BIOMEDICAL: "health research",
    GENETIC: "genetic research",
    DRUGS: "developing drugs",
    DISEASE: "research on one disease",
}
"""What a study may assert, with plain words; a disease may stand by itself as a MONDO code."""

PEOPLE_JUDGE: Final[Mapping[str, str]] = {
    "DUO:0000032": "research on one population group",
    "DUO:0000034": "research on one age group",
    "DUO:0000035": "research on one sex or gender",
    "DUO:0000036": "use as control material",
}
"""What a study may assert and no permission speaks of: an access committee decides."""

NOTHING: Final = frozenset({"", PERMISSION})
"""A purpose that asserts nothing: none, or the class of all permissions without saying which."""

OBSOLETE: Final[Mapping[str, str]] = {
    "DUO:0000002": "primary category",
    "DUO:0000003": "secondary category",
    "DUO:0000005": "general research and clinical care; now DUO:0000042 with DUO:0000043",
    "DUO:0000014": "research use only; now said by leaving out DUO:0000043",
}
"""Codes DUO no longer has. They are refused: what took their place must be signed anew."""


class Use(StrEnum):
    """What is done with a record: the `action` of a request."""

    TRAIN = "train-federated"
    EVALUATE = "evaluate"
    RELEASE = "release-model"
    INFER = "infer-aggregate"
    SCORE = "score-release"
    RECONTACT = "recontact"
    DONATE = "donate-validation"


USES: Final[Mapping[str, str]] = {
    Use.TRAIN: "help train a model, at my hospital",
    Use.EVALUATE: "help test a model, at my hospital",
    Use.RELEASE: "let the trained model be released",
    Use.INFER: "be counted in noisy statistics",
    Use.SCORE: "be scored by a released model",
    Use.RECONTACT: "be asked again about a study",
    Use.DONATE: "be donated as a public test record",
}

NOT_FOR_PROFIT: Final = "DUO:0000018"
NON_COMMERCIAL: Final = frozenset({"DUO:0000046", "DUO:0000045", NOT_FOR_PROFIT})
"""NCU, NPU, NPUNCU: the machine can judge these from `commercial`."""

OBLIGATIONS: Final[Mapping[str, str]] = {
    "DUO:0000019": "publish",
    "DUO:0000029": "return-results",
    "DUO:0000024": "publication-moratorium",
    "DUO:0000021": "ethics-approval",
    "DUO:0000020": "collaborate",
}
"""Modifiers that permit, and oblige whoever uses the record."""

FOR_HUMANS: Final = frozenset(
    {"DUO:0000012", "DUO:0000015", "DUO:0000016", "DUO:0000022", "DUO:0000025"}
    | {"DUO:0000026", "DUO:0000027", "DUO:0000028", "DUO:0000044"}
)
"""RS, NMDS, GSO, GS, TS, US, PS, IS, NPOA: no machine can judge them, so the answer is abstain."""

CLINICAL_CARE: Final = "DUO:0000043"
"""Allows care as well: it restricts no research and opens none, and nothing here is care."""

MODIFIERS: Final = NON_COMMERCIAL | OBLIGATIONS.keys() | FOR_HUMANS | {CLINICAL_CARE}


READ_AS: Final[Mapping[str, str]] = {
    BIOMEDICAL: HMB,
    # Not narrower: a permission or denial cannot name them, so they are judged as their field.
    GENETIC: HMB,
    DRUGS: HMB,
    ANCESTRY: POA,
    DISEASE: DS,
}
"""Words for research and the permission each of them asks for."""


def closure(purpose: str, disease: str | None = None) -> frozenset[str]:
    """Every permission that covers a request for `purpose`; empty when it is not understood.

    Args:
        purpose: A DUO permission or word for research; `DS` needs `disease`.
        disease: MONDO code. Beside another purpose than `DS` it narrows nothing: who asks for all
            health research is not covered by a permission for one disease.
    """
    asked = READ_AS.get(purpose, purpose)
    if asked == DS:
        return _disease_closure(disease) if disease is not None else frozenset()
    return _ABOVE.get(asked, frozenset())


_ABOVE: Final[Mapping[str, frozenset[str]]] = {
    NRES: frozenset({NRES}),
    GRU: frozenset({GRU, NRES}),
    HMB: frozenset({HMB, GRU, NRES}),
    POA: frozenset({POA, GRU, NRES}),
    # By itself method development is part of any of these fields, and not of one disease's.
    METHODS: frozenset({HMB, POA, GRU, NRES}),
}


def _disease_closure(disease: str) -> frozenset[str]:
    if not is_disease(disease):
        return frozenset()
    return above(disease) | {HMB, GRU, NRES}
