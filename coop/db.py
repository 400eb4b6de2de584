"""The database: one `unit_of_work()`, the only place that commits.

SQLite (WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`) and PostgreSQL serve the same code and the same
contract tests. Tables live with their owners on the one `metadata`; one migration chain serves the
hub's database and every hospital's.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import event

from coop.errors import CoopError, InvalidInputError, Kind

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""Every table of the system."""

RowId: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""Type of a generated primary key (SQLite generates only for INTEGER)."""

_KNOWN: Final = ("sqlite:", "postgresql:", "postgresql+psycopg:")
_BUSY_MS: Final = 30_000  # longest a writer waits for another; the longest transaction is under 2 s


class DatabaseUnavailableError(CoopError):
    """The database does not answer or refuses to write; nothing was changed."""

    code = "db.unavailable"
    kind = Kind.UNAVAILABLE


class Database:
    """One database, by URL. Cheap to make; `close` when done."""

    def __init__(self, url: str) -> None:
        if not url.startswith(_KNOWN):
            raise InvalidInputError("COOP_DATABASE_URL: must be sqlite:///… or postgresql://…")
        self.url = _with_driver(url)
        sqlite = self.url.startswith("sqlite")
        if sqlite and (path := sa.make_url(self.url).database):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(
            self.url,
            pool_pre_ping=not sqlite,
            hide_parameters=True,  # an error's text must not carry a row into a log
            connect_args={"timeout": _BUSY_MS / 1000} if sqlite else {},
        )
        if sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_immediate)

    @contextmanager
    def unit_of_work(self) -> Iterator[sa.Connection]:
        """One transaction: everything in the block becomes durable at its end, or nothing does.

        On SQLite the write lock is taken at the start, so a read in the block stays true until the
        commit. A crash before the end leaves the database as it was.
        """
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent read; nothing written here survives."""
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                connection = connection.execution_options(coop_reading=True)  # noqa: PLW2901
            with connection.begin() as transaction:
                yield connection
                transaction.rollback()

    def upgrade(self) -> None:
        """Bring the schema to the newest migration."""
        from alembic import command  # noqa: PLC0415  (half a second that only start-up pays)
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()


def insert_ignore(
    connection: sa.Connection, table: sa.Table, values: dict[str, object] | list[dict[str, object]]
) -> int:
    """Insert the rows that are not there yet; returns how many were new."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert  # noqa: PLC0415

        statement = sqlite_insert(table).on_conflict_do_nothing()
    else:
        from sqlalchemy.dialects.postgresql import insert as pg_insert  # noqa: PLC0415

        statement = pg_insert(table).on_conflict_do_nothing()  # type: ignore[assignment]
    rows = values if isinstance(values, list) else [values]
    # PostgreSQL's driver forgets how many rows an INSERT made unless it is asked to keep it.
    keep = {"preserve_rowcount": True}
    return sum(
        connection.execute(statement.values(row), execution_options=keep).rowcount for row in rows
    )


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    # FULL, not NORMAL: under WAL, NORMAL loses acknowledged commits at a power cut (measured).
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get("coop_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
