"""Bring a hospital's table in: every line is checked, a bad line is set aside, none is guessed.

CSV or Parquet, one line a patient. A data dictionary says what may stand in a column; the bundled
one is `federated/data/dictionary.json`.
"""

import csv
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coop.errors import InvalidInputError, Kind, NotFoundError
from federated import parquet
from federated.data import FOLDER
from federated.intake import Aside, keep, look
from federated.records import TABLE
from federated.site import RECORD_KEY_CHARACTERS_MAX, Site

FILE_BYTES_MAX: Final = 2**30  # a million patients with 200 fields are about 1 GB
ROWS_MAX: Final = 5_000_000
LINE_CHARACTERS_MAX: Final = 65_536  # 256 fields of 200 characters are 51,200
COLUMNS_MAX: Final = 1024
QUARANTINED_MAX: Final = 1000  # kept per file; a file with more is another format, not bad luck

Value = float | str | bool


class UnreadableFileError(InvalidInputError):
    """The file as a whole cannot be an extract: empty, too large, not text, wrong header."""

    code = "import.unreadable-file"
    kind = Kind.UNPROCESSABLE


class FieldRule(BaseModel):
    """What one column may hold. An empty cell is always allowed and means missing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["number", "category", "flag"]
    min: float = -math.inf
    max: float = math.inf
    values: list[str] = Field(default_factory=list)


class Dictionary(BaseModel):
    """The columns of an extract: the patient's number and the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_: str = Field(alias="class")
    record_key: str
    fields: dict[str, FieldRule]

    @classmethod
    def load(cls, path: Path = FOLDER / "dictionary.json") -> "Dictionary":
        """Read a dictionary file; the bundled cardiology one by default.

        Raises:
            UnreadableFileError: It is not a data dictionary.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise UnreadableFileError(f"{path.name}: not a data dictionary") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A refused line: where and why, never what stood there."""

    line: int
    reason: str


@dataclass(slots=True)
class Extract:
    """A read file: the patients' values by record key, and what was set aside."""

    patients: dict[str, dict[str, Value]] = field(default_factory=dict)
    quarantined: list[Quarantined] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did. For the hospital's own eyes."""

    rows: int
    """Patients read from the file."""
    new: int
    changed: int
    alike: int
    """Patients whose row is exactly another's: the same person twice, or chance."""
    quarantined: list[Quarantined]
    data_version: int


def read_table(path: Path, dictionary: Dictionary) -> Extract:
    """Read and check a `.parquet` file, or else a CSV file, without storing anything.

    Raises:
        UnreadableFileError: The file as a whole cannot be an extract.
    """
    if path.suffix.lower() == ".parquet":
        return read_parquet(path, dictionary)
    return read_csv(path, dictionary)


def read_csv(path: Path, dictionary: Dictionary) -> Extract:
    """Read and check an extract without storing anything.

    UTF-8 (a byte order mark is fine), a header line, one line per patient: no cell holds a line
    break, so a quote that is never closed spoils its own line only. A line with a wrong number of
    cells, a value outside its rule, or a patient who stood before is quarantined.

    Raises:
        UnreadableFileError: The file as a whole cannot be an extract.
    """
    _check_file(path)
    extract = Extract()
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            header = _header(file, dictionary)
            for number, line in enumerate(_lines(file), start=2):
                _take(extract, header, (number, line), dictionary)
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{path.name}: must be UTF-8 text") from error
    return extract


def read_parquet(path: Path, dictionary: Dictionary) -> Extract:
    """The same for a Parquet file: what a cell may hold is judged as if it were written in a CSV.

    Raises:
        UnreadableFileError: The file as a whole cannot be an extract.
    """
    _check_file(path)
    extract = Extract()
    try:
        with parquet.table(path) as (names, rows):
            header = _checked_header([name.strip() for name in names], dictionary)
            for number, cells in enumerate(rows, start=2):
                _take(extract, header, (number, cells), dictionary)
    except parquet.NotParquetError as error:
        raise UnreadableFileError(f"{path.name}: is not a Parquet file, or damaged") from error
    return extract


def import_csv(
    site: Site, path: Path, dictionary: Dictionary | None = None, *, dry_run: bool = False
) -> ImportReport:
    """Store a table: all good lines in one transaction, the bad ones in quarantine.

    Args:
        site: This hospital.
        path: CSV, or Parquet by its suffix.
        dictionary: The bundled one by default.
        dry_run: Read and check only.

    Raises:
        UnreadableFileError: Nothing was stored.
    """
    extract = read_table(path, dictionary or Dictionary.load())
    rows = extract.patients.items()
    if dry_run:
        kept = look(rows)
        kept.data_version = site.data_version()
    else:
        bad = [
            Aside(file=path.name, line=entry.line, reason=entry.reason)
            for entry in extract.quarantined
        ]
        kept = keep(site, rows, extract=TABLE, files=[path.name], aside=lambda: bad)
    return ImportReport(
        rows=kept.rows,
        new=kept.new,
        changed=kept.changed,
        alike=kept.alike,
        quarantined=extract.quarantined,
        data_version=kept.data_version,
    )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    if size == 0:
        raise UnreadableFileError(f"{path.name}: is empty")
    if size > FILE_BYTES_MAX:
        raise UnreadableFileError(f"{path.name}: larger than {FILE_BYTES_MAX} bytes; split it")


def _lines(file: TextIO) -> Iterator[str]:
    """The lines; one without end is refused before it fills the memory."""
    while line := file.readline(LINE_CHARACTERS_MAX + 1):
        if len(line) > LINE_CHARACTERS_MAX:
            raise UnreadableFileError(f"a line is longer than {LINE_CHARACTERS_MAX} characters")
        yield line


def _cells(line: str) -> list[str]:
    if "\0" in line:
        raise _BadLineError("holds NUL characters")
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
    except csv.Error as error:
        raise _BadLineError("is not CSV: a quote is not closed or stands in a cell") from error


def _header(file: TextIO, dictionary: Dictionary) -> list[str]:
    try:
        names = _cells(next(_lines(file), ""))
    except _BadLineError as error:
        raise UnreadableFileError(f"header: {error}") from error
    return _checked_header(names, dictionary)


def _checked_header(names: list[str], dictionary: Dictionary) -> list[str]:
    if len(names) > COLUMNS_MAX:
        raise UnreadableFileError(f"header: more than {COLUMNS_MAX} columns")
    if dictionary.record_key not in names:
        raise UnreadableFileError(f"header: lacks the column {dictionary.record_key!r}")
    if len(set(names)) != len(names):
        raise UnreadableFileError("header: a column stands twice")
    unknown = sorted(set(names) - set(dictionary.fields) - {dictionary.record_key})
    if unknown:
        raise UnreadableFileError(
            f"header: {unknown[0][:64]!r} is not in the data dictionary; rename or describe it"
        )
    return names


def _take(
    extract: Extract,
    header: list[str],
    numbered: tuple[int, str | list[str]],
    dictionary: Dictionary,
) -> None:
    """Put one line into `extract`: among the patients, or in quarantine."""
    number, line = numbered
    if isinstance(line, str) and not line.strip():
        return  # an empty line at the end of a file is not a patient
    if len(extract.patients) >= ROWS_MAX:
        raise UnreadableFileError(f"more than {ROWS_MAX} patients; split the file")
    try:
        cells = _cells(line) if isinstance(line, str) else line
        key, values = _parsed(header, cells, dictionary, extract.patients)
    except _BadLineError as bad:
        if len(extract.quarantined) >= QUARANTINED_MAX:
            raise UnreadableFileError(
                f"more than {QUARANTINED_MAX} bad lines; the last, line {number}: {bad}"
            ) from bad
        extract.quarantined.append(Quarantined(line=number, reason=str(bad)))
    else:
        extract.patients[key] = values


class _BadLineError(Exception):
    """Why one line is set aside; caught in `_take`, never leaves this module."""


def _parsed(
    header: list[str], cells: list[str], dictionary: Dictionary, earlier: Container[str]
) -> tuple[str, dict[str, Value]]:
    if len(cells) != len(header):
        raise _BadLineError(f"has {len(cells)} cells instead of {len(header)}")
    texts = dict(zip(header, cells, strict=True))
    key = texts.pop(dictionary.record_key)
    if not key or len(key) > RECORD_KEY_CHARACTERS_MAX or not key.isprintable():
        raise _BadLineError(
            f"{dictionary.record_key}: must have 1 to {RECORD_KEY_CHARACTERS_MAX} characters"
        )
    if key in earlier:
        raise _BadLineError(f"{dictionary.record_key}: stood on an earlier line")
    return key, {
        name: _value(name, text, dictionary.fields[name]) for name, text in texts.items() if text
    }


def _value(name: str, text: str, rule: FieldRule) -> Value:
    match rule.kind:
        case "number":
            return _number(name, text, rule)
        case "category":
            value = text.lower()
            if value not in rule.values:
                raise _BadLineError(f"{name}: must be one of {', '.join(rule.values)}")
            return value
        case "flag":
            if text.lower() not in {"true", "false"}:
                raise _BadLineError(f"{name}: must be true or false")
            return text.lower() == "true"


def _number(name: str, text: str, rule: FieldRule) -> float:
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    # NaN and the infinities fail this comparison too: "nan" in a cell is not a number.
    if not (math.isfinite(number) and rule.min <= number <= rule.max):
        raise _BadLineError(f"{name}: must be a number from {rule.min:g} to {rule.max:g}")
    return number
