"""Break-glass at the treating hospital: one score for one patient's care, and nothing else.

No path leads from here to a training round, an evaluation or a cohort question: `consent.decide`
knows nothing of it. The act is signed and durable before her row is read, goes into the public log
as a commitment, stands on her list of uses, and must be judged by a second person in 72 hours.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from coop.canonical import Json, document_digest, jcs, parse_object
from coop.client import Client
from coop.db import metadata
from coop.documents.emergency import BreakGlass, BreakGlassReview
from coop.documents.envelope import issue, open_document
from coop.documents.study import MICRO
from coop.errors import ConflictError, InvalidInputError, Kind, NotFoundError
from coop.keys import random_bytes
from federated.desk import pid_of_record
from federated.records import rows_of
from federated.released import released
from federated.site import Site
from federated.usable import risk_micro

REVIEW_S: Final = 72 * 3600
_TAG: Final = b"coop/emergency/v1"
_REASON_MIN: Final = 20  # letters: a sentence, not a click

emergency = sa.Table(
    "emergency",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("pid", sa.String(26), nullable=False, index=True),
    sa.Column("study_id", sa.String(64), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("clinician", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("salt", sa.String(64), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("review_by", sa.BigInteger, nullable=False),
    sa.Column("review", sa.Text),
    sa.Column("sent_at", sa.BigInteger),
    sa.Column("review_sent_at", sa.BigInteger),
)
"""Acts of break-glass, with the names and reasons that stay here."""


class UnreadableRecordError(ConflictError):
    """The model cannot read this patient's record; nothing was computed."""

    code = "emergency.unreadable"
    kind = Kind.UNPROCESSABLE


class SamePersonError(InvalidInputError):
    """Nobody judges an act of her own."""

    code = "emergency.same-person"
    kind = Kind.FORBIDDEN


class RetiredModelError(ConflictError):
    """The model is withdrawn."""

    code = "emergency.retired-model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the clinician sees, once."""

    risk: float
    document: dict[str, Json]


def break_glass(
    site: Site, client: Client, record_key: str, model_id: str, who: tuple[str, str], *, now: int
) -> Score:
    """Score one patient for her treatment here, without asking her consent; never for research.

    Steps: (1) the record is this hospital's; (2) the model is one that the pinned hub signed and
    this hospital approved, and not withdrawn; (3) the act is signed and durable; (4) only now her
    row is read. A crash after (3) leaves an act to be judged, never a score without one.

    Args:
        site: This hospital.
        client: To the hub.
        record_key: The patient's record number.
        model_id: A released model.
        who: The clinician's name, and the reason in a sentence.
        now: UTC seconds.

    Raises:
        UnknownRecordError: (1) fails.
        RetiredModelError, NotApprovedError: (2) fails.
        UnreadableRecordError: The model cannot read her record.
    """
    clinician, reason = (" ".join(words.split()) for words in who)
    if not clinician:
        raise InvalidInputError("--clinician: say who treats her")
    if len(reason) < _REASON_MIN:
        raise InvalidInputError(f"--reason: say it in a sentence of {_REASON_MIN} letters or more")
    # (1)
    with site.database.reading() as connection:
        pid = pid_of_record(connection, record_key)
    # (2)
    model = released(site, client, model_id)
    if model.state != "released":
        raise RetiredModelError(f"model: is {model.state}")
    study = model.study
    # (3)
    subject = BreakGlass(
        site=site.name,
        pid=pid,
        model_id=model_id,
        passport_sha256=model.passport.digest,
        clinician=_digest(site, "clinician", clinician),
        reason=_digest(site, "reason", reason),
        review_by=now + REVIEW_S,
    )
    document = issue(subject, site.key, now)
    with site.database.unit_of_work() as connection:
        connection.execute(
            emergency.insert().values(
                digest=document_digest(document),
                pid=pid,
                study_id=study.study_id,
                version=study.version,
                document=jcs(document).decode(),
                clinician=clinician,
                reason=reason,
                salt=random_bytes(32).hex(),
                at=now,
                review_by=subject.review_by,
            )
        )
    # (4)
    with site.database.reading() as connection:
        rows = rows_of(connection, [pid], study.extract)
    risk = risk_micro(rows[0][1], model.weights, study, site.name) if rows else None
    if risk is None:
        raise UnreadableRecordError("record: the model cannot read it; nothing was computed")
    return Score(risk=risk / MICRO, document=document)


def review(
    site: Site, digest: str, reviewer: str, verdict: Literal["justified", "not-justified"], now: int
) -> dict[str, Json]:
    """Judge an act; signed and logged. The first judgement stands.

    Raises:
        NotFoundError: No such act here.
        SamePersonError: By whoever did it.
        ConflictError: It was judged already.
    """
    name = " ".join(reviewer.split())
    if not name:
        raise InvalidInputError("--reviewer: say who judges")
    with site.database.unit_of_work() as connection:
        row = connection.execute(
            sa.select(emergency).where(emergency.c.digest == digest).with_for_update()
        ).one_or_none()
        if row is None:
            raise NotFoundError("digest: no such act at this hospital")
        if name.casefold() == row.clinician.casefold():
            raise SamePersonError("--reviewer: must be another person than the clinician")
        if row.review is not None:
            raise ConflictError("digest: it was judged already")
        subject = BreakGlassReview(
            site=site.name,
            break_glass_sha256=digest,
            verdict=verdict,
            reviewer=_digest(site, "reviewer", name),
        )
        document = issue(subject, site.key, now)
        connection.execute(
            emergency.update()
            .where(emergency.c.digest == digest)
            .values(review=jcs(document).decode())
        )
    return document


def acts(connection: sa.Connection, now: int) -> list[dict[str, Any]]:
    """Every act for the hospital's own staff, newest first."""
    rows = connection.execute(sa.select(emergency).order_by(emergency.c.at.desc()))
    return [
        {
            "digest": row.digest,
            "pid": row.pid,
            "clinician": row.clinician,
            "reason": row.reason,
            "at": row.at,
            "review_by": row.review_by,
            "verdict": _verdict(row.review),
            "overdue": row.review is None and now >= row.review_by,
        }
        for row in rows
    ]


def send(site: Site, client: Client, *, now: int) -> int:
    """Send the hub what it has not logged yet; returns how many. Repeating it sends nothing."""
    with site.database.reading() as connection:
        waiting = emergency.c.sent_at.is_(None) | (
            emergency.c.review.is_not(None) & emergency.c.review_sent_at.is_(None)
        )
        rows = connection.execute(
            sa.select(emergency).where(waiting).order_by(emergency.c.at)
        ).all()
    sent = 0
    for row in rows:
        for column, text in (("sent_at", row.document), ("review_sent_at", row.review)):
            if text is None or getattr(row, column) is not None:
                continue
            path = f"/v1/sites/{site.name}/emergencies"
            client.post(path, {"document": parse_object(text)})
            with site.database.unit_of_work() as connection:
                same = emergency.c.digest == row.digest
                connection.execute(emergency.update().where(same).values({column: now}))
            sent += 1
    return sent


def _digest(site: Site, what: str, words: str) -> str:
    message = b"\0".join((_TAG, site.name.encode(), what.encode(), words.encode()))
    return hmac.digest(site.pid_key, message, hashlib.sha256).hex()


def _verdict(text: str | None) -> str | None:
    if text is None:
        return None
    return open_document(BreakGlassReview, parse_object(text), issuers=None).subject.verdict
