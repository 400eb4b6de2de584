"""Alembic environment: one chain for the hub's database and every hospital's."""

from alembic import context

from coop.db import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
