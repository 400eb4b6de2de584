"""What used one patient's record: the hospital's signed list, for her alone.

It is given against her own signature: a hub that asks in her name learns nothing. It names the
documents that left (round receipts, cohort answers) by digest, so she can hold each against the
public log. What was computed and discarded never left and is not on it; its privacy cost still
stands in her odometer.
"""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from consent.speakers import Speakers
from coop.canonical import Json, parse_object
from coop.documents.consent import Consent, Use, UseRequest, UseStatement
from coop.documents.envelope import issue, open_document
from coop.errors import CoopError, Kind, NotFoundError
from federated.answers import answer
from federated.budget import debit, debit_pid
from federated.mirror_store import mirror_document
from federated.site import Site, patient

_WHAT: Final = {"train": "training round", "evaluate": "evaluation", "cohort": "cohort answer"}
_WITHDRAWN: Final = frozenset({"revoke", "suspend"})
ASKED_WITHIN_S: Final = 600  # a slow relay and a device's clock that is behind
_AHEAD_S: Final = 120


class NotAskedError(CoopError):
    """Nobody who speaks for this record has just asked for its list."""

    code = "uses.not-asked"
    kind = Kind.FORBIDDEN


def asked_for(
    site: Site, speakers: Mapping[str, Speakers], document: Mapping[str, Json], now: int
) -> str:
    """The pid whose list may be handed over: its own key or a representative has just asked for it.

    Steps: (1) it is a use request, signed by whom it names; (2) it is for this hospital and the
    signer may act for the record now; (3) it is fresh. A replay within that time brings the relay
    what it has carried already.

    Args:
        site: This hospital.
        speakers: Who may speak for each record (`Mirror.speakers`).
        document: What the hub relayed.
        now: UTC seconds.

    Raises:
        NotAskedError: (2) or (3) fails; the same for an unknown record.
        WrongDocumentError, BadSignatureError: (1) fails.
    """
    # (1)
    opened = open_document(UseRequest, document, issuers=None, passkeys=site.trust.passkeys)
    pid = opened.subject.pid
    # (2)
    here = opened.subject.site == site.name and pid in speakers
    speaks = here and speakers[pid].speaks(opened.issuer, now)
    # (3)
    fresh = now - ASKED_WITHIN_S < opened.at <= now + _AHEAD_S
    if not speaks or not fresh:
        raise NotAskedError(
            "request: must be signed in the last 10 minutes by the key enrolled for this record or "
            "by a representative; with a lost key ask at the hospital's desk"
        )
    return pid


def statement(site: Site, pid: str, now: int) -> dict[str, Any]:
    """The signed UseStatement of one patient at this hospital, oldest use first.

    Args:
        site: This hospital.
        pid: Whose record.
        now: UTC seconds.

    Raises:
        NotFoundError: No such patient here.
    """
    with site.database.reading() as connection:
        if connection.scalar(sa.select(patient.c.pid).where(patient.c.pid == pid)) is None:
            raise NotFoundError("pid: no such record at this hospital")
        subject = UseStatement(
            site=site.name,
            pid=pid,
            uses=uses_of(connection, pid),
            excluded_from=_withdrawn_at(connection, pid),
        )
    return issue(subject, site.key, now)


def uses_of(connection: sa.Connection, pid: str) -> list[Use]:
    """Every document that left and used this record."""
    rows = connection.execute(
        sa.select(
            debit.c.phase,
            debit.c.study_id,
            debit.c.version,
            debit.c.round,
            debit_pid.c.salt,
            answer.c.document_sha256,
            answer.c.at,
        )
        .join(debit, debit.c.sequence == debit_pid.c.sequence)
        .join(answer, answer.c.debit_sequence == debit.c.sequence)
        .where(debit_pid.c.pid == pid, answer.c.document_sha256.is_not(None))
        .order_by(answer.c.at, debit.c.sequence, answer.c.key)
    )
    return [
        Use(
            what=_WHAT[row.phase],  # type: ignore[arg-type]  # the ledger's own three phases
            study_id=row.study_id,
            version=row.version,
            document_sha256=row.document_sha256,
            salt=row.salt,
            at=row.at,
            round=row.round,
        )
        for row in rows
    ]


def _withdrawn_at(connection: sa.Connection, pid: str) -> int | None:
    """When her newest consent event withdrew; None while it did not."""
    text = connection.scalar(
        sa.select(mirror_document.c.document)
        .where(mirror_document.c.pid == pid, mirror_document.c.kind == Consent.kind)
        .order_by(mirror_document.c.log_index.desc())
        .limit(1)
    )
    if text is None:
        return None
    event = open_document(Consent, parse_object(text), issuers=None)
    return event.at if event.subject.event in _WITHDRAWN else None
