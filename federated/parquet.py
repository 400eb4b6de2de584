"""Parquet files as lines of text cells, so that one set of rules judges CSV and Parquet alike."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb

MEMORY: Final = "200MB"
_ROWS: Final = 500  # fetched at a time
_GLOB: Final = frozenset("*?[")


class NotParquetError(Exception):
    """The file is none; its reader says so in its own words."""


def connect(path: str = ":memory:", *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """A DuckDB that loads no extension, stays small and, for a file, changes nothing in it."""
    return duckdb.connect(
        path,
        read_only=read_only,
        config={
            "threads": 1,
            # A database file may hold views; they must not read other files of this machine.
            "enable_external_access": not read_only,
            "memory_limit": MEMORY,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )


@contextmanager
def table(path: Path) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """The column names, and the rows as cells as a CSV would hold them; empty means missing.

    Raises:
        NotParquetError: It is no Parquet file.
    """
    if _GLOB & set(path.name):
        raise NotParquetError("a name with * ? or [ could mean other files")
    database = connect()
    try:
        try:
            found = database.execute("SELECT * FROM read_parquet(?)", [str(path)])
            names = [column[0] for column in found.description or ()]
        except duckdb.Error as error:
            raise NotParquetError(str(error)) from error
        yield names, _rows(found)
    finally:
        database.close()


def _rows(found: duckdb.DuckDBPyConnection) -> Iterator[list[str]]:
    try:
        while rows := found.fetchmany(_ROWS):
            for row in rows:
                yield [_cell(value) for value in row]
    except duckdb.Error as error:
        raise NotParquetError(str(error)) from error


def _cell(value: Any) -> str:  # noqa: ANN401  (whatever the file's column holds)
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):
            return ""  # writers of data frames put it where nothing was
        case float() if value.is_integer() and abs(value) < 2**53:
            return str(int(value))  # a column of whole numbers with gaps is stored as floats
        case _:
            return str(value).strip()
