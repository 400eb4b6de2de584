"""Receipts: the proof that a document stands in the log, to whoever may see the document."""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from fastapi import APIRouter

from consent.store import enrolled
from coop import members
from coop.canonical import Json
from coop.documents.people import PEOPLE
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import NotFoundError
from coop.hub.bodies import Body
from coop.hub.folder import HubFolder
from coop.hub.log_api import Digest
from coop.journal.store import Journal, signed_document
from coop.verify import verify_receipt
from inference_gateway.store import inference_answer, question_table

PUBLIC_KINDS: Final = frozenset(
    {
        "study",
        "approval",
        "order",
        "round-request",
        "round-receipt",
        "round-record",
        "passport",
        "dividend-window",
        "tally",
    }
)
"""What anybody may see: nothing in them names a record or a researcher's question."""
_PATIENT_KINDS: Final = frozenset({"enrolment", "consent", "consent-receipt", *PEOPLE})


class BundleBody(Body):
    """A receipt bundle of `GET /v1/receipts/{digest}`."""

    bundle: dict[str, Any]


class StepsAnswer(Body):
    """What was verified, step by step."""

    steps: list[str]
    waiting: list[str]
    """What is recorded and not complete: too few hospitals have cosigned it so far."""


def routes(doors: Doors, journal: Journal, folder: HubFolder) -> APIRouter:
    """The receipts' routes."""
    router = APIRouter(tags=["receipts"])

    @doors.route(router, "GET", "/v1/receipts/{digest}", Principal.PUBLIC)
    def receipt(digest: Digest, caller: CallerDep) -> dict[str, Any]:
        """The signed document with its proof under the best cosigned checkpoint."""
        with doors.database.reading() as connection:
            document = journal.document(connection, digest)
            _may_see(connection, caller, digest, document)
            return journal.receipt(connection, digest, sites=members.site_dids(connection))

    @doors.route(router, "POST", "/v1/receipts:verify", Principal.PUBLIC)
    def verify(body: BundleBody) -> StepsAnswer:
        """Check a receipt under this hub's own keys.

        A convenience of the portal: whoever does not trust this hub runs `coop verify` with a trust
        file of her own.
        """
        with doors.database.reading() as connection:
            trust = folder.trust(connection)
        report = verify_receipt(body.bundle, trust)
        return StepsAnswer(steps=report.steps, waiting=report.waiting)

    return router


def _kind_of(connection: sa.Connection, digest: str) -> str:
    query = sa.select(signed_document.c.kind).where(signed_document.c.digest == digest)
    return str(connection.execute(query).scalar_one())


def _asked_for(connection: sa.Connection, caller: Caller, digest: str) -> bool:
    """Whether this is the receipt of a question of hers: what she asked is nobody else's."""
    if caller.principal is not Principal.RESEARCHER:
        return False
    return any(
        connection.execute(
            sa.select(table.c.account_id).where(
                table.c.account_id == caller.account, table.c.receipt_sha256 == digest
            )
        ).first()
        for table in (inference_answer, question_table)
    )


def _may_see(
    connection: sa.Connection, caller: Caller, digest: str, document: Mapping[str, Json]
) -> None:
    kind = _kind_of(connection, digest)
    if kind in PUBLIC_KINDS:
        return
    subject = document.get("credentialSubject")
    pid = subject.get("pid") if isinstance(subject, dict) else None
    if kind in _PATIENT_KINDS and isinstance(pid, str):
        key = enrolled(connection, [pid]).get(pid)
        members.owns(connection, caller, pid, key.did if key else "")
        return
    if kind == "inference-receipt" and _asked_for(connection, caller, digest):
        return
    raise NotFoundError("digest: the log holds no such document, or it was erased")
