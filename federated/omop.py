"""An OMOP CDM 5.3 or 5.4 database, read and never written: DuckDB, SQLite, files or PostgreSQL.

Codes of the study are looked up in the CDM's own `concept` table, and both the standard and the
source concept of a record count. Measurements and observations are one kind of record here. What
the CDM does not say (a unit, a whole date) is missing, not guessed.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final

from coop.errors import InvalidInputError, Kind
from federated.extract import Extractor, Person
from federated.omop_store import Store, open_store
from federated.wanted import PLACES, CodeIndex, Target, Wanted

_VOCABULARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "loinc": ("LOINC",),
    "snomed": ("SNOMED",),
    "icd10": ("ICD10", "ICD10CM", "ICD10GM"),
    "rxnorm": ("RxNorm", "RxNorm Extension"),
    "atc": ("ATC",),
}
_SEXES: Final = {8507: "male", 8532: "female"}
_EQUAL: Final = 4172703
"""The concept of `=`; a measurement with another operator is only a bound."""


class VocabularyMissingError(InvalidInputError):
    """The CDM has no concept table, so the study's codes cannot be found in it."""

    code = "import.vocabulary-missing"
    kind = Kind.UNPROCESSABLE


@dataclass(frozen=True, slots=True)
class _Events:
    """A table of records: how its columns are called."""

    kind: str
    table: str
    concept: str
    source: str
    day: str
    time: str
    valued: bool = False


_EVENTS: Final = (
    _Events(
        "condition", "condition_occurrence", "condition_concept_id",
        "condition_source_concept_id", "condition_start_date", "condition_start_datetime",
    ),
    _Events(
        "medication", "drug_exposure", "drug_concept_id", "drug_source_concept_id",
        "drug_exposure_start_date", "drug_exposure_start_datetime",
    ),
    _Events(
        "observation", "measurement", "measurement_concept_id", "measurement_source_concept_id",
        "measurement_date", "measurement_datetime", valued=True,
    ),
    _Events(
        "observation", "observation", "observation_concept_id", "observation_source_concept_id",
        "observation_date", "observation_datetime", valued=True,
    ),
)  # fmt: skip

Row = Mapping[str, Any]


@dataclass(slots=True)
class OmopReader:
    """Reads a CDM into an `Extractor`.

    Args:
        extractor: Where people and findings go.
        by_person_id: The patient number is `person_id`; `person_source_value` by default.
    """

    extractor: Extractor
    by_person_id: bool = False
    read: Counter[str] = field(default_factory=Counter)
    """Rows by table; of records, those that the study asks for."""
    tables: list[str] = field(default_factory=list)
    unknown_codes: dict[str, list[str]] = field(default_factory=dict)
    """Codes of the study that the CDM's vocabulary does not hold, by field."""
    _units: dict[int, str] = field(default_factory=dict)
    _meanings: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of a category of observations: value concept → position."""

    def read_database(self, where: str) -> None:
        """Read everything the study asks for.

        Raises:
            NotFoundError: There is nothing there.
            UnreadableFileError: It is no CDM.
            VocabularyMissingError: The study names codes that are no concept ids.
        """
        with ExitStack() as stack:
            store = stack.enter_context(open_store(where))
            asked = self.extractor.asked
            self._people(store)
            self._encounters(store)
            self._units = _units(store)
            for wanted in asked.every:
                if wanted.meanings is not None:
                    found = self._concepts(store, wanted.meanings)
                    self._meanings[wanted.name] = {c: targets[0][1] for c, targets in found.items()}
            concepts = {kind: self._concepts(store, index) for kind, index in asked.by_code.items()}
            for events in _EVENTS:
                self._records(store, events, concepts[events.kind])

    def _people(self, store: Store) -> None:
        names = ("person_id", "gender_concept_id", "year_of_birth", "month_of_birth")
        start = self._start("person")
        columns = (*names, "day_of_birth", "person_source_value")
        for place, row in enumerate(store.rows("person", columns), start=start + 1):
            self.read["person"] += 1
            number = _reference(row["person_id"])
            key = number if self.by_person_id else row["person_source_value"]
            if number is None:
                self.extractor.aside.add("patient: has no person_id", place)
                continue
            told = Person(
                record_key="" if key is None else str(key),
                sex=_SEXES.get(_whole(row["gender_concept_id"]) or 0),
                born=_born(row),
            )
            self.extractor.person(number, told, place)

    def _encounters(self, store: Store) -> None:
        asked = self.extractor.asked
        if not asked.encounters and asked.seen_until_day is None:
            return
        start = self._start("visit_occurrence")
        columns = ("person_id", "visit_start_date", "visit_start_datetime")
        for place, row in enumerate(store.rows("visit_occurrence", columns), start=start + 1):
            self.read["visit_occurrence"] += 1
            when = row["visit_start_datetime"] or row["visit_start_date"]
            at = self.extractor.time_of(_time(when), place)
            if at is not None:
                person = self.extractor.number_of(_reference(row["person_id"]) or "")
                self.extractor.seen(person, at)
                for wanted in asked.encounters:
                    wanted.found(person, at, 0.0, place)

    def _records(self, store: Store, events: _Events, concepts: dict[int, list[Target]]) -> None:
        start = self._start(events.table)
        columns = ["person_id", events.concept, events.source, events.day, events.time]
        if events.valued:
            columns += ["value_as_number", "value_as_concept_id", "unit_concept_id"]
            columns += ["unit_source_value", "operator_concept_id"]
        # Without this every record shows only that its patient was still seen.
        only = None if self.extractor.asked.seen_until_day is not None else set(concepts)
        chosen = store.rows(events.table, columns, (events.concept, events.source), only)
        for place, row in enumerate(chosen, start=start + 1):
            self.read[events.table] += 1
            at = self.extractor.time_of(_time(row[events.time] or row[events.day]), place)
            if at is None:
                continue
            person = self.extractor.number_of(_reference(row["person_id"]) or "")
            self.extractor.seen(person, at)
            for wanted, position in _targets(row, events, concepts):
                value = self._observed(wanted, position, row, place)
                if value is not None:
                    wanted.found(person, at, value, place)

    def _observed(self, wanted: Wanted, position: float, row: Row, place: int) -> float | None:
        """What a record says for a field."""
        aside = self.extractor.aside
        if wanted.meanings is not None:
            meant = self._meanings[wanted.name].get(_whole(row["value_as_concept_id"]) or 0)
            if meant is None:
                aside.add(f"{wanted.name}: the coded value is not a known one", place)
            return meant
        if not wanted.measured:
            return position
        if (_whole(row["operator_concept_id"]) or _EQUAL) != _EQUAL:
            aside.add(f"{wanted.name}: the value is only a bound", place)
            return None
        unit = self._units.get(_whole(row["unit_concept_id"]) or 0) or row["unit_source_value"]
        return wanted.amount(_number(row["value_as_number"]), unit, place, aside)

    def _concepts(self, store: Store, index: CodeIndex) -> dict[int, list[Target]]:
        """Concept → what a record with it is wanted for."""
        found: dict[int, list[Target]] = {}
        for system, code, target in index.stated:
            if system == "omop":
                concepts = [int(code)] if code.isdigit() else []
            else:
                concepts = self._looked_up(store, system, code)
            if not concepts:
                self.unknown_codes.setdefault(target[0].name, []).append(f"{system} {code}")
            for concept in concepts:
                targets = found.setdefault(concept, [])
                if target not in targets:
                    targets.append(target)
        return found

    def _looked_up(self, store: Store, system: str, code: str) -> list[int]:
        if not store.has("concept"):
            raise VocabularyMissingError(
                "concept: the CDM lacks this table; name the study's codes as omop concepts"
            )
        return store.concepts(_VOCABULARIES[system], code)

    def _start(self, table: str) -> int:
        self.tables.append(table)
        return (len(self.tables) - 1) * PLACES


def _targets(row: Row, events: _Events, concepts: dict[int, list[Target]]) -> list[Target]:
    """What a record is wanted for, by its standard or its source concept, each once."""
    found: list[Target] = []
    for column in (events.concept, events.source):
        concept = _whole(row[column])
        found += [t for t in concepts.get(concept or 0, ()) if t not in found]
    return found


def _units(store: Store) -> dict[int, str]:
    if not store.has("concept"):
        return {}
    columns = ("concept_id", "concept_code", "vocabulary_id")
    rows: Iterator[Row] = store.rows("concept", columns)
    codes = ((_whole(row["concept_id"]), row) for row in rows if row["vocabulary_id"] == "UCUM")
    return {concept: str(row["concept_code"]) for concept, row in codes if concept}


def _born(row: Row) -> str | None:
    """`1950`, `1950-04` or `1950-04-12`, as far as it is known."""
    parts = [_whole(row[f"{name}_of_birth"]) for name in ("year", "month", "day")]
    known = parts[: parts.index(None)] if None in parts else parts
    return "-".join(f"{part:02d}" for part in known if part is not None) or None


def _reference(value: object) -> str | None:
    """A person_id, the same whatever type a table gives its column."""
    number = _whole(value)
    return str(number) if number is not None else value or None if isinstance(value, str) else None


def _time(value: object) -> str | None:
    match value:
        case datetime():
            return value.replace(tzinfo=None).isoformat()
        case date():
            return value.isoformat()
        case str():
            return value.strip()
        case _:
            return None


def _whole(value: object) -> int | None:
    """An id or a part of a date, whatever the column's type; None for none."""
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def _number(value: object) -> float | None:
    turn: Callable[[Any], float] = float
    try:
        number = None if value is None or isinstance(value, bool) else turn(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None
