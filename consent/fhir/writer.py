"""Policy to FHIR rules, losing nothing: what is written here is read back as the same policy.

R4 rules carry their type. In R5 a level is the opposite of the one above: where a policy has a rule
of the same type below another, a level that only flips stands between, with the same conditions;
marked, so that it is taken away again, and meaning the same to whoever does not know the mark.

Core: pure, no I/O.
"""

from typing import Final, Literal

from consent.fhir import times, words
from consent.fhir.words import Version
from consent.purposes import is_disease
from coop.canonical import Json
from coop.documents.provision import Policy, Provision

_RULES: Final = {rule: code for code, rule in words.BASE_RULES.items()}


def rules(policy: Policy, version: Version) -> dict[str, Json]:
    """The members of a FHIR Consent that hold the rules and her own limits."""
    found = _r4(policy.provision) if version is Version.R4 else _r5(policy.provision)
    limits: list[Json] = [
        {"url": url, "valueString": str(value)}
        for url, value in (
            (words.EPSILON_CAP, policy.epsilon_cap_micro),
            (words.MIN_COHORT, policy.min_cohort),
        )
        if value is not None
    ]
    return {**found, **({"modifierExtension": limits} if limits else {})}


def coding(system: str, code: str) -> dict[str, Json]:
    """A Coding."""
    return {"system": system, "code": code}


def concept(system: str, code: str) -> dict[str, Json]:
    """A CodeableConcept of one coding."""
    return {"coding": [coding(system, code)]}


def conditions(provision: Provision) -> dict[str, Json]:
    """What a rule is about, without its type and exceptions."""
    period = times.written(provision.start, provision.end)
    data = times.written(provision.data_start, provision.data_end)
    found: dict[str, Json] = {
        "period": period,
        "actor": [_actor(name) for name in provision.actors],
        "action": [concept(words.USE, code) for code in provision.actions],
        "purpose": [_purpose(code) for code in provision.purposes],
        "code": [concept(words.DATA_CLASS, code) for code in provision.classes],
        "dataPeriod": data,
    }
    return {name: value for name, value in found.items() if value}


def _r4(provision: Provision) -> dict[str, Json]:
    return {
        "policyRule": concept(words.ACT_CODE, _RULES[provision.type]),
        "provision": _typed(provision),
    }


def _typed(provision: Provision) -> dict[str, Json]:
    children = [_typed(child) for child in provision.children]
    return {
        "type": provision.type,
        **conditions(provision),
        **({"provision": children} if children else {}),
    }


def _r5(root: Provision) -> dict[str, Json]:
    if any(name != "period" for name in conditions(root)):
        # Under "deny unless permitted" a root rule with conditions is an exception to deny.
        return {"decision": "deny", "provision": [_exception(root, "permit", words.ROOT)]}
    period = times.written(root.start, root.end)
    implied = _implied(root.type)
    children = [_exception(child, implied) for child in root.children]
    return {
        "decision": root.type,
        **({"period": period} if period else {}),
        **({"provision": children} if children else {}),
    }


def _exception(
    provision: Provision, implied: Literal["permit", "deny"], *marks: str
) -> dict[str, Json]:
    """A rule where the level implies this type."""
    below = _implied(implied)
    if provision.type != implied:
        inner = _exception(provision, below)
        return {
            "extension": [_mark(url) for url in (*marks, words.FLIP)],
            **conditions(provision),
            "provision": [inner],
        }
    children = [_exception(child, below) for child in provision.children]
    return {
        **({"extension": [_mark(url) for url in marks]} if marks else {}),
        **conditions(provision),
        **({"provision": children} if children else {}),
    }


def _implied(above: Literal["permit", "deny"]) -> Literal["permit", "deny"]:
    return "deny" if above == "permit" else "permit"


def _mark(url: str) -> dict[str, Json]:
    return {"url": url, "valueBoolean": True}


def _purpose(code: str) -> dict[str, Json]:
    return coding(words.MONDO if is_disease(code) else words.DUO, code)


def _actor(name: str) -> dict[str, Json]:
    # IRCP: who receives information.
    return {
        "role": concept(words.PARTICIPATION, "IRCP"),
        "reference": {"identifier": {"system": words.ACTOR, "value": name}},
    }
