"""Every table of the system in one place: what the migrations create and tests compare with."""

from importlib import import_module
from typing import Final

import sqlalchemy as sa

from coop.db import metadata

OWNERS: Final = (
    "coop.journal.store",
    "coop.members",
    "coop.studies",
    "coop.catalogue",
    "coop.ledger",
    "coop.economy",
    "consent.registry",
    "federated.site",
    "federated.mirror",
    "federated.approval",
    "federated.budget",
    "federated.rounds",
    "inference_gateway.jobs",
    "inference_gateway.store",
)
"""The modules that own tables. One chain serves the hub and every hospital; unused tables stay empty."""


def create(connection: sa.Connection) -> None:
    """Create every table and trigger that is not there yet."""
    import contextlib

    for name in OWNERS:
        with contextlib.suppress(ModuleNotFoundError):
            import_module(name)
    metadata.create_all(connection)
