"""Read patients' rows at their hospital: by pid, in the order of the pids.

Every study has its rows (`Study.extract`): those of the imported table, or those extracted for it.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import orjson
import sqlalchemy as sa

from federated.site import patient, patient_row

TABLE: Final = ""
"""The extract that is the imported table."""
_BATCH: Final = 500  # pids in one statement; SQLite allows 32,766 parameters


def rows_of(
    connection: sa.Connection, pids: Iterable[str], extract: str = TABLE
) -> list[tuple[str, dict[str, object]]]:
    """(pid, row) of each of `pids` that has a row in the extract, sorted by pid."""
    wanted = sorted(set(pids))
    found: list[tuple[str, dict[str, object]]] = []
    for start in range(0, len(wanted), _BATCH):
        some = wanted[start : start + _BATCH]
        query = (
            sa.select(patient_row.c.pid, patient_row.c.row)
            .where(patient_row.c.pid.in_(some), patient_row.c.extract == extract)
            .order_by(patient_row.c.pid)
        )
        found += [(str(pid), orjson.loads(row)) for pid, row in connection.execute(query)]
    return found


def all_pids(connection: sa.Connection, extract: str = TABLE) -> list[str]:
    """Every pid this hospital holds a row of in the extract, sorted."""
    query = (
        sa.select(patient_row.c.pid)
        .where(patient_row.c.extract == extract)
        .order_by(patient_row.c.pid)
    )
    return [str(pid) for pid in connection.scalars(query)]


def each_row(connection: sa.Connection, extract: str = TABLE) -> Iterator[dict[str, object]]:
    """Every row of the extract, one at a time: a hospital's rows need not fit into memory."""
    query = sa.select(patient_row.c.row).where(patient_row.c.extract == extract)
    for row in connection.execute(query.execution_options(yield_per=_BATCH)).scalars():
        yield orjson.loads(row)


def extracts(connection: sa.Connection) -> list[str]:
    """Every extract this hospital holds rows of."""
    query = sa.select(patient_row.c.extract).distinct().order_by(patient_row.c.extract)
    return [str(name) for name in connection.scalars(query)]


def pid_of_record(connection: sa.Connection, record_key: str) -> str | None:
    """The pid of an imported patient number; None if it was never imported."""
    query = sa.select(patient.c.pid).where(patient.c.record_key == record_key)
    pid = connection.scalar(query)
    return None if pid is None else str(pid)
