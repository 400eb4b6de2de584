"""Where an OMOP CDM lies, opened for reading only: one small interface over four kinds."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import duckdb
import sqlalchemy as sa

from coop.errors import NotFoundError
from federated.importers import UnreadableFileError
from federated.parquet import connect

_ROWS: Final = 1000  # fetched at a time
_TABLES: Final = (
    "person", "visit_occurrence", "condition_occurrence", "drug_exposure", "measurement",
    "observation", "concept",
)  # fmt: skip
_SQLITE: Final = frozenset({".sqlite", ".sqlite3", ".db"})
_DUCKDB: Final = frozenset({".duckdb", ".ddb"})


class _Run(Protocol):
    """Runs one SELECT: column names, and the rows."""

    def __call__(self, sql: str) -> tuple[list[str], Iterator[Sequence[Any]]]: ...


class Store:
    """A CDM. Every statement is a SELECT that is put together here from known names and numbers.

    Args:
        run: Runs a statement.
        numbers: Whether ids may be stored as text (files without types).
    """

    def __init__(self, run: _Run, *, as_text: bool = False) -> None:
        self._run = run
        self._as_text = as_text
        self._columns: dict[str, dict[str, str]] = {}

    def has(self, table: str) -> bool:
        """Whether there is such a table, with the columns of a CDM."""
        return (
            "concept_id" in self._names(table) if table == "concept" else bool(self._names(table))
        )

    def rows(
        self,
        table: str,
        columns: Sequence[str],
        among: Sequence[str] = (),
        wanted: set[int] | None = None,
    ) -> Iterator[Mapping[str, Any]]:
        """Rows of a table with `columns`; a column the CDM lacks is None.

        Args:
            table: One of the CDM's.
            columns: By their names in the CDM.
            among: Columns of concepts.
            wanted: Only rows with one of these concepts in one of `among`; None: every row.
        """
        names = self._names(table)
        if "person_id" in columns and "person_id" not in names:
            return  # an empty table of some exports has no proper columns either
        known = [names[column] for column in columns if column in names]
        sql = f"SELECT {', '.join(known)} FROM {table}"  # noqa: S608  (known names only)
        if wanted is not None:
            tests = [
                f"{self._id(names[column])} IN ({', '.join(map(str, sorted(wanted)))})"
                for column in among
                if column in names
            ]
            if not wanted or not tests:
                return
            sql += f" WHERE {' OR '.join(tests)}"
        _, found = self._run(sql)
        places = {column: i for i, column in enumerate(c for c in columns if c in names)}
        for row in found:
            yield {column: row[places[column]] if column in places else None for column in columns}

    def concepts(self, vocabularies: Sequence[str], code: str) -> list[int]:
        """The concepts of a code, or of every code that begins with it (`E11*`).

        The code is of a study's form: letters, digits, dot, dash, underscore, plus.
        """
        among = ", ".join(f"'{name}'" for name in vocabularies)
        start = code.removesuffix("*")
        dotted = [start]
        if vocabularies[0] == "ICD10":
            plain = start.replace(".", "")
            dotted = [plain, f"{plain[:3]}.{plain[3:]}"] if len(plain) > 3 else [plain]  # noqa: PLR2004
        if code.endswith("*"):
            test = " OR ".join(f"substr(concept_code, 1, {len(c)}) = '{c}'" for c in dotted)
        else:
            test = f"concept_code IN ({', '.join(repr(c) for c in dotted)})"
        sql = (
            f"SELECT concept_id FROM concept WHERE vocabulary_id IN ({among}) "  # noqa: S608
            f"AND ({test}) ORDER BY concept_id"
        )
        return [int(row[0]) for row in self._run(sql)[1]]

    def _id(self, column: str) -> str:
        return f"TRY_CAST({column} AS BIGINT)" if self._as_text else column

    def _names(self, table: str) -> dict[str, str]:
        """CDM name → the name this database gives the column."""
        if table not in self._columns:
            try:
                names, rows = self._run(f"SELECT * FROM {table} LIMIT 0")  # noqa: S608
                list(rows)  # read to its end, a cursor closes
            except (duckdb.Error, sqlite3.Error, sa.exc.SQLAlchemyError):
                names = []
            self._columns[table] = {name.lower(): name for name in names}
        return self._columns[table]


@contextmanager
def open_store(where: str) -> Iterator[Store]:
    """The CDM at `where`: a `postgresql://` DSN, a DuckDB or SQLite file, or a folder of tables.

    Raises:
        NotFoundError: There is nothing there.
        UnreadableFileError: It cannot be opened, or holds no `person` table.
    """
    opened = _postgres(where) if "://" in where else _local(Path(where))
    try:
        with opened as store:
            if not store.has("person"):
                raise UnreadableFileError("person: missing; this is no OMOP CDM")
            yield store
    except (duckdb.Error, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
        raise UnreadableFileError(f"OMOP CDM: {type(error).__name__} while reading") from error


def _local(path: Path) -> Any:  # noqa: ANN401  (one of three context managers)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix in _DUCKDB:
        return _duckdb(path)
    if suffix in _SQLITE:
        return _sqlite(path)
    raise UnreadableFileError(f"{path.name}: must be .duckdb, .sqlite or .db, or a folder")


@contextmanager
def _duckdb(path: Path) -> Iterator[Store]:
    database = connect(str(path), read_only=True)
    try:
        yield Store(lambda sql: _duckdb_run(database, sql))
    finally:
        database.close()


@contextmanager
def _folder(path: Path) -> Iterator[Store]:
    """CSV, CSV.GZ or Parquet files named like the tables, in any case."""
    database = connect()
    files = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_file()}
    try:
        for table in _TABLES:
            for suffix in (".parquet", ".csv", ".csv.gz"):
                if (file := files.get(table + suffix)) is not None and not file.is_symlink():
                    quoted = str(file).replace("'", "''")
                    read = (
                        f"read_parquet('{quoted}')"
                        if suffix == ".parquet"
                        else f"read_csv('{quoted}', header = true, all_varchar = true)"
                    )
                    database.execute(f"CREATE VIEW {table} AS SELECT * FROM {read}")  # noqa: S608
                    break
        yield Store(lambda sql: _duckdb_run(database, sql), as_text=True)
    finally:
        database.close()


@contextmanager
def _sqlite(path: Path) -> Iterator[Store]:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:

        def run(sql: str) -> tuple[list[str], Iterator[Sequence[Any]]]:
            found = database.execute(sql)
            return [column[0] for column in found.description], iter(found)

        yield Store(run)
    finally:
        database.close()


@contextmanager
def _postgres(dsn: str) -> Iterator[Store]:
    if not dsn.startswith(("postgresql://", "postgresql+psycopg://")):
        raise UnreadableFileError("OMOP CDM: only postgresql:// DSNs are read")
    engine = sa.create_engine(
        dsn.replace("postgresql://", "postgresql+psycopg://", 1),
        hide_parameters=True,  # an error's text must not carry a row into a log
        # The server itself then refuses to write, whatever is sent.
        execution_options={"postgresql_readonly": True},
    )
    try:
        with engine.connect() as connection:

            def run(sql: str) -> tuple[list[str], Iterator[Sequence[Any]]]:
                # A savepoint: a missing table must not end the transaction that reads the rest.
                with connection.begin_nested():
                    found = connection.exec_driver_sql(sql, execution_options={"yield_per": _ROWS})
                    return list(found.keys()), iter(found)

            yield Store(run)
    finally:
        engine.dispose()


def _duckdb_run(
    database: duckdb.DuckDBPyConnection, sql: str
) -> tuple[list[str], Iterator[Sequence[Any]]]:
    found = database.cursor().execute(sql)

    def rows() -> Iterator[Sequence[Any]]:
        while some := found.fetchmany(_ROWS):
            yield from some

    return [column[0] for column in found.description or ()], rows()
