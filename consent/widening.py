"""Whether a change allows anything that was not allowed before: exact for the policies people sign.

Everything in a policy is finite: the codes it names and one code that it does not, the instants
where a period begins or ends. Two policies say the same of all requests that look alike to both, so
one request of each kind is put to both, and the change widens if one of them is allowed more by the
new policy than by the old. Where that would be too many kinds, the answer is that it widens.

Core: pure, no I/O.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import combinations_with_replacement, product
from typing import Final

from consent.decide import Posed, Said, Standing, State, put
from consent.mondo import DISEASES
from consent.policy import COMMERCIAL, walk
from consent.purposes import DS, METHODS, MODIFIERS, PERMISSIONS, USES, is_disease
from consent.rules import PERMIT, Asked, Rule, covering, kept_ready, who_asks
from coop.documents.provision import Policy, Provision

KINDS_MAX: Final = 1_000  # 5 ms; a ready-made choice against another has under a hundred
_OTHER: Final = "\0"
"""A name nobody has: printable text is all that a policy may name."""
_UNLISTED: Final = "MONDO:9999999"


def widens(before: Standing | None, after: Standing) -> bool:
    """Whether anything is allowed after a change of policy that was not before, or for longer."""
    if after.state is not State.ACTIVE or after.objected or after.policy is None:
        return False
    if before is None or before.state is not State.ACTIVE or before.objected:
        return True
    longer = after.starts_at < before.starts_at or after.ends_at > before.ends_at
    beyond_death = after.on_death not in {before.on_death, "stop"}
    return longer or beyond_death or before.policy is None or more(before.policy, after.policy)


@lru_cache(maxsize=4096)
def more(old: Policy, new: Policy) -> bool:
    """Whether `new` allows any request that `old` does not, or asks less of it.

    Never wrongly false. True also where the policies are too large to compare.
    """
    if old == new:
        return False
    before, after = kept_ready(old), kept_ready(new)
    if after is None:
        return False
    if before is None or _looser(old, new):
        return True
    parts = [part for policy in (old, new) for _, _, part in walk(policy.provision)]
    kinds = _kinds(parts)
    return kinds is None or any(_allows_more(before, after, at, one) for at, one in kinds)


def _looser(old: Policy, new: Policy) -> bool:
    """Whether one of her own limits lets through what it held back."""
    cap, least = old.epsilon_cap_micro, old.min_cohort
    dearer = cap is not None and (new.epsilon_cap_micro is None or new.epsilon_cap_micro > cap)
    return dearer or (least is not None and (new.min_cohort is None or new.min_cohort < least))


def _allows_more(before: Rule, after: Rule, at: int, one: Posed) -> bool:
    now = put(after, at, one)
    return now[0] == PERMIT and now[3] < now[4] and not _covers(put(before, at, one), now)


def _covers(before: Said, now: Said) -> bool:
    window = before[3] <= now[3] and now[4] <= before[4]
    return before[0] == PERMIT and window and before[2] <= now[2]


def _kinds(parts: list[Provision]) -> Iterator[tuple[int, Posed]] | None:
    """One request of every kind these provisions can tell apart; None if there are too many."""
    instants = {0, *(part.start for part in parts), *(part.end for part in parts)}
    actions = _named(USES, {code for part in parts for code in part.actions})
    classes = {_OTHER, *(code for part in parts for code in part.classes)}
    names = {_OTHER, *(name for part in parts for name in part.actors if name != COMMERCIAL)}
    askers = list(combinations_with_replacement(sorted(names), 2))
    purposes = _purposes(frozenset(code for part in parts for code in part.purposes))
    count = len(instants) * len(actions) * len(classes) * len(askers) * 2 * len(purposes)
    if count > KINDS_MAX:
        return None
    return (
        (at, Posed(None, None, (Asked(action, code, covers, kind, who, company),)))
        for action, kind, (one, other), company, (code, covers) in product(
            actions, classes, askers, (False, True), purposes
        )
        for who in [who_asks(one, other, commercial=company)]
        for at in instants
    )


def _named(every: Iterable[str], named: set[str]) -> list[str]:
    """The codes that are named and, for all the others, one of them."""
    return [*named, *list(set(every) - named)[:1]]


@lru_cache(maxsize=1024)
def _purposes(named: frozenset[str]) -> tuple[tuple[str, frozenset[str]], ...]:
    """Of all purposes that look alike to rules with these codes, one each with what covers it."""
    codes = named - MODIFIERS
    above = {
        code: covering(DS, code) if is_disease(code) else covering(code, None) for code in codes
    }
    kinds: dict[object, tuple[str, frozenset[str]]] = {}
    for purpose in [*PERMISSIONS, METHODS, *DISEASES, _UNLISTED, *codes]:
        covers = covering(DS, purpose) if is_disease(purpose) else covering(purpose, None)
        below = frozenset(code for code in codes if purpose in above[code])
        kinds.setdefault((covers & codes, below), (purpose, covers))
    return tuple(kinds.values())
