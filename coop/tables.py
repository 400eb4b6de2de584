"""temporary while building"""

import contextlib, importlib
from coop.db import metadata


def create(connection):
    for name in (
        "coop.journal.store",
        "coop.members",
        "coop.studies",
        "coop.catalogue",
        "coop.ledger",
        "coop.economy",
        "consent.registry",
        "federated.node_store",
        "federated.budget",
        "federated.rounds",
        "inference_gateway.jobs",
        "inference_gateway.store",
    ):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    metadata.create_all(connection)
