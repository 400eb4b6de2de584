"""Where consent is decided: `decide(standing, request)` is total, pure, and denies by default.

Only `permit` opens anything. `deny` and `abstain` both keep the record out; abstain says that no
machine may judge (a DUO modifier that needs a committee, a study that does not say what it is
for), never "perhaps".

    | standing                     | answer  |
    |------------------------------|---------|
    | any state but active         | deny    |
    | objected to all research     | deny    |
    | its giver waits, or is over  | deny    |
    | policy malformed             | deny    |
    | request names no known use   | deny    |
    | purpose not understood       | deny    |
    | epsilon above her own cap    | deny    |
    | fewer people than she wants  | deny    |
    | policy does not match        | deny    |
    | data beyond her data window  | deny    |
    | purpose for people to judge  | abstain |

Provisions: siblings combine as deny over abstain over permit; a matching child overrides its
parent's own type; nothing matching at the root is deny (`consent.rules`). Obligations of all rules
that apply add up, and their data windows intersect. Periods are half-open. A request with several
purposes is several questions (`consent.duo`): the worst answer holds, under the duties of all.

Core: pure, no I/O.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from consent.duo import Reading, asserted
from consent.policy import walk
from consent.purposes import USES
from consent.rules import ABSTAIN, DENY, KEPT, PERMIT, Asked, Rule, covering, kept_ready, who_asks
from coop.documents.provision import TIME_MAX, Policy


class Effect(StrEnum):
    """The three answers."""

    PERMIT = "permit"
    DENY = "deny"
    ABSTAIN = "abstain"


class State(StrEnum):
    """Where a consent chain stands."""

    NONE = "none"
    PROPOSED = "proposed"
    """A hospital has prepared a policy; nothing is allowed until the patient signs."""
    REJECTED = "rejected"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    VOID = "entered-in-error"
    """The hospital found that what is recorded was never said, or about another person."""


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
    further: tuple[str, ...] = ()
    """Every other purpose, as DUO or MONDO codes: each must be permitted."""
    epsilon_micro: int | None = None
    """What the use costs her; None: unknown, which is above any cap of hers."""
    population: int | None = None
    """How many people the use declares to be about: a public number, never a count of today."""
    data_start: int = 0
    data_end: int = TIME_MAX
    """The dates of the data it reads; by default every date and rows that bear none."""


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
    """Of the newest event that gave something (grant, resume, an amend that widens): what witnesses
    must have seen before the grant counts."""
    starts_at: int = 0
    """What was given counts from then on (UTC seconds): a recovered key waits …"""
    ends_at: int = TIME_MAX
    """… and before then: what a representative gave ends with the representation."""
    under: str | None = None
    """The representation under which it was given; None for the patient's own key."""
    objected: bool = False
    """She objects to all research: whatever else stands here permits nothing."""
    on_death: str = "stop"
    """`stop` or `continue`: what she wants once she has died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer, why, and what it is bound to."""

    effect: Effect
    reasons: tuple[str, ...]
    data_window: tuple[int, int] = (0, 0)
    """Which dates of her data are open, half-open; none unless permitted."""
    classes: tuple[str, ...] = ()
    """Which kinds of data are open: the one that was asked for."""
    epsilon_cap_micro: int | None = None
    min_cohort: int | None = None
    obligations: tuple[str, ...] = ()

    @property
    def permits(self) -> bool:
        """Whether the record may be used; false for deny and for abstain."""
        return self.effect is Effect.PERMIT


class Posed(NamedTuple):
    """A request as it is put to policies."""

    refused: str | None
    """Why no policy at all can permit it; None if one may, or if people judge it."""
    people: str | None
    """Why only people can judge it."""
    asked: tuple[Asked, ...]
    """What rules are held against, once for each purpose; none unless a machine can judge."""


Limits = tuple[int | None, int | None]
"""Epsilon cap in millionths, minimum cohort."""
Said = tuple[int, str, frozenset[str], int, int]
"""Severity, the path that decided, obligations, data window."""


def decide(standing: Standing | None, request: Request) -> Decision:
    """Whether a record that stands like this may be used like that.

    Total and pure: same arguments, same answer, no exception. Anything not clearly permitted is
    denied; the reasons are stable codes, and the path of provisions down to the one that decided.
    """
    question = posed(request)
    refusal = _refusal(standing, request, question)
    if refusal is not None or standing is None or standing.policy is None:
        return _unless_permitted(DENY, refusal or "consent.none")
    policy = standing.policy
    severity, path, obligations, data_start, data_end = put(
        kept_ready(policy), request.at, question
    )
    if severity != PERMIT:
        return _unless_permitted(severity, path)
    if not data_start <= request.data_start < request.data_end <= data_end:
        return _unless_permitted(DENY, "policy.data-window")
    return _permitted(
        path,
        (data_start, data_end),
        request.data_class,
        policy.epsilon_cap_micro,
        policy.min_cohort,
        obligations,
    )


def state_at(state: State, policy: Policy | None, counts: tuple[int, int], now: int) -> str:
    """A chain's state as people read it: `waiting` and `expired` come with time, by no event.

    Args:
        state: By its newest event.
        policy: In force.
        counts: From when on, and until when, what was given counts.
        now: UTC seconds.
    """
    if state is not State.ACTIVE or policy is None:
        return str(state)
    if now < counts[0]:
        return "waiting"
    permits = [part for _, _, part in walk(policy.provision) if part.type == "permit"]
    last = max((part.end for part in permits), default=TIME_MAX)
    over = min(policy.provision.end, counts[1], last) <= now
    return "expired" if over else str(state)


def posed(request: Request) -> Posed:
    """The request as it is put to policies, remembered for those that are asked again and again."""
    return _posed(
        request.action,
        request.purpose,
        request.disease,
        request.further,
        request.data_class,
        request.study_id,
        request.organisation,
        request.commercial,
    )


def limits_of(policy: Policy) -> Limits:
    """Her own limits."""
    return policy.epsilon_cap_micro, policy.min_cohort


def beyond(limits: Limits, request: Request) -> str | None:
    """Which of her own limits a request exceeds; None if it keeps them."""
    cap, least = limits
    # What a request does not say, it may be: an unknown cost is above every cap.
    if cap is not None and (request.epsilon_micro is None or request.epsilon_micro > cap):
        return "policy.epsilon-cap"
    if least is not None and (request.population is None or request.population < least):
        return "policy.min-cohort"
    return None


def put(rule: Rule | None, at: int, question: Posed) -> Said:
    """What the whole policy says to every purpose of the request; each must be covered."""
    if rule is None:
        return _denial("policy.malformed")
    if not rule.start <= at < rule.end:
        return _denial("policy.not-covered")
    if question.people is not None:
        return ABSTAIN, question.people, frozenset(), 0, 0
    said: Said | None = None
    for asked in question.asked:
        if not rule.head.matches(asked):
            return _denial("policy.not-covered")
        answer = _answer(rule, asked, at)
        said = answer if said is None else _both(said, answer)
    return said or _denial("policy.not-covered")


@lru_cache(maxsize=KEPT)
def _posed(  # noqa: PLR0913, PLR0917  (what of a request rules are held against: the cache's key)
    action: str,
    purpose: str,
    disease: str | None,
    further: tuple[str, ...],
    data_class: str,
    study_id: str,
    organisation: str,
    commercial: bool,  # noqa: FBT001
) -> Posed:
    read = asserted(purpose, disease, further)
    unknown = read.reason if read.reading is Reading.UNKNOWN else None
    who = who_asks(study_id, organisation, commercial=commercial)
    return Posed(
        unknown if action in USES else "request.unknown-use",
        read.reason if read.reading is Reading.PEOPLE else None,
        tuple(
            Asked(
                action,
                field if kind is None else kind,
                covering(field, kind),
                data_class,
                who,
                commercial,
            )
            for field, kind in read.each
        ),
    )


def _refusal(standing: Standing | None, request: Request, question: Posed) -> str | None:
    """Why the question is not even put to the policy's rules; None if it is."""
    if standing is None:
        return "consent.none"
    if standing.objected:
        return "consent.objected"
    if standing.state is not State.ACTIVE or standing.policy is None:
        return f"consent.{standing.state}"
    if not standing.starts_at <= request.at < standing.ends_at:
        return "consent.waiting" if request.at < standing.starts_at else "consent.ended"
    return question.refused or beyond(limits_of(standing.policy), request)


def _denial(reason: str) -> Said:
    return DENY, reason, frozenset(), 0, 0


def _answer(rule: Rule, asked: Asked, at: int) -> Said:
    """What a rule that matches says, with its exceptions."""
    worst: Said | None = None
    for child in rule.children:
        if child.start <= at < child.end and child.head.matches(asked):
            said = _answer(child, asked, at)
            worst = said if worst is None else _both(worst, said)
    if worst is None:
        own = rule.head.alone(asked)
    elif rule.head.denies:
        return worst
    else:
        own = rule.head.beside(asked)
    said = (own, rule.path, rule.obligations, rule.data_start, rule.data_end)
    return said if worst is None else _both(worst, said)


def _both(first: Said, second: Said) -> Said:
    """The worse of two answers, under the duties and within the data window of both."""
    worse = second if second[0] > first[0] else first
    return (
        worse[0],
        worse[1],
        first[2] | second[2],
        max(first[3], second[3]),
        min(first[4], second[4]),
    )


# Answers are few and never change: making one costs more than finding it.


@lru_cache(maxsize=KEPT)
def _unless_permitted(severity: int, path: str) -> Decision:
    effect = Effect.ABSTAIN if severity == ABSTAIN else Effect.DENY
    return Decision(effect=effect, reasons=(path,))


@lru_cache(maxsize=KEPT)
def _permitted(
    path: str,
    data_window: tuple[int, int],
    data_class: str,
    epsilon_cap_micro: int | None,
    min_cohort: int | None,
    obligations: frozenset[str],
) -> Decision:
    return Decision(
        effect=Effect.PERMIT,
        reasons=(path,),
        data_window=data_window,
        classes=(data_class,),
        epsilon_cap_micro=epsilon_cap_micro,
        min_cohort=min_cohort,
        obligations=tuple(sorted(obligations)),
    )
