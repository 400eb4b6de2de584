"""One round's whole chain of signed documents, ready for `coop verify round`."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from coop import members, studies
from coop.canonical import document_digest
from coop.documents.envelope import open_document
from coop.documents.training import RoundRecord
from coop.doors import Doors, Principal
from coop.errors import NotFoundError
from coop.hub.log_api import Digest
from coop.journal.store import Journal
from federated.rounds import Rounds

Round = Annotated[int, Path(ge=1, le=10_000)]


def routes(doors: Doors, journal: Journal, rounds: Rounds) -> APIRouter:
    """The chain's route."""
    router = APIRouter(tags=["training"])

    @doors.route(router, "GET", "/v1/rounds/{order_sha256}/chains/{number}", Principal.PUBLIC)
    def chain(order_sha256: Digest, number: Round) -> dict[str, Any]:
        """Study, approvals, order, request, receipts and record of one round, with proofs."""
        with doors.database.reading() as connection:
            sites = members.site_dids(connection)

            def bundle(digest: str) -> dict[str, Any]:
                return journal.receipt(connection, digest, sites=sites)

            order = rounds.order(connection, order_sha256)
            record = _record(rounds.records(connection, order_sha256), number)
            said = open_document(RoundRecord, record, issuers=None).subject
            study = studies.by_digest(connection, order.subject.study_sha256)
            return {
                "v": 1,
                "study": bundle(study.digest),
                "approvals": [bundle(entry.approval_sha256) for entry in order.subject.roster],
                "order": bundle(order_sha256),
                "request": bundle(said.request_sha256),
                "receipts": [bundle(entry.receipt_sha256) for entry in said.accepted],
                "record": bundle(document_digest(record)),
            }

    return router


def _record(records: list[dict[str, Any]], number: int) -> dict[str, Any]:
    if number > len(records):
        raise NotFoundError("round: not done")
    return records[number - 1]
