"""The durable queue of what hospitals are asked: claimed over outbound long polls, never lost.

Jobs are handed out from the database and nowhere else. A claim holds for `CLAIM_S`; a job whose
claim ran out is handed out again under a higher attempt number, and only the newest attempt's
answer counts (the number is a fencing token). After `ATTEMPTS_MAX` claims a job is dead.

A second attempt draws no fresh noise: the hospital journals its answer under the job's id before it
sends it, and answers any later attempt with the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from coop.canonical import Json, jcs, parse_object
from coop.db import metadata
from coop.documents.consent import UseStatement
from coop.errors import ConflictError, NotFoundError
from coop.keys import random_bytes

CLAIM_S: Final = 30  # a cohort answer takes a hospital under 2 s, its lease included
ATTEMPTS_MAX: Final = 3  # an answer that three claims could not deliver will not come
_ID_TIME_DIGITS: Final = 10  # hex digits of the UTC seconds: ids sort by creation for 30 000 years

job = sa.Table(
    "job",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("question", sa.Text, nullable=True),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("claimed_until", sa.BigInteger, nullable=False),
    sa.Column("not_after", sa.BigInteger, nullable=False),
    sa.Column("result", sa.Text, nullable=True),
    sa.Column("code", sa.Text, nullable=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index("ix_job_site_state_claimed_until", "site", "state", "claimed_until"),
    sa.Index("ix_job_question", "question"),
)


class JobState(StrEnum):
    """Where a job stands; the last three are final."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    DONE = "done"
    REFUSED = "refused"
    DEAD = "dead"


OPEN: Final = (JobState.QUEUED, JobState.CLAIMED)


class LateAttemptError(ConflictError):
    """The job was given to a later attempt, answered otherwise, or has ended."""

    code = "job.late-attempt"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What one hospital is to be asked."""

    id: str
    site: str
    kind: str
    payload: Mapping[str, Json]
    at: int
    not_after: int
    question: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A job in one hospital's hands until its claim runs out."""

    id: str
    attempt: int
    kind: str
    payload: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where one hospital's job stands."""

    id: str
    site: str
    state: JobState
    result: dict[str, Json] | None
    code: str | None


def new_id(now: int) -> str:
    """A fresh id that sorts by creation."""
    return f"{now:0{_ID_TIME_DIGITS}x}{random_bytes(8).hex()}"


def add(connection: sa.Connection, new: NewJob) -> None:
    """Queue one job for one hospital."""
    row = {
        "id": new.id,
        "site": new.site,
        "kind": new.kind,
        "question": new.question,
        "payload": jcs(dict(new.payload)).decode(),
        "state": JobState.QUEUED,
        "attempt": 0,
        "claimed_until": 0,
        "not_after": new.not_after,
        "at": new.at,
    }
    connection.execute(job.insert(), row)


def is_waiting(connection: sa.Connection, site: str, now: int) -> bool:
    """Whether `claim` would find something: a look that takes no lock."""
    return connection.execute(sa.select(_claimable(site, now).exists())).scalar_one()


def claim(connection: sa.Connection, site: str, now: int) -> Claimed | None:
    """Take the oldest job that waits for `site`, if any.

    A crash after the commit and before the job arrives leaves it claimed; it is handed out again
    when the claim runs out.
    """
    oldest = _claimable(site, now).order_by(job.c.id).limit(1).with_for_update(skip_locked=True)
    taken = connection.execute(
        job.update()
        .where(job.c.id == oldest.scalar_subquery())
        .values(
            state=JobState.CLAIMED,
            claimed_until=now + CLAIM_S,
            attempt=job.c.attempt + 1,
        )
        .returning(job.c.id, job.c.attempt, job.c.kind, job.c.payload)
    ).one_or_none()
    if taken is None:
        return None
    return Claimed(
        id=taken.id,
        attempt=int(taken.attempt),
        kind=taken.kind,
        payload=parse_object(taken.payload),
    )


def payload_of(connection: sa.Connection, site: str, job_id: str) -> tuple[str, dict[str, Json]]:
    """Kind and payload of a job of `site`.

    Raises:
        NotFoundError: There is no such job, or it is another hospital's.
    """
    row = connection.execute(
        sa.select(job.c.kind, job.c.payload).where(job.c.id == job_id, job.c.site == site)
    ).one_or_none()
    if row is None:
        raise NotFoundError("job: there is none with this id for this hospital")
    return row.kind, parse_object(row.payload)


def finish(
    connection: sa.Connection,
    site: str,
    job_id: str,
    attempt: int,
    *,
    result: Mapping[str, Json] | None = None,
    code: str | None = None,
) -> None:
    """Store an attempt's answer, or its refusal by `code`; the same answer again is welcome.

    Raises:
        LateAttemptError: A later attempt holds the job, or it ended in another way.
    """
    state = JobState.REFUSED if result is None else JobState.DONE
    text = None if result is None else jcs(dict(result)).decode()
    mine = (job.c.id == job_id) & (job.c.site == site) & (job.c.attempt == attempt)
    stored = connection.execute(
        job.update()
        .where(mine, job.c.state == JobState.CLAIMED)
        .values(state=state, result=text, code=code)
    )
    if stored.rowcount == 1:
        return
    row = connection.execute(
        sa.select(job.c.state, job.c.result, job.c.code).where(mine)
    ).one_or_none()
    if row is None or (row.state, row.result, row.code) != (state, text, code):
        raise LateAttemptError("job: a later attempt has it, or it has ended; do not send again")


def bury(connection: sa.Connection, now: int) -> list[str]:
    """End the jobs that nobody will answer; returns the questions they belong to."""
    exhausted = (
        (job.c.state == JobState.CLAIMED)
        & (job.c.claimed_until < now)
        & (job.c.attempt >= ATTEMPTS_MAX)
    )
    overdue = job.c.state.in_(OPEN) & (job.c.not_after <= now)
    ended = connection.execute(
        job.update()
        .where(exhausted | overdue)
        .values(
            state=JobState.DEAD,
            code=sa.case((job.c.attempt == 0, "site.offline"), else_="site.no-answer"),
        )
        .returning(job.c.question)
    ).scalars()
    return sorted({question for question in ended if question is not None})


def outcomes(connection: sa.Connection, question: str) -> list[Outcome]:
    """Every hospital's job of a question, in order of site names."""
    rows = connection.execute(
        sa.select(job).where(job.c.question == question).order_by(job.c.site)
    ).all()
    return [_outcome(row) for row in rows]


def outcome(connection: sa.Connection, job_id: str) -> Outcome | None:
    """Where one job stands."""
    row = connection.execute(sa.select(job).where(job.c.id == job_id)).one_or_none()
    return None if row is None else _outcome(row)


def forget(connection: sa.Connection, job_id: str) -> None:
    """Delete a job and its answer."""
    connection.execute(job.delete().where(job.c.id == job_id))


def any_older(connection: sa.Connection, kind: str, before: int) -> bool:
    """Whether `forget_older` would find something."""
    old = sa.select(job.c.id).where(job.c.kind == kind, job.c.at < before)
    return connection.execute(sa.select(old.exists())).scalar_one()


def forget_older(connection: sa.Connection, kind: str, before: int) -> None:
    """Delete jobs of `kind` that were queued before `before`, with their answers."""
    connection.execute(job.delete().where(job.c.kind == kind, job.c.at < before))


def _claimable(site: str, now: int) -> sa.Select[tuple[str]]:
    free = (job.c.state == JobState.QUEUED) | (
        (job.c.state == JobState.CLAIMED) & (job.c.claimed_until < now)
    )
    return sa.select(job.c.id).where(
        job.c.site == site, job.c.attempt < ATTEMPTS_MAX, job.c.not_after > now, free
    )


def _outcome(row: sa.Row[Any]) -> Outcome:
    return Outcome(
        id=row.id,
        site=row.site,
        state=JobState(row.state),
        result=None
        if row.result is None
        else parse_object(row.result, bytes_max=UseStatement.bytes_max),
        code=row.code,
    )
