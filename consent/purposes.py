"""The words of a consent: purposes as DUO and MONDO codes, uses as our own codes.

Permissions form a lattice: GRU ⊒ HMB ⊒ a disease ⊒ its kinds, and GRU ⊒ POA; NRES stands above
all. A request for a purpose is covered by a permission for that purpose or for anything above it,
never below. The disease tree is a small pinned extract: a disease outside it is covered only by
itself and by what covers all disease research, which is the narrow reading.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

NRES: Final = "DUO:0000004"  # no restriction
GRU: Final = "DUO:0000042"  # general research use
HMB: Final = "DUO:0000006"  # health, medical or biomedical research
DS: Final = "DUO:0000007"  # research on one disease, named by a MONDO code
POA: Final = "DUO:0000011"  # population origins or ancestry research only

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

DISEASES: Final[Mapping[str, tuple[str, str | None]]] = {
    CARDIOVASCULAR: ("diseases of the heart and vessels", None),
    HEART: ("heart disease", CARDIOVASCULAR),
    CORONARY: ("coronary artery disease", HEART),
    "MONDO:0005068": ("myocardial infarction", CORONARY),
    "MONDO:0005252": ("heart failure", HEART),
    "MONDO:0004981": ("atrial fibrillation", HEART),
    "MONDO:0005044": ("high blood pressure", CARDIOVASCULAR),
}
"""Pinned extract of MONDO: plain words and the disease above."""


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

MODIFIERS: Final = NON_COMMERCIAL | OBLIGATIONS.keys() | FOR_HUMANS


def is_disease(code: str) -> bool:
    """Whether `code` is a well-formed MONDO code."""
    prefix, _, digits = code.partition(":")
    return prefix == "MONDO" and len(digits) == 7 and digits.isascii() and digits.isdigit()  # noqa: PLR2004  (MONDO's own width)


def closure(purpose: str, disease: str | None = None) -> frozenset[str]:
    """Every permission that covers a request for `purpose`; empty when it is not understood.

    Args:
        purpose: A DUO permission; `DS` needs `disease`.
        disease: MONDO code. Beside another purpose than `DS` it narrows nothing: who asks for all
            health research is not covered by a permission for one disease.
    """
    if purpose == DS:
        return _disease_closure(disease) if disease is not None else frozenset()
    above = {
        NRES: frozenset({NRES}),
        GRU: frozenset({GRU, NRES}),
        HMB: frozenset({HMB, GRU, NRES}),
        POA: frozenset({POA, GRU, NRES}),
    }
    return above.get(purpose, frozenset())


def _disease_closure(disease: str) -> frozenset[str]:
    if not is_disease(disease):
        return frozenset()
    found = {HMB, GRU, NRES}
    current: str | None = disease
    while current is not None and current not in found:
        found.add(current)
        current = DISEASES.get(current, ("", None))[1]
    return frozenset(found)
