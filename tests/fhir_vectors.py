"""Consents in FHIR for tests: HL7's examples, the MII's, and ours made of random policies."""

import json
import warnings
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from consent.policy import PolicyError, check
from consent.purposes import DISEASES, MODIFIERS, PERMISSIONS, Use
from coop.documents.provision import TIME_MAX, Policy, Provision

with warnings.catch_warnings():
    # It leaves the file of its codes to the garbage collector.
    warnings.simplefilter("ignore", ResourceWarning)
    from genomde_consent_check import checker

HL7 = Path(__file__).parent / "vectors" / "fhir"
MII = Path(checker.PKG) / "examples"

INSTANTS = [0, 1, 59, 86_399, 86_400, 1_800_000_000, 253_402_300_799, 253_402_300_800, TIME_MAX]


def hl7(version: str, name: str) -> dict[str, Any]:
    return json.loads((HL7 / version / f"Consent-consent-example-{name}.json").read_text())


def mii(name: str) -> dict[str, Any]:
    return json.loads((MII / f"Example_MII_Consent_{name}.json").read_text())


def _is_valid(policy: Policy) -> bool:
    try:
        check(policy)
    except PolicyError:
        return False
    return True


def _periods() -> st.SearchStrategy[tuple[int, int]]:
    times = st.sampled_from(INSTANTS) | st.integers(0, TIME_MAX)
    return st.tuples(times, times).map(sorted).map(tuple).filter(lambda span: span[0] < span[1])


words = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_categories=["C", "Z"]),
    min_size=1,
    max_size=12,
).filter(str.isprintable)
names = st.lists(words, min_size=1, max_size=3).map(" ".join) | st.sampled_from(
    ["commercial", "mii:6", "cardiology", "Ünivérsity of Zürich"]
)


@st.composite
def provisions(draw: st.DrawFn, depth: int = 3) -> Provision:
    kind = draw(st.sampled_from(["permit", "deny"]))
    start, end = draw(_periods() | st.just((0, TIME_MAX)))
    window = draw(_periods() | st.just((0, TIME_MAX))) if kind == "permit" else (0, TIME_MAX)
    purposes = draw(st.lists(st.sampled_from([*PERMISSIONS, *DISEASES]), max_size=3))
    if kind == "permit" and purposes:
        purposes += draw(st.lists(st.sampled_from(sorted(MODIFIERS)), max_size=2))
    return Provision(
        type=kind,
        start=start,
        end=end,
        actions=draw(st.lists(st.sampled_from([str(use) for use in Use]), max_size=3)),
        purposes=purposes,
        classes=draw(st.lists(names, max_size=2)),
        actors=draw(st.lists(names, max_size=2)),
        data_start=window[0],
        data_end=window[1],
        children=draw(st.lists(provisions(depth - 1), max_size=2)) if depth else [],
    )


policies = st.builds(
    Policy,
    provision=provisions(),
    epsilon_cap_micro=st.none() | st.integers(0, TIME_MAX),
    min_cohort=st.none() | st.integers(1, TIME_MAX),
).filter(_is_valid)
