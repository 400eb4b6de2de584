"""What each debit bought: the noised bytes and the document they left with.

An answer is kept from before its noise is drawn (`granted`) until its site's `data_version` is long
gone, so that a repeat returns the same bytes for no further budget.
"""

from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from coop.db import metadata
from coop.errors import InvariantError


class State(StrEnum):
    """Where an answer stands."""

    GRANTED = "granted"
    """Debited; if nothing else is stored, the process ended before the answer was."""
    STORED = "stored"
    """Computed; it may leave whenever a fresh lease still covers its cohort."""
    DISCARDED = "discarded"
    """A patient of its cohort withdrew: it never leaves. The debit stays."""


answer = sa.Table(
    "answer",
    metadata,
    sa.Column("key", sa.String(160), primary_key=True),
    sa.Column("input_sha256", sa.String(64), nullable=False, index=True),
    sa.Column("debit_sequence", sa.ForeignKey("debit.sequence"), nullable=False, index=True),
    sa.Column("seed", sa.String(64), nullable=False),
    sa.Column("places", sa.BigInteger, nullable=False),
    sa.Column("lease_sha256", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("body", sa.LargeBinary),
    sa.Column("document", sa.Text),
    sa.Column("document_sha256", sa.String(64)),
    sa.Column("at", sa.BigInteger, nullable=False),
)
"""What a debit bought. `body` are the noised bytes, `document` the signed receipt or cohort answer,
present if and only if it left this hospital. From `seed` come all salts of its commitments, and
with `places` and the cohort their whole tree (`consent.proofs.cohort`); `at` is the instant of the
consent state it was released under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An answer row."""

    key: str
    input_sha256: str
    debit_sequence: int
    seed: str
    places: int
    lease_sha256: str
    state: State
    body: bytes | None
    document: str | None
    at: int


def stored(connection: sa.Connection, key: str) -> Stored | None:
    """The answer under `key`, or None."""
    row = connection.execute(sa.select(answer).where(answer.c.key == key)).one_or_none()
    return None if row is None else _as_stored(row)


def attempts(connection: sa.Connection, prefix: str) -> list[Stored]:
    """Every answer whose key is `prefix:<attempt>`, oldest first."""
    rows = connection.execute(
        sa.select(answer)
        .where(answer.c.key.startswith(f"{prefix}:", autoescape=True))
        .order_by(answer.c.debit_sequence)
    )
    return [_as_stored(row) for row in rows]


def of_debit(connection: sa.Connection, sequence: int) -> list[Stored]:
    """The answers of one debit that left this hospital."""
    rows = connection.execute(
        sa.select(answer).where(answer.c.debit_sequence == sequence, answer.c.document.is_not(None))
    )
    return [_as_stored(row) for row in rows]


def by_document(connection: sa.Connection, digest: str) -> Stored | None:
    """The answer that left under the document of this digest, or None."""
    query = sa.select(answer).where(answer.c.document_sha256 == digest)
    row = connection.execute(query).one_or_none()
    return None if row is None else _as_stored(row)


def store(connection: sa.Connection, key: str, body: bytes) -> Stored:
    """Keep `body` as the answer of `key`, unless it is decided already; returns what is there.

    Two processes may compute the same granted draw at once (a crash and a restart). Only the first
    stored bytes ever leave, so one debit never pays for two noise draws that are both seen.
    """
    connection.execute(
        sa.update(answer)
        .where(answer.c.key == key, answer.c.state == State.GRANTED)
        .values(body=body, state=State.STORED)
    )
    kept = stored(connection, key)
    if kept is None:
        raise InvariantError("budget: an answer without a grant")
    return kept


def discard(connection: sa.Connection, key: str) -> None:
    """The answer never leaves (again). What left before stays listed as used; the debit stays."""
    connection.execute(
        sa.update(answer).where(answer.c.key == key).values(state=State.DISCARDED, body=None)
    )


def release(connection: sa.Connection, key: str, document: str, digest: str, *, at: int) -> None:
    """Record the signed document that leaves with the answer, before it leaves."""
    connection.execute(
        sa.update(answer)
        .where(answer.c.key == key, answer.c.state == State.STORED)
        .values(document=document, document_sha256=digest, at=at)
    )


def release_again(
    connection: sa.Connection, kept: Stored, key: str, document: str, digest: str, *, at: int
) -> None:
    """Record a further document over bytes that left before, beside the first and not instead.

    Every document that left stays on the patients' lists; the use is the one of the first release.
    """
    connection.execute(
        sa.insert(answer).values(
            key=key,
            input_sha256=kept.input_sha256,
            debit_sequence=kept.debit_sequence,
            seed=kept.seed,
            places=kept.places,
            lease_sha256=kept.lease_sha256,
            state=State.STORED,
            document=document,
            document_sha256=digest,
            at=min(at, kept.at),
        )
    )


def _as_stored(row: sa.Row[tuple[object, ...]]) -> Stored:
    values = row._mapping  # noqa: SLF001  (SQLAlchemy's public name for it)
    body = values["body"]
    return Stored(
        key=str(values["key"]),
        input_sha256=str(values["input_sha256"]),
        debit_sequence=values["debit_sequence"],
        seed=str(values["seed"]),
        places=values["places"],
        lease_sha256=str(values["lease_sha256"]),
        state=State(values["state"]),
        body=None if body is None else bytes(body),
        document=values["document"],
        at=values["at"],
    )
