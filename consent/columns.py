"""Whole cohorts decided at once: for every patient what `consent.decide` says, in numpy columns.

Patients choose few different rules and limits, so each distinct `Head` and each distinct pair of
limits is asked once per request, by the very functions `decide` asks; numpy only carries their
answers to the rows, with each row's own periods. Nothing is translated: whatever a policy can say
is decided here as there, and there is no list of policies too odd for columns.

A `Columns` never changes. `updated` shares the large base with its successor and puts who changed
into a small segment of its own, merged into the base when it holds more than one in a hundred.

Core: pure, no I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import compress
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from consent.decide import (
    Effect,
    Limits,
    Request,
    Standing,
    beyond,
    posed,
)
from consent.purposes import OBLIGATIONS
from consent.rules import ABSTAIN, DENY, PERMIT, Head
from consent.segments import (
    NO_LIMITS,
    SILENT,
    Bools,
    Ints,
    Places,
    Segment,
    compacted,
    joined,
    only_live,
    segment_of,
    without,
)
from coop.documents.provision import TIME_MAX

LATE_SHARE: Final = 100  # one in so many patients may stand in the small segment
DUTIES: Final = tuple(sorted(set(OBLIGATIONS.values())))
"""Obligations by their bit."""

_EFFECTS: Final = {PERMIT: Effect.PERMIT, ABSTAIN: Effect.ABSTAIN, DENY: Effect.DENY}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What `decide` would say of each patient, line by line."""

    pids: Sequence[str]
    effects: NDArray[np.uint8]
    """[n], by severity (`consent.rules`)."""
    duties: NDArray[np.uint64]
    """[n], bits of `DUTIES`; as they would bind if it were permitted."""
    data_window: tuple[Ints, Ints]
    """[n] each, half-open; as they would bind if it were permitted."""

    def permitted(self) -> list[str]:
        """The pids that permit, in order."""
        return list(compress(self.pids, (self.effects == PERMIT).tolist()))

    def effect(self, line: int) -> Effect:
        """The effect in a line."""
        return _EFFECTS[int(self.effects[line])]

    def obligations(self, line: int) -> tuple[str, ...]:
        """What the permit in a line obliges to; nothing if it is none."""
        bits = int(self.duties[line]) if self.effects[line] == PERMIT else 0
        return tuple(word for place, word in enumerate(DUTIES) if bits >> place & 1)

    def window(self, line: int) -> tuple[int, int]:
        """Which dates of her data the permit in a line opens; none if it is none."""
        if self.effects[line] != PERMIT:
            return 0, 0
        return int(self.data_window[0][line]), int(self.data_window[1][line])


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What every distinct head and limit says to one request."""

    matches: Bools
    alone: NDArray[np.uint8]
    beside: NDArray[np.uint8]
    duties: NDArray[np.uint64]
    kept: Bools
    """Whether the request keeps each pair of limits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """How every chain stands, ready to be asked about all at once. Make it with `build`."""

    _base: Segment
    _late: Segment
    _heads: Mapping[Head, int]
    _limits: Mapping[Limits, int]

    @classmethod
    def build(cls, standings: Iterable[tuple[str, Standing]]) -> Self:
        """The columns of these patients, each named once, in any order."""
        heads, limits = {SILENT: 0}, {NO_LIMITS: 0}
        base = segment_of(standings, heads, limits)
        return cls(_base=base, _late=segment_of((), heads, limits), _heads=heads, _limits=limits)

    def __len__(self) -> int:
        return int(self._base.live.sum()) + len(self._late.pids)

    @property
    def rows(self) -> int:
        """How many provisions the columns hold."""
        return sum(len(level.head) for part in (self._base, self._late) for level in part.levels)

    @property
    def nbytes(self) -> int:
        """The memory of the columns, without the pids' own."""
        parts: list[NDArray[np.generic]] = []
        for segment in (self._base, self._late):
            parts += [segment.live, segment.limits]
            for level in segment.levels:
                parts += [level.parent, level.head, level.start, level.end, *(level.data or ())]
        return sum(part.nbytes for part in parts)

    def updated(self, changed: Mapping[str, Standing | None]) -> Self:
        """The columns after these patients' chains moved on; None takes a patient out."""
        if not changed:
            return self
        heads, limits = dict(self._heads), dict(self._limits)
        standing = [(pid, now) for pid, now in changed.items() if now is not None]
        fresh = segment_of(standing, heads, limits)
        late = joined(only_live(without(self._late, changed)), fresh)
        base = without(self._base, changed)
        if len(late.pids) * LATE_SHARE <= len(base.pids):
            return replace(self, _base=base, _late=late, _heads=heads, _limits=limits)
        whole = joined(only_live(base), late)
        whole, heads, limits = compacted(whole, list(heads), list(limits))
        none = segment_of((), heads, limits)
        return replace(self, _base=whole, _late=none, _heads=heads, _limits=limits)

    def answers(self, request: Request) -> Answers:
        """What `decide` says of every patient."""
        asked = self._ask(request)
        segments = [part for part in (self._base, self._late) if part.pids] or [self._base]
        parts = [
            _held(reduce(_both, (_answer(part, one, request) for one in asked)), request)
            for part in segments
        ]
        if len(parts) == 1:
            return parts[0]
        return Answers(
            pids=[*parts[0].pids, *parts[1].pids],
            effects=np.concatenate([part.effects for part in parts]),
            duties=np.concatenate([part.duties for part in parts]),
            data_window=(
                np.concatenate([part.data_window[0] for part in parts]),
                np.concatenate([part.data_window[1] for part in parts]),
            ),
        )

    def permitted(self, request: Request) -> list[str]:
        """The pids whose policy permits `request`."""
        return self.answers(request).permitted()

    def _ask(self, request: Request) -> list[_Asked]:
        """What heads and limits say, once for each purpose of the request; at least one."""
        count = len(self._heads)
        kept = np.fromiter(
            (beyond(limits, request) is None for limits in self._limits), bool, len(self._limits)
        )
        question = posed(request)
        if question.refused is not None or not question.asked:
            # One answer for whoever has a policy in force: nobody can permit it, or people judge.
            said = DENY if question.refused is not None else ABSTAIN
            same = np.full(count, said, np.uint8)
            return [_Asked(np.ones(count, bool), same, same, np.zeros(count, np.uint64), kept)]
        heads = self._heads
        duties = np.fromiter((_bits(head) for head in heads), np.uint64, count)
        return [
            _Asked(
                np.fromiter((head.matches(one) for head in heads), bool, count),
                np.fromiter((head.alone(one) for head in heads), np.uint8, count),
                np.fromiter((head.beside(one) for head in heads), np.uint8, count),
                duties,
                kept,
            )
            for one in question.asked
        ]


# -- asking ----------------------------------------------------------------------------------------


def _answer(segment: Segment, asked: _Asked, request: Request) -> Answers:
    """Top down: a rule applies where it matches below one that applies; the worst answer holds."""
    count = len(segment.pids)
    applies: list[Bools] = []
    for level in segment.levels:
        hit = asked.matches[level.head]
        hit &= level.start <= request.at
        hit &= level.end > request.at
        if applies:
            hit &= applies[-1][level.parent]
        applies.append(hit)
    effects = np.zeros(count, np.uint8)
    duties = np.zeros(count, np.uint64)
    opens, closes = np.zeros(count, np.int64), np.full(count, TIME_MAX)
    owner: Places | None = None
    for depth, level in enumerate(segment.levels):
        if depth:
            owner = level.parent if owner is None else owner[level.parent]
        rows = np.flatnonzero(applies[depth])
        heads = level.head[rows]
        whose = rows if owner is None else owner[rows]
        said = asked.alone[heads]
        if depth + 1 < len(segment.levels):
            excepted = np.zeros(len(level.head), bool)
            excepted[segment.levels[depth + 1].parent[applies[depth + 1]]] = True
            said = np.where(excepted[rows], asked.beside[heads], said)
        for severity in (ABSTAIN, DENY):
            judged = whose[said == severity]
            effects[judged] = np.maximum(effects[judged], severity)
        for bit in _bits_in(asked.duties):
            duties[whose[asked.duties[heads] & bit != 0]] |= bit
        if level.data is not None:
            np.maximum.at(opens, whose, level.data[0][rows])
            np.minimum.at(closes, whose, level.data[1][rows])
    # What no rule at the root speaks of is denied, and so is what lies beyond a limit of her own.
    refused = ~applies[0] | ~asked.kept[segment.limits]
    effects[refused] = DENY
    pids: Sequence[str] = segment.pids
    if not segment.live.all():
        live = segment.live
        pids = list(compress(pids, live.tolist()))
        effects, duties, opens, closes = effects[live], duties[live], opens[live], closes[live]
    return Answers(pids=pids, effects=effects, duties=duties, data_window=(opens, closes))


def _both(first: Answers, second: Answers) -> Answers:
    """The worse of two answers for each patient, under the duties and in the windows of both."""
    return Answers(
        pids=first.pids,
        effects=np.maximum(first.effects, second.effects),
        duties=first.duties | second.duties,
        data_window=(
            np.maximum(first.data_window[0], second.data_window[0]),
            np.minimum(first.data_window[1], second.data_window[1]),
        ),
    )


def _held(answers: Answers, request: Request) -> Answers:
    """A permit holds only for dates within the data window; for no date at all there is none."""
    opens, closes = answers.data_window
    closed = (opens > request.data_start) | (closes < request.data_end)
    closed |= request.data_start >= request.data_end
    answers.effects[(answers.effects == PERMIT) & closed] = DENY
    return answers


def _bits(head: Head) -> int:
    return sum(1 << DUTIES.index(word) for word in head.obligations())


def _bits_in(duties: NDArray[np.uint64]) -> list[np.uint64]:
    used = np.bitwise_or.reduce(duties)
    every = [np.uint64(1 << place) for place in range(len(DUTIES))]
    return [bit for bit in every if used & bit]
