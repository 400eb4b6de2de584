"""Who permitted a study when its training began: registry knowledge, so no membership leaks."""

from typing import Final

import sqlalchemy as sa

from consent.snapshot import permitted_at
from coop.documents.study import Study
from coop.journal.store import Journal, signed_document
from federated.permits import consent_request
from federated.run_tables import round_request

_ACTION: Final = "train-federated"


def permitted_at_start(
    connection: sa.Connection, journal: Journal, study: Study, order_sha256: str
) -> dict[str, list[str]]:
    """Pids by site whose consent permitted the training at its first round's place in the log."""
    first = connection.execute(
        sa.select(signed_document.c.log_index, signed_document.c.at)
        .join(round_request, round_request.c.digest == signed_document.c.digest)
        .where(round_request.c.order_sha256 == order_sha256)
        .order_by(round_request.c.round)
        .limit(1)
    ).one()
    request = consent_request(study, _ACTION, first.at)
    return permitted_at(connection, journal, request, first.log_index)
