"""What used one patient's record: the hospital's signed list, for her alone.

It is given against her own signature: a hub that asks in her name learns nothing. It names the
documents that left (round receipts, cohort answers) by digest, so she can hold each against the
public log. What was computed and discarded never left and is not on it; its privacy cost still
stands in her odometer.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from consent.chain import ConsentChainError, after_event
from consent.decide import Standing, State
from consent.proofs.cohort import member_salt
from consent.speakers import Speakers
from coop.canonical import Json, parse_object
from coop.documents.consent import (
    Consent,
    PrivacySpent,
    StudyUse,
    Use,
    UseRequest,
    UseStatement,
)
from coop.documents.emergency import BreakGlass
from coop.documents.envelope import issue, open_document
from coop.documents.study import MICRO, PICO, Study
from coop.errors import CoopError, Kind, NotFoundError
from coop.passkeys import RelyingParty
from federated.accounting import LIFETIME_DELTA, LIFETIME_EPSILON
from federated.answers import answer
from federated.approval_store import approved
from federated.budget import debit, debit_bystander, debit_pid
from federated.cohort_audit import cohort_audit, cohort_audit_pid
from federated.emergency import emergency
from federated.mirror_store import mirror_document
from federated.odometer import patient_budget
from federated.site import Site, enrolled, patient

_WHAT: Final = {"train": "training round", "evaluate": "evaluation", "cohort": "cohort answer"}
_STUDIES_MAX: Final = 200  # in one statement; the newest
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
            uses=sorted(
                [
                    *uses_of(connection, pid),
                    *_emergencies(connection, pid),
                    *_audits(connection, pid),
                ],
                key=lambda use: use.at,
            ),
            studies=_studies(connection, pid),
            privacy=_privacy(connection, pid),
            excluded_from=_excluded_from(connection, pid, site.trust.passkeys),
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
            answer.c.seed,
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
            salt=member_salt(bytes.fromhex(row.seed), pid),
            at=row.at,
            round=row.round,
        )
        for row in rows
    ]


def _emergencies(connection: sa.Connection, pid: str) -> list[Use]:
    """Every time the glass was broken for her treatment."""
    rows = connection.execute(sa.select(emergency).where(emergency.c.pid == pid))
    return [
        Use(
            what="emergency",
            study_id=row.study_id,
            version=row.version,
            document_sha256=row.digest,
            salt=row.salt,
            at=row.at,
            model_id=open_document(
                BreakGlass, parse_object(row.document), issuers=None
            ).subject.model_id,
        )
        for row in rows
    ]


def _audits(connection: sa.Connection, pid: str) -> list[Use]:
    """Every time an auditor was shown that she took part in a round."""
    rows = connection.execute(
        sa.select(
            debit.c.study_id,
            debit.c.version,
            debit.c.round,
            answer.c.seed,
            cohort_audit.c.receipt_sha256,
            cohort_audit.c.at,
        )
        .join(answer, answer.c.debit_sequence == debit.c.sequence)
        .join(cohort_audit, cohort_audit.c.receipt_sha256 == answer.c.document_sha256)
        .join(cohort_audit_pid, cohort_audit_pid.c.receipt_sha256 == cohort_audit.c.receipt_sha256)
        .where(cohort_audit_pid.c.pid == pid)
    )
    return [
        Use(
            what="audit",
            study_id=row.study_id,
            version=row.version,
            document_sha256=row.receipt_sha256,
            salt=member_salt(bytes.fromhex(row.seed), pid),
            at=row.at,
            round=row.round,
        )
        for row in rows
    ]


def _studies(connection: sa.Connection, pid: str) -> list[StudyUse]:
    """What each study did with this record, by the draws since it was enrolled."""
    since = connection.scalar(sa.select(sa.func.min(enrolled.c.at)).where(enrolled.c.pid == pid))
    hers = sa.exists().where(debit_pid.c.sequence == debit.c.sequence, debit_pid.c.pid == pid)
    beside = sa.exists().where(
        debit_bystander.c.sequence == debit.c.sequence, debit_bystander.c.pid == pid
    )

    def counted(which: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.sum(sa.case((which, 1), else_=0))

    rows = connection.execute(
        sa.select(
            approved.c.study,
            counted(hers).label("used"),
            counted(~hers & beside).label("not_needed"),
            counted(~hers & ~beside).label("refused"),
            sa.func.max(debit.c.at).label("last_at"),
        )
        .join(
            approved,
            sa.and_(approved.c.study_id == debit.c.study_id, approved.c.version == debit.c.version),
        )
        # What everybody was charged after a restore is no computation that is known.
        .where(hers | (debit.c.at >= (since or 0)), debit.c.phase.in_(_WHAT))
        .group_by(approved.c.study_sha256, approved.c.study)
        .order_by(sa.desc("last_at"), approved.c.study_sha256)
        .limit(_STUDIES_MAX)
    )
    found = []
    for row in rows:
        study = open_document(Study, parse_object(row.study), issuers=None).subject
        found.append(
            StudyUse(
                study_id=study.study_id,
                version=study.version,
                title=study.title,
                organisation=study.proposer,
                commercial=study.commercial,
                purpose=study.purpose,
                disease=study.disease,
                used=int(row.used),
                refused=int(row.refused),
                not_needed=int(row.not_needed),
                last_at=row.last_at,
            )
        )
    return found


def _privacy(connection: sa.Connection, pid: str) -> PrivacySpent:
    spent = patient_budget(connection, pid)
    return PrivacySpent(
        epsilon_micro=math.ceil(spent.epsilon * MICRO),
        alone_epsilon_micro=math.ceil(spent.alone_epsilon * MICRO),
        delta_pico=round(LIFETIME_DELTA * PICO),
        limit_epsilon_micro=round(LIFETIME_EPSILON * MICRO),
    )


def _excluded_from(
    connection: sa.Connection, pid: str, passkeys: RelyingParty | None
) -> int | None:
    """Since when her own words permit nothing; None while they do, or never did."""
    texts = connection.execute(
        sa.select(mirror_document.c.document)
        .where(mirror_document.c.pid == pid, mirror_document.c.kind == Consent.kind)
        .order_by(mirror_document.c.log_index)
    ).scalars()
    held: Standing | None = None
    since: int | None = None
    for text in texts:
        event = open_document(Consent, parse_object(text), issuers=None, passkeys=passkeys)
        was_open = held is not None and held.state is State.ACTIVE and not held.objected
        try:
            state, objected = after_event(held, event.subject.event)
        except ConsentChainError:
            continue  # it follows a document that staff set aside; she is denied all the same
        held = Standing(
            state=state,
            objected=objected,
            on_death=event.subject.on_death or (held.on_death if held else "stop"),
            policy=None,
            head_digest=event.digest,
            sequence=event.subject.sequence,
            log_index=-1,
        )
        if state is State.ACTIVE and not objected:
            since = None
        elif was_open:
            since = event.at
    return since
