"""Store what an import read: every good row in one transaction, and where the bad ones stood.

The same record key always gets the same pid; the data version goes up exactly when a row is new or
differs; patients who are not in the import stay; an erased one stays away.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import orjson
import sqlalchemy as sa

from federated import quality
from federated.erased import erased_among
from federated.site import (
    Site,
    get_state,
    patient,
    patient_row,
    put_state,
    quarantine,
    site_state,
)

_BATCH: Final = 500
_FILE_LETTERS: Final = 200

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """A refused line: where and why, never what stood there."""

    file: str
    line: int
    reason: str


@dataclass(slots=True, kw_only=True)
class Kept:
    """What an import did. For the hospital's own eyes."""

    rows: int = 0
    """Patients of the import."""
    new: int = 0
    changed: int = 0
    alike: int = 0
    """Patients whose row is exactly another patient's: the same person twice, or chance."""
    data_version: int = 0


def keep(
    site: Site,
    rows: Iterable[tuple[str, Row]],
    *,
    extract: str,
    files: Sequence[str],
    aside: Callable[[], Sequence[Aside]],
) -> Kept:
    """Store the rows of an import and what was set aside.

    Args:
        site: This hospital.
        rows: (record key, row), each key once.
        extract: Which rows these are.
        files: What was read; only the newest import of a file counts in the quarantine.
        aside: What was refused; asked for when all rows were read.
    """
    kept, seen = Kept(), set[bytes]()
    # One transaction: a crash in the middle of an import leaves the version before it.
    with site.database.unit_of_work() as connection:
        version = site_state.c.key == "data_version"
        connection.execute(sa.select(site_state).where(version).with_for_update())  # one at a time
        for batch in _batches(rows):
            _keep_batch(connection, site, batch, extract, (kept, seen))
        _set_aside(connection, files, aside())
        kept.data_version = int(get_state(connection, "data_version") or 0)
        if kept.new or kept.changed:
            kept.data_version += 1
            put_state(connection, "data_version", str(kept.data_version))
            quality.remember(connection, extract, kept.data_version)
    return kept


def look(rows: Iterable[tuple[str, Row]]) -> Kept:
    """What `keep` would read, without storing anything."""
    kept, seen = Kept(), set[bytes]()
    for _key, row in rows:
        kept.rows += 1
        kept.alike += _is_repeated(_written(row), seen)
    return kept


def _batches(rows: Iterable[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
    each = iter(rows)
    while batch := list(islice(each, _BATCH)):
        yield batch


def _keep_batch(
    connection: sa.Connection,
    site: Site,
    batch: Sequence[tuple[str, Row]],
    extract: str,
    told: tuple[Kept, set[bytes]],
) -> None:
    kept, seen = told
    wanted = {site.pid_of(key): (key, _written(row)) for key, row in batch}
    for pid in erased_among(connection, site, wanted):
        del wanted[pid]  # she was erased here: another file does not bring her back
    kept.rows += len(wanted)
    kept.alike += sum(_is_repeated(text, seen) for _key, text in wanted.values())
    known = set(
        connection.scalars(sa.select(patient.c.pid).where(patient.c.pid.in_(sorted(wanted))))
    )
    mine = (patient_row.c.pid.in_(sorted(wanted)), patient_row.c.extract == extract)
    held = {row.pid: row.row for row in connection.execute(sa.select(patient_row).where(*mine))}
    people = [{"pid": pid, "record_key": key} for pid, (key, _) in wanted.items()]
    if unknown := [person for person in people if person["pid"] not in known]:
        connection.execute(sa.insert(patient), unknown)
    fresh = [
        {"pid": pid, "extract": extract, "row": text}
        for pid, (_, text) in wanted.items()
        if pid not in held
    ]
    if fresh:
        connection.execute(sa.insert(patient_row), fresh)
    changed = [
        {"this": pid, "row": text}
        for pid, (_, text) in wanted.items()
        if pid in held and held[pid] != text
    ]
    if changed:
        connection.execute(
            sa.update(patient_row).where(
                patient_row.c.pid == sa.bindparam("this"), patient_row.c.extract == extract
            ),
            changed,
        )
    kept.new += len(fresh)
    kept.changed += len(changed)


def _written(row: Row) -> str:
    return orjson.dumps(row, option=orjson.OPT_SORT_KEYS).decode()


def _is_repeated(text: str, seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
    repeated = digest in seen
    seen.add(digest)
    return repeated


def _set_aside(connection: sa.Connection, files: Sequence[str], bad: Sequence[Aside]) -> None:
    # A mended line leaves the quarantine.
    names = [name[-_FILE_LETTERS:] for name in files]
    for start in range(0, len(names), _BATCH):
        some = names[start : start + _BATCH]
        connection.execute(sa.delete(quarantine).where(quarantine.c.file.in_(some)))
    if bad:
        connection.execute(
            sa.insert(quarantine),
            [
                {"file": entry.file[-_FILE_LETTERS:], "line": entry.line, "reason": entry.reason}
                for entry in bad
            ],
        )
