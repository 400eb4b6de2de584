"""Every table of the system in one place: what the migrations create and tests compare with."""

from importlib import import_module
from typing import Final

import sqlalchemy as sa

from coop.db import metadata

OWNERS: Final = (
    "coop.journal.store",
    "coop.credentials",
    "coop.members",
    "coop.studies",
    "coop.catalogue",
    "coop.ledger",
    "coop.economy",
    "consent.registry",
    "consent.notice_store",
    "consent.proofs.counting",
    "federated.site",
    "federated.quality",
    "federated.mirror",
    "federated.approval_store",
    "federated.control",
    "federated.budget",
    "federated.cohort_audit",
    "federated.emergency",
    "federated.masked_state",
    "federated.rounds",
    "federated.masked_tables",
    "inference_gateway.jobs",
    "inference_gateway.store",
)
"""The modules that own tables. One chain serves the hub and every hospital; the rest stay empty."""


def load() -> sa.MetaData:
    """The metadata with every owner's tables and triggers in it."""
    for name in OWNERS:
        import_module(name)
    return metadata


def create(connection: sa.Connection) -> None:
    """Create every table and trigger that is not there yet."""
    load().create_all(connection)
