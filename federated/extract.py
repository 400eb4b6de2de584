"""One row a patient from her records, whatever order they come in and however they are stored.

A reader (FHIR export, OMOP database) hands over people and findings; `rows` then picks each field's
value in its window. Everything is sorted before it is picked, so the rows depend on the records
alone, never on the order of lines. Times are the hospital's own wall clock, as written.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import Study
from coop.errors import InvalidInputError
from federated.site import RECORD_KEY_CHARACTERS_MAX
from federated.wanted import Aside, Question, Wanted, question

DAY_S: Final = 86_400
AGE_YEARS_MAX: Final = 130
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  (wall clock, see above)
_EARLIEST: Final = int((datetime(1900, 1, 1) - _EPOCH).total_seconds())  # noqa: DTZ001
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_DATE_LETTERS: Final = 10
_TIME_LETTERS_MAX: Final = 40
_DIGITS: Final = 6
_PEOPLE_MAX: Final = 5_000_000
_NOBODY: Final = -1
_NO_DAY: Final = -(2**62)
_FIRST_DAY: Final = -(2**40)
_NOTED_MAX: Final = 100


class NoSourcesError(InvalidInputError):
    """The study reads an imported table: it does not say where in records its fields are."""

    code = "import.no-sources"


class TooManyPatientsError(InvalidInputError):
    """More patients than one import may bring."""

    code = "import.too-many-patients"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who a patient is, as far as a study may ask."""

    record_key: str
    sex: str | None
    born: str | None
    """`1950-04-12`, or to the month or year as far as it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cohort:
    """Everybody, by number."""

    whose: NDArray[np.int64]
    """The number a person's row goes by (two ids may be one person), or nobody."""
    people: list[Person | None]
    born_at: NDArray[np.int64]
    days: NDArray[np.int64]
    """Each one's index day."""


@dataclass(slots=True)
class Extractor:
    """Collects a study's findings; `rows` when all records were handed over.

    Args:
        study: Has an index and a source for every field.
        now: UTC seconds; what is dated a day later is in error.
    """

    study: Study
    now: int
    asked: Question = field(init=False)
    aside: Aside = field(default_factory=Aside)
    repeated: int = 0
    """People and findings that stood twice, exactly alike; the second counts for nothing."""
    without_index: int = 0
    merged: int = 0
    """Patients who stood under more than one id and are one row."""
    _numbers: dict[str, int] = field(default_factory=dict)
    _people: list[Person | None] = field(default_factory=list)
    _conflicts: set[int] = field(default_factory=set)
    _last: "array[int]" = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        if self.study.index is None:
            raise NoSourcesError("study: no field says where its values come from; import a CSV")
        self.asked = question(self.study)

    def number_of(self, reference: str) -> int:
        """A number for a person, by whatever id the records use; she may be told later or never."""
        number = self._numbers.get(reference)
        if number is None:
            number = len(self._people)
            if number >= _PEOPLE_MAX:
                raise TooManyPatientsError(f"more than {_PEOPLE_MAX} patients; split the export")
            self._numbers[reference] = number
            self._people.append(None)
            self._last.append(_EARLIEST)
        return number

    def person(self, reference: str, told: Person, place: int) -> None:
        """Who stands behind a reference."""
        key = told.record_key
        if not key or len(key) > RECORD_KEY_CHARACTERS_MAX or not key.isprintable():
            self.aside.add("patient: has no usable patient number", place)
            return
        born = told.born if self._plausible(told.born, place) else None
        person = Person(record_key=key, sex=told.sex, born=born)
        number = self.number_of(reference)
        known = self._people[number]
        if known is None:
            self._people[number] = person
        elif known == person:
            self.repeated += 1
        elif number not in self._conflicts:
            self._conflicts.add(number)
            self.aside.add("patient: stands twice with different content", place)

    def time_of(self, text: object, place: int) -> int | None:
        """Seconds of a record's time, or None and why it was set aside."""
        at = instant(text) if isinstance(text, str) else None
        if at is None:
            self.aside.add("date: missing, or not a whole date", place)
            return None
        if not _EARLIEST <= at <= self.now + DAY_S:
            self.aside.add("date: before 1900 or in the future", place)
            return None
        return at

    def seen(self, number: int, at: int) -> None:
        """A record of any kind shows that the patient was followed until then."""
        self._last[number] = max(self._last[number], at)

    def rows(self) -> Iterator[tuple[str, dict[str, float | str | bool]]]:
        """(record key, row) of every patient with an index day, in the order of the keys.

        A field without a value is absent.
        """
        cohort = self._cohort()
        columns = {
            wanted.name: self._column(wanted, cohort)
            for wanted in (*self.asked.fields, self.asked.label)
            if wanted.source.table != "patient"
        }
        last = np.full(len(cohort.people), _EARLIEST, dtype=np.int64)
        known = cohort.whose != _NOBODY
        np.maximum.at(last, cohort.whose[known], np.asarray(self._last)[known])
        everybody = [(person.record_key, n) for n, person in enumerate(cohort.people) if person]
        order = sorted((key, n) for key, n in everybody if cohort.days[n] != _NO_DAY)
        self.without_index = len(everybody) - len(order)
        for key, number in order:
            day = int(cohort.days[number])
            row = self._row(cohort.people[number], number, day, columns)
            until = self.asked.seen_until_day
            unseen = until is not None and last[number] // DAY_S - day < until
            if unseen and not row.get(self.asked.label.name):
                # Nobody knows: she was not seen again. An outcome that was seen is known.
                row.pop(self.asked.label.name, None)
            yield key, row

    def _row(
        self, person: Person | None, number: int, day: int, columns: dict[str, NDArray[np.float64]]
    ) -> dict[str, float | str | bool]:
        row: dict[str, float | str | bool] = {}
        for wanted in (*self.asked.fields, self.asked.label):
            if wanted.source.attribute == "sex":
                value: float | str | bool | None = person.sex if person else None
            elif wanted.source.attribute == "age_years":
                value = _age(person.born if person else None, day)
            else:
                value = _value(wanted, float(columns[wanted.name][number]))
            if value is not None:
                row[wanted.name] = value
        return row

    def _cohort(self) -> _Cohort:
        by_key: dict[str, list[int]] = {}
        for number, person in enumerate(self._people):
            if person is not None:
                by_key.setdefault(person.record_key, []).append(number)
        whose = np.full(len(self._people), _NOBODY, dtype=np.int64)
        people: list[Person | None] = [None] * len(self._people)
        for numbers in by_key.values():
            told = {self._people[number] for number in numbers}
            if len(told) > 1:
                self.aside.add("patient: one patient number stands for two people", 0)
            elif not self._conflicts.intersection(numbers):
                whose[numbers] = numbers[0]
                people[numbers[0]] = told.pop()
                self.merged += len(numbers) > 1
        born_at = np.array([_born_at(person) for person in people], dtype=np.int64)
        days = np.full(len(people), _NO_DAY, dtype=np.int64)
        cohort = _Cohort(whose=whose, people=people, born_at=born_at, days=days)
        index = self.study.index
        if index is not None and index.at is not None:
            days[:] = index.at // DAY_S
            return cohort
        who, times, _ = self._sorted(self.asked.index, cohort)
        starts, ends = _groups(who)
        at = ends - 1 if self.asked.index.pick == "latest" else starts
        days[who[at]] = times[at] // DAY_S
        return cohort

    def _column(self, wanted: Wanted, cohort: _Cohort) -> NDArray[np.float64]:
        """The picked value of every person; NaN where there is none."""
        column = np.full(len(cohort.people), np.nan)
        who, times, values = self._sorted(wanted, cohort)
        days = cohort.days[who]
        since = np.where(days == _NO_DAY, _NO_DAY, times // DAY_S - np.maximum(days, _FIRST_DAY))
        inside = (since >= wanted.source.from_day) & (since <= wanted.source.to_day)
        who, values = who[inside], values[inside]
        starts, ends = _groups(who)
        if len(starts):
            column[who[starts]] = _picked(wanted.pick, values, starts, ends)
        return column

    def _sorted(
        self, wanted: Wanted, cohort: _Cohort
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Findings of known people, none twice, by person, time and value."""
        who = cohort.whose[np.asarray(wanted.people, dtype=np.int64)]
        times = np.asarray(wanted.times, dtype=np.int64)
        values = np.asarray(wanted.values, dtype=np.float64)
        places = np.asarray(wanted.places, dtype=np.int64)
        self._note(wanted, "its patient is not in the export, or set aside", places[who == _NOBODY])
        early = (who != _NOBODY) & (times < cohort.born_at[who])
        self._note(wanted, "dated before the patient's birth", places[early])
        kept = (who != _NOBODY) & ~early
        who, times, values = who[kept], times[kept], values[kept]
        order = np.lexsort((values, times, who))
        who, times, values = who[order], times[order], values[order]
        again = np.zeros(len(who), dtype=np.bool_)
        again[1:] = (who[1:] == who[:-1]) & (times[1:] == times[:-1]) & (values[1:] == values[:-1])
        self.repeated += int(again.sum())
        return who[~again], times[~again], values[~again]

    def _note(self, wanted: Wanted, why: str, places: NDArray[np.int64]) -> None:
        for place in places[:_NOTED_MAX]:
            self.aside.add(f"{wanted.name}: {why}", int(place))
        if len(places) > _NOTED_MAX:
            self.aside.counts[f"{wanted.name}: {why}"] += len(places) - _NOTED_MAX

    def _plausible(self, born: str | None, place: int) -> bool:
        if born is None:
            return False
        day = _birthday(born)
        if day is None or not 0 <= self.now // DAY_S - day <= AGE_YEARS_MAX * 366:
            self.aside.add("birth date: not one, in the future or too long ago", place)
            return False
        return True

    def facts(self) -> dict[str, Any]:
        """What happened to findings, by field, for the hospital's eyes."""
        return {
            wanted.name: {
                "records": len(wanted.people),
                "converted": dict(sorted(wanted.converted.items())),
                "out_of_range": wanted.out_of_range,
            }
            for wanted in (*self.asked.fields, self.asked.label)
        }


def _picked(
    pick: str, values: NDArray[np.float64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One value per person of findings in order; at one instant `latest` takes the highest."""
    match pick:
        case "latest":
            return values[ends - 1]
        case "first":
            return values[starts]
        case "lowest":
            return np.asarray(np.minimum.reduceat(values, starts))
        case "highest":
            return np.asarray(np.maximum.reduceat(values, starts))
        case "mean":
            parts = zip(starts, ends, strict=True)
            return np.array([math.fsum(values[a:b]) / (b - a) for a, b in parts])
        case _:  # count, and ever
            return (ends - starts).astype(np.float64)


@lru_cache(maxsize=65_536)  # an export repeats its times
def instant(text: str) -> int | None:
    """Seconds since 1970 of `2020-05-01` or `2020-05-01T10:00:00Z` by its own clock; or None."""
    if not _DATE_LETTERS <= len(text) <= _TIME_LETTERS_MAX or (text[4], text[7]) != ("-", "-"):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return math.floor((at.replace(tzinfo=None) - _EPOCH).total_seconds())


def _groups(who: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each person's findings begin and end."""
    if not len(who):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(who)) + 1]).astype(np.int64)
    return starts, np.append(starts[1:], len(who)).astype(np.int64)


def _value(wanted: Wanted, picked: float) -> float | str | bool | None:
    missing = math.isnan(picked)
    if wanted.kind == "flag":
        return not missing
    if wanted.pick == "count":
        return 0.0 if missing else picked
    if missing:
        return None
    return wanted.categories[int(picked)] if wanted.kind == "category" else round(picked, _DIGITS)


def _birthday(born: str) -> int | None:
    """The day of a birth, counted from 1970; to the month it is the 15th, to the year 1 July."""
    text = {4: f"{born}-07-01", 7: f"{born}-15"}.get(len(born), born)
    try:
        return date.fromisoformat(text).toordinal() - _EPOCH_ORDINAL if text[4:5] == "-" else None
    except ValueError:
        return None


def _born_at(person: Person | None) -> int:
    """The first second of the birth; what is dated before it cannot be hers."""
    if person is None or person.born is None:
        return _EARLIEST
    year_only = 4
    first = {year_only: f"{person.born}-01-01", 7: f"{person.born}-01"}.get(len(person.born))
    return (_birthday(first or person.born) or 0) * DAY_S


def _age(born: str | None, day: int) -> float | None:
    """Whole years on `day`."""
    birthday = None if born is None else _birthday(born)
    if birthday is None or day < birthday:
        return None
    was = date.fromordinal(birthday + _EPOCH_ORDINAL)
    then = date.fromordinal(day + _EPOCH_ORDINAL)
    return float(then.year - was.year - ((then.month, then.day) < (was.month, was.day)))
