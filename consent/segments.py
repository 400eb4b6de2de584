"""The rows behind `consent.columns`: provisions laid out by depth, for some patients.

    level 0: one root row per patient, in the order of the pids
    level d: one row per provision at depth d, with the row number of its parent at depth d - 1

A row names its `Head` by number. Segments never change; what alters one makes another.

Core: pure, no I/O.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consent.decide import Limits, Standing, State, limits_of
from consent.rules import Head, Rule, kept_ready
from coop.documents.provision import TIME_MAX

NO_LIMITS: Final[Limits] = (None, None)
_ALWAYS: Final = (0, TIME_MAX)
_NEVER: Final = (0, 0)
SILENT: Final = Head(
    denies=True,
    actions=frozenset(),
    permissions=frozenset(),
    above=frozenset(),
    modifiers=frozenset(),
    classes=frozenset(),
    actors=frozenset(),
)
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Places = NDArray[np.int32]
_Column: TypeAlias = "array[int]"
_Rows: TypeAlias = "tuple[_Column, _Column, _Column, _Column, _Column, _Column]"
"""Parent, head, start, end, start and end of the data window."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """All provisions at one depth."""

    parent: Places
    head: Places
    start: Ints
    end: Ints
    data: tuple[Ints, Ints] | None
    """Data windows; None where no provision has one."""

    def rows(self, chosen: Bools | Ints, parent: Places) -> "Level":
        """The rows chosen, under these parents."""
        return Level(
            parent=parent,
            head=self.head[chosen],
            start=self.start[chosen],
            end=self.end[chosen],
            data=None if self.data is None else (self.data[0][chosen], self.data[1][chosen]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """Some patients, sorted by pid."""

    pids: list[str]
    live: Bools
    """Whether the patient's newest policy is this one."""
    limits: Places
    levels: list[Level]


def segment_of(
    standings: Iterable[tuple[str, Standing]], heads: dict[Head, int], limits: dict[Limits, int]
) -> Segment:
    """The segment of these patients; adds new heads and limits to those known."""
    pids: list[str] = []
    kept = array("i")
    rows: list[_Rows] = [_no_rows()]
    for pid, standing in standings:
        pids.append(pid)
        policy = standing.policy
        speaks = standing.state is State.ACTIVE and not standing.objected
        rule = kept_ready(policy) if policy and speaks else None
        if policy is None or rule is None:
            # Denied whatever is asked: a root whose period is empty.
            kept.append(limits[NO_LIMITS])
            _append(rows[0], 0, heads[SILENT], _NEVER, _ALWAYS)
            continue
        held = limits_of(policy)
        kept.append(limits.setdefault(held, len(limits)))
        _add(rule, rows, heads, (standing.starts_at, standing.ends_at))
    segment = Segment(
        pids=pids,
        live=np.ones(len(pids), bool),
        limits=np.frombuffer(kept, np.int32),
        levels=[_level(columns) for columns in rows],
    )
    return _sorted(segment)


def _no_rows() -> _Rows:
    return array("i"), array("i"), array("q"), array("q"), array("q"), array("q")


def _append(
    columns: _Rows,
    parent: int,
    head: int,
    period: tuple[int, int],
    data: tuple[int, int],
) -> None:
    for column, value in zip(columns, (parent, head, *period, *data), strict=True):
        column.append(value)


def _add(root: Rule, rows: list[_Rows], heads: dict[Head, int], counts: tuple[int, int]) -> None:
    """Add the rules; the root applies only while the standing counts."""
    waiting = [(root, 0, 0)]
    while waiting:
        rule, depth, parent = waiting.pop()
        if depth == len(rows):
            rows.append(_no_rows())
        place = len(rows[depth][0])
        head = heads.setdefault(rule.head, len(heads))
        period, data = (rule.start, rule.end), (rule.data_start, rule.data_end)
        if not depth:
            period = max(rule.start, counts[0]), min(rule.end, counts[1])
        _append(rows[depth], parent, head, period, data)
        waiting += [(child, depth + 1, place) for child in rule.children]


def _level(columns: _Rows) -> Level:
    parent, head = (np.frombuffer(column, np.int32) for column in columns[:2])
    start, end, opens, closes = (np.frombuffer(column, np.int64) for column in columns[2:])
    narrow = (opens != _ALWAYS[0]).any() or (closes != _ALWAYS[1]).any()
    data = (opens, closes) if narrow else None
    return Level(parent=parent, head=head, start=start, end=end, data=data)


# -- changing --------------------------------------------------------------------------------------


def without(segment: Segment, pids: Iterable[str]) -> Segment:
    """The same segment with these patients' lines dead."""
    lines = []
    for pid in pids:
        line = bisect_left(segment.pids, pid)
        if line < len(segment.pids) and segment.pids[line] == pid:
            lines.append(line)
    if not lines:
        return segment
    live = segment.live.copy()
    live[lines] = False
    return replace(segment, live=live)


def only_live(segment: Segment) -> Segment:
    """The living lines and their rows."""
    chosen = segment.live
    if chosen.all():
        return segment
    levels: list[Level] = []
    place = np.zeros(0, np.int32)
    for depth, level in enumerate(segment.levels):
        if depth:
            chosen = chosen[level.parent]
        parent = level.parent[chosen]
        levels.append(level.rows(chosen, place[parent] if depth else parent))
        place = np.cumsum(chosen, dtype=np.int32) - 1
    return Segment(
        pids=list(compress(segment.pids, segment.live.tolist())),
        live=np.ones(int(segment.live.sum()), bool),
        limits=segment.limits[segment.live],
        levels=levels,
    )


def joined(one: Segment, other: Segment) -> Segment:
    """Two segments of different patients, all alive, as one."""
    levels: list[Level] = []
    above = 0
    empty = _level(_no_rows())
    for depth in range(max(len(one.levels), len(other.levels))):
        first = one.levels[depth] if depth < len(one.levels) else empty
        second = other.levels[depth] if depth < len(other.levels) else empty
        parents = (first.parent, second.parent + np.int32(above))
        levels.append(_both(first, second, np.concatenate(parents)))
        above = len(first.head)
    return _sorted(
        Segment(
            pids=one.pids + other.pids,
            live=np.concatenate((one.live, other.live)),
            limits=np.concatenate((one.limits, other.limits)),
            levels=levels,
        )
    )


def _both(first: Level, second: Level, parent: Places) -> Level:
    data = None
    if first.data is not None or second.data is not None:
        one, other = _windows(first), _windows(second)
        data = (np.concatenate((one[0], other[0])), np.concatenate((one[1], other[1])))
    return Level(
        parent=parent,
        head=np.concatenate((first.head, second.head)),
        start=np.concatenate((first.start, second.start)),
        end=np.concatenate((first.end, second.end)),
        data=data,
    )


def _windows(level: Level) -> tuple[Ints, Ints]:
    count = len(level.head)
    return level.data or (np.zeros(count, np.int64), np.full(count, TIME_MAX))


def _sorted(segment: Segment) -> Segment:
    """The same patients in the order of their pids."""
    pids = segment.pids
    order = sorted(range(len(pids)), key=pids.__getitem__)
    rows = np.fromiter(order, np.int64, len(order))
    if (rows[1:] > rows[:-1]).all():
        return segment
    place = np.empty(len(rows), np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    root, *below = segment.levels
    levels = [root.rows(rows, root.parent[rows])]
    if below:
        levels += [replace(below[0], parent=place[below[0].parent]), *below[1:]]
    return Segment(
        pids=[pids[line] for line in order],
        live=segment.live[rows],
        limits=segment.limits[rows],
        levels=levels,
    )


def compacted(
    segment: Segment, heads: Sequence[Head], limits: Sequence[Limits]
) -> tuple[Segment, dict[Head, int], dict[Limits, int]]:
    """The segment with the heads and limits that are still in use."""
    used = np.unique(np.concatenate([[0], *(level.head for level in segment.levels)]))
    place = np.zeros(len(heads), np.int32)
    place[used] = np.arange(len(used), dtype=np.int32)
    held = np.unique(np.concatenate([[0], segment.limits]))
    hold = np.zeros(len(limits), np.int32)
    hold[held] = np.arange(len(held), dtype=np.int32)
    levels = [replace(level, head=place[level.head]) for level in segment.levels]
    return (
        replace(segment, limits=hold[segment.limits], levels=levels),
        {heads[old]: new for new, old in enumerate(used)},
        {limits[old]: new for new, old in enumerate(held)},
    )
