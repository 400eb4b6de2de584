"""A policy and a question in Cedar's words, written from what a provision means.

Purposes are a graph that Cedar climbs itself, exceptions become conditions, and "the worst answer
holds" becomes Cedar's own rule that one `forbid` beats every `permit`.
"""

from collections.abc import Iterable, Iterator

import cedarpy
import orjson

from consent.decide import Request, Standing
from consent.duo import Reading, asserted
from consent.mondo import DISEASES
from consent.policy import PolicyError, check
from consent.purposes import (
    CARDIOVASCULAR,
    CORONARY,
    DS,
    FOR_HUMANS,
    GRU,
    HEART,
    HMB,
    METHODS,
    MODIFIERS,
    NON_COMMERCIAL,
    NRES,
    POA,
    USES,
)
from coop.documents.provision import TIME_MAX, Provision

GRAPH = {NRES: (), GRU: (NRES,), HMB: (GRU,), POA: (GRU,), METHODS: (HMB, POA)}
"""Every purpose and what is next above it; a disease stands below those MONDO names, or HMB."""
UNLISTED = "MONDO:9999999"


# -- a policy in Cedar -----------------------------------------------------------------------------


def cedar_of(standing: Standing) -> str | None:
    """The policy set of one patient; None for what no machine can obey."""
    policy = standing.policy
    if policy is None:
        return ""
    try:
        check(policy)
    except PolicyError:
        return None
    least, cap = policy.min_cohort, policy.epsilon_cap_micro
    limits = [] if least is None else [f"!(context has people) || context.people < {least}"]
    limits += [] if cap is None else [f"!(context has epsilon) || context.epsilon > {cap}"]
    root = policy.provision
    lines = [
        f"permit(principal, action, resource) when {{ {speaks_of(root)} }};",
        'forbid(principal, action, resource) unless { context.state == "active" };',
        "forbid(principal, action, resource) when { context.objected };",
        "forbid(principal, action, resource) when { context.at < context.counts_from };",
        "forbid(principal, action, resource) when { context.counts_to <= context.at };",
        f"forbid(principal, action, resource) unless {{ {among('action', 'Action', USES)} }};",
        "forbid(principal, action, resource) unless { context.data_start < context.data_end };",
        *(f"forbid(principal, action, resource) when {{ {limit} }};" for limit in limits),
        *(
            f"forbid(principal, action, resource) when {{ {condition} }};"
            for condition in forbids(root, [])
        ),
    ]
    return "\n".join(lines)


def forbids(rule: Provision, above: list[str]) -> Iterator[str]:
    """When a rule, or an exception below it, takes the permit away."""
    applies = [*above, f"({speaks_of(rule)})"]
    here = " && ".join(applies)
    if rule.type == "deny":
        # A denial is silent where one of its exceptions speaks.
        yield " && ".join([*applies, *(f"!({speaks_of(child)})" for child in rule.children)])
    else:
        if NON_COMMERCIAL & set(rule.purposes):
            yield f"{here} && context.commercial"
        if FOR_HUMANS & set(rule.purposes):
            yield here
        if (rule.data_start, rule.data_end) != (0, TIME_MAX):
            outside = (
                f"context.data_start < {rule.data_start} || {rule.data_end} < context.data_end"
            )
            yield f"{here} && ({outside})"
    for child in rule.children:
        yield from forbids(child, applies)


def speaks_of(rule: Provision) -> str:
    """Whether a rule speaks of the request, whatever stands above it."""
    parts = [f"{rule.start} <= context.at", f"context.at < {rule.end}"]
    if rule.actions:
        parts.append(among("action", "Action", rule.actions))
    if purposes := [code for code in rule.purposes if code not in MODIFIERS]:
        below = among("resource", "Purpose", purposes)
        # A denial of a part is a denial of the whole that contains it.
        whole = [f"{entity('Purpose', code)} in resource" for code in purposes]
        parts.append(" || ".join([below, *(whole if rule.type == "deny" else [])]))
    if rule.classes:
        parts.append(f"{words(rule.classes)}.contains(context.data_class)")
    if rule.actors:
        names = words(name for name in rule.actors if name != "commercial")
        company = ["context.commercial"] if "commercial" in rule.actors else []
        asker = [f"{names}.contains(context.{who})" for who in ("study", "organisation")]
        parts.append(" || ".join([*asker, *company]))
    return " && ".join(f"({part})" for part in parts)


def among(what: str, kind: str, codes: Iterable[str]) -> str:
    return f"{what} in [{', '.join(entity(kind, code) for code in codes)}]"


def entity(kind: str, code: str) -> str:
    return f"{kind}::{orjson.dumps(code).decode()}"


def words(codes: Iterable[str]) -> str:
    return orjson.dumps(list(codes)).decode()


# -- a question in Cedar ---------------------------------------------------------------------------


def graph(*codes: str) -> cedarpy.Entities:
    """These purposes, those the random questions name, and all above them, each below the next."""
    above = {**GRAPH, **{code: parents or (HMB,) for code, (_, parents) in DISEASES.items()}}
    above[UNLISTED] = (HMB,)
    wanted = {*GRAPH, CARDIOVASCULAR, HEART, CORONARY, UNLISTED, *codes}
    while more := {parent for code in wanted for parent in above[code]} - wanted:
        wanted |= more
    listed = [
        {
            "uid": uid("Purpose", code),
            "attrs": {},
            "parents": [uid("Purpose", p) for p in above[code]],
        }
        for code in sorted(wanted)
    ]
    return cedarpy.Entities.from_json_str(orjson.dumps(listed).decode())


def uid(kind: str, code: str) -> dict[str, str]:
    return {"type": kind, "id": code}


def questions_of(standing: Standing, asked: Request) -> list[dict[str, object]] | None:
    """One Cedar request for each purpose, which must all be allowed; None if no machine may ask."""
    read = asserted(asked.purpose, asked.disease, asked.further)
    if read.reading is not Reading.CLEAR:
        return None
    context = {
        "state": str(standing.state),
        "objected": standing.objected,
        "counts_from": standing.starts_at,
        "counts_to": standing.ends_at,
        "at": asked.at,
        "study": asked.study_id,
        "organisation": asked.organisation,
        "commercial": asked.commercial,
        "data_class": asked.data_class,
        "data_start": asked.data_start,
        "data_end": asked.data_end,
        **({} if asked.population is None else {"people": asked.population}),
        **({} if asked.epsilon_micro is None else {"epsilon": asked.epsilon_micro}),
    }
    return [
        {
            "principal": uid("Asker", "anyone"),
            "action": uid("Action", asked.action),
            "resource": uid("Purpose", disease if purpose == DS else purpose),
            "context": context,
        }
        for purpose, disease in read.each
    ]
