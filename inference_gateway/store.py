"""What the gateway remembers: charged answers, cohort questions, and when a hospital last called.

A response is kept for a day so that a repeat under the same Idempotency-Key gets the same bytes;
then its text is erased and the charge stays. No request is ever stored: it holds somebody's
features.
"""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from coop.db import insert_ignore, metadata
from coop.errors import ConflictError, Kind, UnavailableError

REPLAY_S: Final = 86_400  # how long a repeat gets the stored answer
SEEN_STEP_S: Final = 10  # a site's call is noted at most so often: a poll is not worth a disk write
OFFLINE_S: Final = 60  # a hospital that polls (25 s at most) is heard from twice as often
_DAY_S: Final = 86_400

inference_answer = sa.Table(
    "inference_answer",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True),
    sa.Column("idempotency_key", sa.Text, primary_key=True),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("fee_nano", sa.BigInteger, nullable=False),
    sa.Column("response", sa.Text, nullable=True),
    sa.Column("nonce", sa.Text, nullable=True),
    sa.Column("receipt_sha256", sa.Text, nullable=True),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
)
question_table = sa.Table(
    "question",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.BigInteger, nullable=False),
    sa.Column("idempotency_key", sa.Text, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("study_sha256", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("query", sa.Text, nullable=False),
    sa.Column("revenue", sa.Text, nullable=False),
    sa.Column("fee_nano", sa.BigInteger, nullable=False),
    sa.Column("hold", sa.BigInteger, nullable=True),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("code", sa.Text, nullable=True),
    sa.Column("result", sa.Text, nullable=True),
    sa.Column("receipt_sha256", sa.Text, nullable=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("not_after", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("account_id", "idempotency_key"),
)
site_seen = sa.Table(
    "site_seen",
    metadata,
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
)


class IdempotencyMismatchError(ConflictError):
    """The same Idempotency-Key was used for another request."""

    code = "gateway.idempotency-mismatch"
    kind = Kind.UNPROCESSABLE


class ReplayExpiredError(ConflictError):
    """The answer to this Idempotency-Key was charged, and its text has been erased since."""

    code = "gateway.replay-expired"


class SiteOfflineError(UnavailableError):
    """The hospital's node does not call in; what only it can answer must wait."""

    code = "site.offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An answer that was charged: its text, and what verifies its receipt."""

    response: bytes
    nonce: str
    receipt_sha256: str
    fee_nano: int


def stored_answer(
    connection: sa.Connection, account_id: int, key: str, body_sha256: str
) -> Stored | None:
    """The answer charged under this Idempotency-Key, if there is one.

    Raises:
        IdempotencyMismatchError: The key belongs to another request.
        ReplayExpiredError: The text was erased.
    """
    row = connection.execute(
        sa.select(inference_answer).where(
            inference_answer.c.account_id == account_id, inference_answer.c.idempotency_key == key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != body_sha256:
        raise IdempotencyMismatchError(
            "Idempotency-Key: used for another request; choose a new one"
        )
    if row.response is None:
        raise ReplayExpiredError("Idempotency-Key: answered more than a day ago; choose a new one")
    return Stored(
        response=row.response.encode(),
        nonce=row.nonce,
        receipt_sha256=row.receipt_sha256,
        fee_nano=row.fee_nano,
    )


def note_seen(connection: sa.Connection, site: str, now: int) -> None:
    """Remember that `site` called."""
    if not insert_ignore(connection, site_seen, {"site": site, "at": now}):
        connection.execute(site_seen.update().where(site_seen.c.site == site).values(at=now))


def last_seen(connection: sa.Connection, site: str) -> int:
    """UTC seconds of the site's last call; 0 if it never called."""
    found = connection.execute(
        sa.select(site_seen.c.at).where(site_seen.c.site == site)
    ).scalar_one_or_none()
    return int(found or 0)


def usage(connection: sa.Connection, account_id: int) -> list[dict[str, str | int]]:
    """What the account asked and paid, by day and model or study, newest day first."""
    answers = sa.select(
        (inference_answer.c.at // _DAY_S).label("day"),
        inference_answer.c.model_id.label("name"),
        sa.literal("point").label("mode"),
        inference_answer.c.rows.label("rows"),
        inference_answer.c.fee_nano.label("fee_nano"),
    ).where(inference_answer.c.account_id == account_id)
    questions = sa.select(
        (question_table.c.at // _DAY_S).label("day"),
        question_table.c.revenue.label("name"),
        sa.literal("cohort").label("mode"),
        sa.literal(1).label("rows"),
        question_table.c.fee_nano.label("fee_nano"),
    ).where(question_table.c.account_id == account_id, question_table.c.state == "done")
    every = answers.union_all(questions).subquery()
    keys = (every.c.day, every.c.name, every.c.mode)
    rows = connection.execute(
        sa.select(
            *keys,
            sa.func.count().label("answers"),
            sa.func.sum(every.c.rows).label("rows"),
            sa.func.sum(every.c.fee_nano).label("fee_nano"),
        )
        .group_by(*keys)
        .order_by(every.c.day.desc(), every.c.name, every.c.mode)
    ).all()
    return [
        {
            "day": int(row.day) * _DAY_S,
            "model": row.name,
            "mode": row.mode,
            "answers": int(row.answers),
            "rows": int(row.rows),
            "fee_nano": int(row.fee_nano),
        }
        for row in rows
    ]


def replays_due(connection: sa.Connection, now: int) -> bool:
    """Whether `erase_replays` would find something."""
    due = sa.select(inference_answer.c.at).where(
        inference_answer.c.at < now - REPLAY_S, inference_answer.c.response.is_not(None)
    )
    return connection.execute(sa.select(due.exists())).scalar_one()


def erase_replays(connection: sa.Connection, now: int) -> None:
    """Erase the text of answers older than `REPLAY_S`; what was charged stays."""
    connection.execute(
        inference_answer.update()
        .where(inference_answer.c.at < now - REPLAY_S, inference_answer.c.response.is_not(None))
        .values(response=None, nonce=None)
    )
