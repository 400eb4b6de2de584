"""A policy made ready to be decided on: what a rule says, told apart from when it says it.

Every rule that applies has a say, and the worst answer holds: deny over abstain over permit. A deny
that an exception of its own overrides is silent; a permit is never silent, for its modifiers bind
its exceptions, too. A permit speaks of what lies below its purposes; a deny also of what lies above
them, for who asks for all health research asks for the part that she denied. Both readers of this
module, `consent.decide` for one record and `consent.columns` for a whole cohort, ask the same
`Head` whether it matches, and so agree.

Core: pure, no I/O.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from consent.policy import COMMERCIAL, PolicyError, check
from consent.purposes import (
    DS,
    FOR_HUMANS,
    MODIFIERS,
    NON_COMMERCIAL,
    OBLIGATIONS,
    closure,
    is_disease,
)
from coop.documents.provision import Policy, Provision

PERMIT: Final = 0
ABSTAIN: Final = 1
DENY: Final = 2
"""By severity: of two answers the greater holds."""

KEPT: Final = 4096  # policies, about 20 MB


class Asked(NamedTuple):
    """A request as the sets that rules are held against."""

    action: str
    purpose: str
    """Permission or disease."""
    covering: frozenset[str]
    """Every permission that covers the purpose."""
    data_class: str
    who: frozenset[str]
    commercial: bool


@dataclass(frozen=True, slots=True)
class Head:
    """What a provision says, without its periods and exceptions. Patients share few of them."""

    denies: bool
    actions: frozenset[str]
    permissions: frozenset[str]
    above: frozenset[str]
    """What lies above the purposes of a deny; empty for a permit."""
    modifiers: frozenset[str]
    classes: frozenset[str]
    actors: frozenset[str]

    def matches(self, asked: Asked) -> bool:
        """Whether the rule speaks of what is asked, its period aside; an empty set means any."""
        return (
            (not self.actions or asked.action in self.actions)
            and (
                not self.permissions
                or not self.permissions.isdisjoint(asked.covering)
                or asked.purpose in self.above
            )
            and (not self.classes or asked.data_class in self.classes)
            and (not self.actors or not self.actors.isdisjoint(asked.who))
        )

    def alone(self, asked: Asked) -> int:
        """Its answer where none of its exceptions applies."""
        return DENY if self.denies else self.beside(asked)

    def beside(self, asked: Asked) -> int:
        """Its answer beside an exception that applies: the least that the modifiers ask for."""
        if not self.modifiers:
            return PERMIT
        if asked.commercial and not self.modifiers.isdisjoint(NON_COMMERCIAL):
            return DENY
        return PERMIT if self.modifiers.isdisjoint(FOR_HUMANS) else ABSTAIN

    def obligations(self) -> frozenset[str]:
        """What it asks of whoever uses the record."""
        return frozenset(OBLIGATIONS[code] for code in self.modifiers if code in OBLIGATIONS)


@dataclass(frozen=True, slots=True)
class Rule:
    """A provision made ready."""

    head: Head
    start: int
    end: int
    data_start: int
    data_end: int
    obligations: frozenset[str]
    path: str
    children: tuple["Rule", ...]


def who_asks(study_id: str, organisation: str, *, commercial: bool) -> frozenset[str]:
    """The names a rule may know the asker by."""
    # The word is ours: an organisation that calls itself "commercial" must not be able to claim it.
    names = frozenset((study_id, organisation, COMMERCIAL))
    return names if commercial else names - {COMMERCIAL}


covering: Final = lru_cache(maxsize=KEPT)(closure)
"""Every permission that covers a purpose (`consent.purposes.closure`), remembered."""


def ready(policy: Policy) -> Rule | None:
    """The rules of a policy; None if no machine can obey it."""
    try:
        check(policy)
    except PolicyError:
        return None
    return _rule(policy.provision, "policy.provision")


def kept_ready(policy: Policy) -> Rule | None:
    """The same, remembered for the newest few thousand policies.

    A policy cannot change, so its rules cannot either. The policy is kept beside them: while it is,
    no other object can have its identity.
    """
    found = _kept.get(id(policy))
    if found is None:
        if len(_kept) >= KEPT:
            _kept.clear()
        found = _kept[id(policy)] = (policy, ready(policy))
    return found[1]


_kept: Final[dict[int, tuple[Policy, Rule | None]]] = {}


def _rule(provision: Provision, path: str) -> Rule:
    purposes = frozenset(provision.purposes)
    denies = provision.type == "deny"
    permissions = purposes - MODIFIERS
    head = Head(
        denies=denies,
        actions=frozenset(provision.actions),
        permissions=permissions,
        above=frozenset().union(*map(_at_or_above, permissions)) if denies else frozenset(),
        modifiers=purposes & MODIFIERS,
        classes=frozenset(provision.classes),
        actors=frozenset(provision.actors),
    )
    return Rule(
        head=head,
        start=provision.start,
        end=provision.end,
        data_start=provision.data_start,
        data_end=provision.data_end,
        obligations=head.obligations(),
        path=path,
        children=tuple(
            _rule(child, f"{path}.children.{number}")
            for number, child in enumerate(provision.children)
        ),
    )


def _at_or_above(code: str) -> frozenset[str]:
    return covering(DS, code) if is_disease(code) else covering(code, None)
