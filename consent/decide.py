"""Where consent is decided: `decide(standing, request)` is total, pure, and denies by default.

Only `permit` opens anything. `deny` and `abstain` both keep the record out; abstain says that no
machine may judge (a DUO modifier that needs a committee), never "perhaps".

    | standing                     | answer  |
    |------------------------------|---------|
    | none, suspended, revoked     | deny    |
    | policy malformed             | deny    |
    | request names no known use   | deny    |
    | purpose not understood       | deny    |
    | epsilon above her own cap    | deny    |
    | policy does not match        | deny    |

Provisions: siblings combine as deny over abstain over permit; a matching child overrides its
parent's own type; nothing matching at the root is deny. Periods are half-open.

Core: pure, no I/O.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from consent.policy import COMMERCIAL, DEPTH_MAX, PolicyError, check
from consent.purposes import FOR_HUMANS, MODIFIERS, NON_COMMERCIAL, OBLIGATIONS, USES, closure
from coop.documents.provision import Policy, Provision


class Effect(StrEnum):
    """The three answers."""

    PERMIT = "permit"
    DENY = "deny"
    ABSTAIN = "abstain"


class State(StrEnum):
    """Where a consent chain stands."""

    NONE = "none"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What someone wants to do with a record, at one instant."""

    action: str
    purpose: str
    data_class: str
    study_id: str
    organisation: str
    commercial: bool
    at: int
    """UTC seconds."""
    disease: str | None = None
    """MONDO code; needed when `purpose` is DS."""
    epsilon_micro: int | None = None
    """What the use costs her, if it is to be held against her own cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One consent chain, folded (`consent.chain.apply` makes it)."""

    state: State
    policy: Policy | None
    head_digest: str
    sequence: int
    log_index: int
    """Of the head."""
    widened_index: int = -1
    """Of the newest event that gave something (grant, amend, resume): what witnesses must have
    seen before the grant counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer, why, and what it is bound to."""

    effect: Effect
    reasons: tuple[str, ...]
    epsilon_cap_micro: int | None = None
    obligations: tuple[str, ...] = ()

    @property
    def permits(self) -> bool:
        """Whether the record may be used; false for deny and for abstain."""
        return self.effect is Effect.PERMIT


_SEVERITY: Final = {Effect.PERMIT: 0, Effect.ABSTAIN: 1, Effect.DENY: 2}


def decide(standing: Standing | None, request: Request) -> Decision:
    """Whether a record that stands like this may be used like that.

    Total and pure: same arguments, same answer, no exception. Anything not clearly permitted is
    denied; the reasons are stable codes and paths of provisions.
    """
    refusal = _refusal(standing, request)
    if refusal is not None or standing is None or standing.policy is None:
        return Decision(effect=Effect.DENY, reasons=(refusal or "consent.none",))
    covering = closure(request.purpose, request.disease)
    root = standing.policy.provision
    if not _matches(root, request, covering):
        return Decision(effect=Effect.DENY, reasons=("policy.not-covered",))
    effect, path, obligations = _evaluate(root, request, covering, "provision")
    if effect is not Effect.PERMIT:
        return Decision(effect=effect, reasons=(f"policy.{path}",))
    return Decision(
        effect=effect,
        reasons=(f"policy.{path}",),
        epsilon_cap_micro=standing.policy.epsilon_cap_micro,
        obligations=tuple(sorted(obligations)),
    )


def _refusal(standing: Standing | None, request: Request) -> str | None:
    """Why the question is not even put to the policy; None if it is."""
    if standing is None or standing.state is State.NONE:
        return "consent.none"
    if standing.state is not State.ACTIVE or standing.policy is None:
        return f"consent.{standing.state}"
    if request.action not in USES:
        return "request.unknown-use"
    if not closure(request.purpose, request.disease):
        return "request.unknown-purpose"
    return _unfit(standing.policy, request)


def _unfit(policy: Policy, request: Request) -> str | None:
    cap = policy.epsilon_cap_micro
    if request.epsilon_micro is not None and cap is not None and request.epsilon_micro > cap:
        return "policy.epsilon-cap"
    try:
        check(policy)
    except PolicyError:
        return "policy.malformed"
    return None


def _matches(provision: Provision, request: Request, covering: frozenset[str]) -> bool:
    permissions = [code for code in provision.purposes if code not in MODIFIERS]
    who = {request.study_id, request.organisation}
    # The word is ours: an organisation that calls itself "commercial" must not be able to claim it.
    who = (who - {COMMERCIAL}) | ({COMMERCIAL} if request.commercial else set())
    return (
        provision.start <= request.at < provision.end
        and (not provision.actions or request.action in provision.actions)
        and (not permissions or not covering.isdisjoint(permissions))
        and (not provision.classes or request.data_class in provision.classes)
        and (not provision.actors or not who.isdisjoint(provision.actors))
    )


def _evaluate(
    provision: Provision, request: Request, covering: frozenset[str], path: str, depth: int = 0
) -> tuple[Effect, str, frozenset[str]]:
    """The effect of a provision that matches, the path that decided, and its obligations."""
    if depth > DEPTH_MAX:
        return Effect.DENY, path, frozenset()
    found: tuple[Effect, str, frozenset[str]] | None = None
    for number, child in enumerate(provision.children):
        if not _matches(child, request, covering):
            continue
        answer = _evaluate(child, request, covering, f"{path}.children.{number}", depth + 1)
        if found is None or _SEVERITY[answer[0]] > _SEVERITY[found[0]]:
            found = (answer[0], answer[1], answer[2] | (found[2] if found else frozenset()))
        else:
            found = (found[0], found[1], found[2] | answer[2])
    own = _own_effect(provision, request)
    if found is None:
        return own[0], path, own[1]
    # The modifiers of a permit bind its exceptions too: they oblige, or they leave it to people.
    if provision.type == "permit" and found[0] is Effect.PERMIT and own[0] is not Effect.PERMIT:
        return own[0], path, frozenset()
    return found[0], found[1], found[2] | own[1]


def _own_effect(provision: Provision, request: Request) -> tuple[Effect, frozenset[str]]:
    if provision.type == "deny":
        return Effect.DENY, frozenset()
    modifiers = MODIFIERS.intersection(provision.purposes)
    if request.commercial and modifiers & NON_COMMERCIAL:
        return Effect.DENY, frozenset()
    if modifiers & FOR_HUMANS:
        return Effect.ABSTAIN, frozenset()
    return Effect.PERMIT, frozenset(OBLIGATIONS[code] for code in modifiers if code in OBLIGATIONS)
