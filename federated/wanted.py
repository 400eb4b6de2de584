"""What a study asks of records: which codes, in which unit; and what was found for each field.

Findings are kept as numbers in arrays (28 bytes each), never as the records they came from.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from coop.documents.source import CodeSet, Index, LabelSource, Source
from coop.documents.study import MICRO, CategoryFeature, Study
from coop.documents.units import Conversion, conversion, spelled

Kind = Literal["number", "category", "flag", "index"]
Table = Literal["condition", "observation", "medication", "encounter"]

PLACES: Final = 1 << 40
"""A place is `file · PLACES + line`."""
_PER_REASON_MAX: Final = 100  # entries kept of each reason; the count goes on
_ENTRIES_MAX: Final = 2000
_SPELLINGS_MAX: Final = 1000  # different units of one field; a file with more is hostile
_DIGITS: Final = 6


@dataclass(slots=True)
class Aside:
    """What was set aside: how often for each reason, and where the first ones stood."""

    counts: Counter[str] = field(default_factory=Counter)
    entries: list[tuple[int, str]] = field(default_factory=list)
    """(place, reason); a reason names a field and never what stood there."""

    def add(self, reason: str, place: int, times: int = 1) -> None:
        """Set one record aside."""
        seen = self.counts[reason]
        self.counts[reason] = seen + times
        if seen < _PER_REASON_MAX and len(self.entries) < _ENTRIES_MAX:
            self.entries.append((place, reason))


@dataclass(slots=True, eq=False)
class Wanted:
    """One field and its findings, in no order."""

    name: str
    kind: Kind
    source: Source
    categories: list[str] = field(default_factory=list)
    """Names of the values; a finding's value is a position here."""
    people: "array[int]" = field(default_factory=lambda: array("I"))
    times: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    places: "array[int]" = field(default_factory=lambda: array("q"))
    converted: Counter[str] = field(default_factory=Counter)
    """Records by the unit they were converted from."""
    out_of_range: int = 0
    meanings: "CodeIndex | None" = None
    """Of a category of observations: what each coded value means."""
    _known: dict[str, Conversion | None] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether a finding is an amount in a unit."""
        return self.source.unit is not None

    @property
    def pick(self) -> str:
        """Which of several findings counts."""
        return self.source.pick or ("ever" if self.kind == "flag" else "latest")

    def found(self, person: int, at: int, value: float, place: int) -> None:
        """Keep one finding."""
        self.people.append(person)
        self.times.append(at)
        self.values.append(value)
        self.places.append(place)

    def amount(self, value: object, unit: object, place: int, aside: Aside) -> float | None:
        """A measured value in the study's unit, or None and why it was set aside."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            aside.add(f"{self.name}: the value is not a number", place)
            return None
        if not isinstance(unit, str):
            aside.add(f"{self.name}: the value has no unit", place)
            return None
        turn = self._turn(unit)
        number = turn(value) if turn is not None else math.nan
        if turn is None:
            aside.add(f"{self.name}: the unit cannot become {self.source.unit}", place)
            return None
        if not math.isfinite(number) or not self._in_range(number):
            self.out_of_range += 1
            aside.add(f"{self.name}: the value is out of range", place)
            return None
        if turn.factor != 1 or turn.offset != 0:
            self.converted[spelled(unit)] += 1
        return round(number, _DIGITS)

    def _turn(self, unit: str) -> Conversion | None:
        if unit in self._known:
            return self._known[unit]
        turn = conversion(unit, str(self.source.unit), self.source.analyte)
        if len(self._known) < _SPELLINGS_MAX:
            self._known[unit] = turn
        return turn

    def _in_range(self, number: float) -> bool:
        low, high = self.source.low_micro, self.source.high_micro
        above = low is None or number * MICRO >= low
        return above and (high is None or number * MICRO <= high)


Target = tuple[Wanted, float]
"""A field, and the value a record's own code gives it (a category's position, else 0)."""


class CodeIndex:
    """From a code to what it is wanted for."""

    def __init__(self) -> None:
        self._exact: dict[str, list[Target]] = {}
        self._begins: dict[str, list[Target]] = {}
        self._lengths: dict[str, tuple[int, ...]] = {}
        self.stated: list[tuple[str, str, Target]] = []
        """(system, code as stated, target) of all."""

    def add(self, codes: CodeSet, target: Target) -> None:
        """Want every one of `codes` for `target`."""
        for system, listed in codes.items():
            for code in listed:
                self.stated.append((system, code, target))
                key = f"{system} {plain(system, code.removesuffix('*'))}"
                table = self._begins if code.endswith("*") else self._exact
                table.setdefault(key, []).append(target)
                if code.endswith("*"):
                    lengths = {*self._lengths.get(system, ()), len(key)}
                    self._lengths[system] = tuple(sorted(lengths))

    def find(self, system: str, code: str) -> list[Target]:
        """What a record with this code is wanted for."""
        key = f"{system} {plain(system, code)}"
        found = self._exact.get(key, [])
        for length in self._lengths.get(system, ()):
            if length <= len(key):
                found = found + self._begins.get(key[:length], [])
        return found

    def __bool__(self) -> bool:
        return bool(self.stated)


def plain(system: str, code: str) -> str:
    """A code as it is compared: ICD-10 is written with and without its dot."""
    return code.replace(".", "").upper() if system == "icd10" else code


@dataclass(slots=True)
class Question:
    """All that a study asks of records."""

    fields: list[Wanted]
    label: Wanted
    index: Wanted
    by_code: dict[str, CodeIndex]
    """table → codes → fields."""
    encounters: list[Wanted]
    """Fields that every encounter is a finding for."""

    @property
    def every(self) -> Iterator[Wanted]:
        """Every field that findings are kept for."""
        yield from (*self.fields, self.label, self.index)

    @property
    def seen_until_day(self) -> int | None:
        """How long a patient must be followed to count as without the outcome."""
        source = self.label.source
        return source.seen_until_day if isinstance(source, LabelSource) else None


def question(study: Study) -> Question:
    """What `study`, which has an index, asks."""
    by_code: dict[str, CodeIndex] = {
        table: CodeIndex() for table in ("condition", "observation", "medication")
    }
    fields = []
    for feature in study.schema_.features:
        if feature.source is not None:
            wanted = Wanted(name=feature.name, kind=feature.kind, source=feature.source)
            if isinstance(feature, CategoryFeature) and feature.source.values is not None:
                wanted.categories = sorted(feature.source.values)
            fields.append(wanted)
    if study.index is None or study.label.source is None:
        raise ValueError("study: has no index")
    label = Wanted(name=study.label.fields[0], kind="number", source=study.label.source)
    index = _index(study.index, by_code)
    asked = Question(fields=fields, label=label, index=index, by_code=by_code, encounters=[])
    for wanted in (*fields, label):
        _enter(wanted, by_code, asked.encounters)
    if study.index.event.endswith("-encounter"):
        asked.encounters.append(index)
    return asked


def _index(index: Index, by_code: dict[str, CodeIndex]) -> Wanted:
    pick: Literal["latest", "first"] = "latest" if index.event == "last-encounter" else "first"
    wanted = Wanted(name="index", kind="index", source=Source(table="encounter", pick=pick))
    if index.codes is not None and index.table is not None:
        by_code[index.table].add(index.codes, (wanted, 0.0))
    return wanted


def _enter(wanted: Wanted, by_code: dict[str, CodeIndex], encounters: list[Wanted]) -> None:
    source = wanted.source
    if source.table == "encounter":
        encounters.append(wanted)
    elif source.codes is not None:
        by_code[source.table].add(source.codes, (wanted, 0.0))
        if source.values is not None:
            wanted.meanings = CodeIndex()
            for position, name in enumerate(wanted.categories):
                wanted.meanings.add(source.values[name], (wanted, float(position)))
    elif source.values is not None:
        for position, name in enumerate(wanted.categories):
            by_code[source.table].add(source.values[name], (wanted, float(position)))
