"""The migration chain makes exactly the tables the code uses, triggers too, on both databases."""

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from coop.db import Database
from coop.tables import load


def test_a_migrated_database_has_exactly_the_tables_of_the_code(database: Database):
    with database.reading() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, load()) == []


def test_migrating_again_changes_nothing(database: Database):
    with database.reading() as connection:
        before = sorted(sa.inspect(connection).get_table_names())
    database.upgrade()
    with database.reading() as connection:
        assert sorted(sa.inspect(connection).get_table_names()) == before


def test_append_only_tables_have_their_triggers(database: Database):
    query = (
        "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'"
        if database.url.startswith("sqlite")
        else "SELECT event_object_table FROM information_schema.triggers"
    )
    with database.reading() as connection:
        guarded = set(connection.exec_driver_sql(query).scalars())
    assert {"ledger_journal", "ledger_transfer", "debit", "debit_pid"} <= guarded
