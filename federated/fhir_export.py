"""A FHIR R4 bulk export: a folder of NDJSON files, read line by line, whatever their order.

Patient, Condition, Observation, MedicationRequest (and the Medication it may name) and Encounter
are read; other resources are counted. A line that is no such resource is set aside with its reason
and stops nothing. A file that cannot be read to its end stops the import, for half an export would
make wrong rows.
"""

import gzip
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from coop.documents.source import SEXES
from coop.errors import NotFoundError
from federated.extract import Extractor, Person
from federated.importers import UnreadableFileError
from federated.wanted import PLACES, CodeIndex, Target, Wanted

LINE_BYTES_MAX: Final = 2**20  # a resource of these kinds is under 10 kB
FILES_MAX: Final = 10_000
EXPANSION_MAX: Final = 250  # FHIR's text shrinks 20 to 60-fold; a bomb 1,000-fold
_SMALL: Final = 2**24  # below it a file may shrink as it likes
_UNPACKED: Final = 2**62
_PENDING_MAX: Final = 5_000_000
_NAME: Final = re.compile(r"[^/\0]+\.ndjson(\.gz)?", re.IGNORECASE)
_UCUM: Final = "http://unitsofmeasure.org"
_SYSTEMS: Final[Mapping[str, str]] = {
    "http://loinc.org": "loinc",
    "http://snomed.info/sct": "snomed",
    "http://hl7.org/fhir/sid/icd-10": "icd10",
    "http://hl7.org/fhir/sid/icd-10-cm": "icd10",
    "http://fhir.de/CodeSystem/bfarm/icd-10-gm": "icd10",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "rxnorm",
    "http://www.whocc.no/atc": "atc",
    "http://fhir.de/CodeSystem/bfarm/atc": "atc",
}
_NOT_SO: Final[Mapping[str, frozenset[str]]] = {
    # resource: statuses with which it says that nothing happened
    "Observation": frozenset({"entered-in-error", "cancelled", "registered"}),
    "MedicationRequest": frozenset({"entered-in-error", "cancelled", "draft"}),
    "Encounter": frozenset({"entered-in-error", "cancelled", "planned"}),
}
_REFUTED: Final = frozenset({"entered-in-error", "refuted"})

Resource = Mapping[str, Any]


@dataclass(slots=True)
class FhirReader:
    """Reads exports into an `Extractor`.

    Args:
        extractor: Where people and findings go.
        identifier: System of the Patient.identifier that holds the patient number; without it the
            patient number is Patient.id.
    """

    extractor: Extractor
    identifier: str | None = None
    read: Counter[str] = field(default_factory=Counter)
    """Resources by type."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Resources that say themselves that they do not count, or are of no asked kind."""
    files: list[str] = field(default_factory=list)
    _medications: dict[str, list[Target]] = field(default_factory=dict)
    _pending: list[tuple[str, int, int, int]] = field(default_factory=list)
    """(medication, person, time, place) of prescriptions whose medication is a resource."""

    def read_folder(self, folder: Path) -> None:
        """Read every `*.ndjson` and `*.ndjson.gz` of the folder itself, in no particular order.

        Raises:
            NotFoundError: There is no such folder.
            UnreadableFileError: A file is broken, or there is none.
        """
        if not folder.is_dir():
            raise NotFoundError(f"{folder}: no such folder")
        names = sorted(entry.name for entry in os.scandir(folder) if _NAME.fullmatch(entry.name))
        if not names or len(names) > FILES_MAX:
            raise UnreadableFileError(f"{folder.name}: holds no .ndjson file, or too many")
        for name in names:
            self._read_file(folder / name)
        if not self.read["Patient"]:
            raise UnreadableFileError(f"{folder.name}: holds no Patient")
        self._resolve()

    def _read_file(self, path: Path) -> None:
        start = len(self.files) * PLACES
        self.files.append(path.name)
        opened = _open(path)
        if opened is None:
            self.extractor.aside.add("file: is a link or no plain file; it was not read", start)
            return
        with opened as plain:
            size = os.fstat(plain.fileno()).st_size
            try:
                if path.suffix.lower() == ".gz":
                    with gzip.GzipFile(fileobj=plain) as unpacked:
                        self._read_lines(unpacked, start, max(_SMALL, size * EXPANSION_MAX))
                else:
                    self._read_lines(plain, start, _UNPACKED)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UnreadableFileError(f"{path.name}: is not whole gzip data") from error
            except _BombError as error:
                raise UnreadableFileError(
                    f"{path.name}: expands more than {EXPANSION_MAX}-fold; no export does"
                ) from error

    def _read_lines(self, file: BinaryIO | gzip.GzipFile, start: int, bytes_max: int) -> None:
        aside, take, loads = self.extractor.aside, self._take, orjson.loads
        left, place = bytes_max, start
        while line := file.readline(LINE_BYTES_MAX + 1):
            place += 1
            left -= len(line)
            if len(line) > LINE_BYTES_MAX:
                aside.add(f"line: longer than {LINE_BYTES_MAX} bytes", place)
                while not line.endswith(b"\n") and (line := file.readline(LINE_BYTES_MAX)):
                    left -= len(line)
                    _check_expansion(left)
                continue
            _check_expansion(left)
            if line.isspace():
                continue
            try:
                resource = loads(line)
            except orjson.JSONDecodeError:
                aside.add("line: is not JSON", place)
                continue
            try:
                take(resource, place)
            # Of a resource whose members have other types than FHIR gives them, any of these.
            except (AttributeError, TypeError, KeyError, IndexError, ValueError):
                aside.add("line: is not a FHIR R4 resource", place)

    def _take(self, resource: Resource, place: int) -> None:
        kind = resource.get("resourceType")
        reader = _READERS.get(kind) if isinstance(kind, str) else None
        if reader is None:
            if not isinstance(kind, str):
                raise TypeError("resourceType")
            self.ignored["other resources"] += 1
            return
        self.read[str(kind)] += 1
        if resource.get("status") in _NOT_SO.get(str(kind), ()):
            self.ignored["cancelled, planned or entered in error"] += 1
            return
        reader(self, resource, place)

    def _patient(self, resource: Resource, place: int) -> None:
        key = self._record_key(resource)
        if resource.get("active") is False and "link" in resource:
            self.ignored["patients replaced by another"] += 1
            return
        sex, born = resource.get("gender"), resource.get("birthDate")
        told = Person(
            record_key=key,
            sex=sex if sex in SEXES else None,
            born=born if isinstance(born, str) else None,
        )
        self.extractor.person(_text(resource["id"]), told, place)

    def _record_key(self, resource: Resource) -> str:
        if self.identifier is None:
            return _text(resource["id"])
        values = {
            entry["value"]
            for entry in resource.get("identifier", [])
            if entry.get("system") == self.identifier
        }
        return _text(values.pop()) if len(values) == 1 else ""

    def _condition(self, resource: Resource, place: int) -> None:
        verification = resource.get("verificationStatus", {}).get("coding", [])
        if any(coding.get("code") in _REFUTED for coding in verification):
            self.ignored["cancelled, planned or entered in error"] += 1
            return
        targets = self._wanted("condition", resource.get("code"))
        onset = resource.get("onsetDateTime") or resource.get("onsetPeriod", {}).get("start")
        # An onset known to the year only says less than the day somebody wrote the diagnosis down.
        whole = isinstance(onset, str) and len(onset) >= len("2020-01-01")
        self._found(targets, resource, onset if whole else resource.get("recordedDate"), place)

    def _medication_request(self, resource: Resource, place: int) -> None:
        if resource.get("doNotPerform") is True:
            self.ignored["cancelled, planned or entered in error"] += 1
            return
        concept, reference = resource.get("medicationCodeableConcept"), None
        if concept is None and "medicationReference" in resource:
            reference = _text(resource["medicationReference"]["reference"])
            if reference.startswith("#"):
                inside = {entry["id"]: entry for entry in resource.get("contained", [])}
                concept, reference = inside[reference[1:]].get("code"), None
        targets = self._wanted("medication", concept)
        if reference is None:
            self._found(targets, resource, resource.get("authoredOn"), place)
            return
        at = self.extractor.time_of(resource.get("authoredOn"), place)
        if at is not None and self.extractor.asked.by_code["medication"]:
            person = self._person(resource)
            if len(self._pending) < _PENDING_MAX:
                self._pending.append((_last_part(reference, "Medication"), person, at, place))

    def _medication(self, resource: Resource, _place: int) -> None:
        targets = self._wanted("medication", resource.get("code"))
        if targets:
            self._medications[_text(resource["id"])] = targets

    def _encounter(self, resource: Resource, place: int) -> None:
        targets: list[Target] = [(wanted, 0.0) for wanted in self.extractor.asked.encounters]
        self._found(targets, resource, resource.get("period", {}).get("start"), place)

    def _observation(self, resource: Resource, place: int) -> None:
        index = self.extractor.asked.by_code["observation"]
        parts: list[tuple[Target, Resource]] = [
            (target, resource) for target in self._wanted("observation", resource.get("code"))
        ]
        for component in resource.get("component", ()):
            parts += [(t, component) for t in _coded(index, component.get("code"))]
        if not parts and self.extractor.asked.seen_until_day is None:
            return
        at = self.extractor.time_of(_effective(resource), place)
        if at is None:
            return
        person = self._person(resource)
        self.extractor.seen(person, at)
        # All are read before one is kept: of a malformed line nothing counts.
        read = [(t[0], self._observed(*t, part, place)) for t, part in parts]
        for wanted, value in read:
            if value is not None:
                wanted.found(person, at, value, place)

    def _observed(
        self, wanted: Wanted, position: float, part: Resource, place: int
    ) -> float | None:
        """What an observation, or a component of it, says for a field."""
        if wanted.meanings is not None:
            meant = _coded(wanted.meanings, part.get("valueCodeableConcept"))
            positions = {position for _wanted, position in meant}
            if len(positions) == 1:
                return positions.pop()
            self.extractor.aside.add(f"{wanted.name}: the coded value is not a known one", place)
            return None
        if not wanted.measured:
            return position
        quantity = part.get("valueQuantity")
        if quantity is None:
            self.extractor.aside.add(f"{wanted.name}: the observation has no quantity", place)
            return None
        if quantity.get("comparator") is not None:
            self.extractor.aside.add(f"{wanted.name}: the value is only a bound", place)
            return None
        ucum = quantity.get("system") == _UCUM and "code" in quantity
        unit = quantity["code"] if ucum else quantity.get("unit", quantity.get("code"))
        return wanted.amount(quantity.get("value"), unit, place, self.extractor.aside)

    def _found(self, targets: list[Target], resource: Resource, time: object, place: int) -> None:
        if not targets and self.extractor.asked.seen_until_day is None:
            return
        at = self.extractor.time_of(time, place)
        if at is None:
            return
        person = self._person(resource)
        self.extractor.seen(person, at)
        for wanted, value in targets:
            wanted.found(person, at, value, place)

    def _person(self, resource: Resource) -> int:
        return self.extractor.number_of(
            _last_part(_text(resource["subject"]["reference"]), "Patient")
        )

    def _wanted(self, table: str, concept: Resource | None) -> list[Target]:
        index = self.extractor.asked.by_code[table]
        return _coded(index, concept) if concept is not None and index else []

    def _resolve(self) -> None:
        """Prescriptions that name a Medication, now that all of these are known."""
        for medication, person, at, place in self._pending:
            for wanted, value in self._medications.get(medication, ()):
                wanted.found(person, at, value, place)
        self._pending.clear()


class _BombError(Exception):
    """A packed file grew beyond what any export does; caught in `_read_file`."""


_READERS: Final[Mapping[str, Callable[[FhirReader, Resource, int], None]]] = {
    "Patient": FhirReader._patient,  # noqa: SLF001  (its own table)
    "Condition": FhirReader._condition,  # noqa: SLF001
    "Observation": FhirReader._observation,  # noqa: SLF001
    "MedicationRequest": FhirReader._medication_request,  # noqa: SLF001
    "Medication": FhirReader._medication,  # noqa: SLF001
    "Encounter": FhirReader._encounter,  # noqa: SLF001
}


def _check_expansion(left: int) -> None:
    if left < 0:
        raise _BombError


def _open(path: Path) -> BinaryIO | None:
    """A plain file of the folder itself; a link could name any file of the machine."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb", buffering=2**18)


def _coded(index: CodeIndex, concept: Resource | None) -> list[Target]:
    """What a concept is wanted for, each field once."""
    found: list[Target] = []
    for coding in () if concept is None else concept.get("coding", ()):
        system = _SYSTEMS.get(coding.get("system"))
        if system is not None:
            found += [t for t in index.find(system, coding.get("code", "")) if t not in found]
    return found


def _effective(resource: Resource) -> object:
    return (
        resource.get("effectiveDateTime")
        or resource.get("effectiveInstant")
        or resource.get("effectivePeriod", {}).get("start")
    )


def _last_part(reference: str, kind: str) -> str:
    """The id in `Patient/1`, `https://server/fhir/Patient/1` or `Patient/1/_history/2`."""
    parts = reference.partition("/_history/")[0].rsplit("/", 2)
    if len(parts) < 2 or parts[-2] != kind or not parts[-1]:  # noqa: PLR2004
        raise ValueError(kind)
    return parts[-1]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 256:  # noqa: PLR2004
        raise ValueError("text")
    return value
