"""Read patients' rows at their hospital: by pid, in the order of the pids."""

from collections.abc import Iterable
from typing import Final

import orjson
import sqlalchemy as sa

from federated.site import patient, patient_row

_BATCH: Final = 500  # pids in one statement; SQLite allows 32,766 parameters


def rows_of(connection: sa.Connection, pids: Iterable[str]) -> list[tuple[str, dict[str, object]]]:
    """(pid, row) of each of `pids` that has a row here, sorted by pid."""
    wanted = sorted(set(pids))
    found: list[tuple[str, dict[str, object]]] = []
    for start in range(0, len(wanted), _BATCH):
        some = wanted[start : start + _BATCH]
        query = (
            sa.select(patient_row.c.pid, patient_row.c.row)
            .where(patient_row.c.pid.in_(some))
            .order_by(patient_row.c.pid)
        )
        found += [(str(pid), orjson.loads(row)) for pid, row in connection.execute(query)]
    return found


def all_pids(connection: sa.Connection) -> list[str]:
    """Every pid this hospital holds a row of, sorted."""
    query = sa.select(patient_row.c.pid).order_by(patient_row.c.pid)
    return [str(pid) for pid in connection.scalars(query)]


def pid_of_record(connection: sa.Connection, record_key: str) -> str | None:
    """The pid of an imported patient number; None if it was never imported."""
    query = sa.select(patient.c.pid).where(patient.c.record_key == record_key)
    pid = connection.scalar(query)
    return None if pid is None else str(pid)
