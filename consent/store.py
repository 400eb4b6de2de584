"""The registry's tables, and standings read from and written to them.

`consent_head` is the fold of `consent_event` (`consent.chain.apply`), kept so that a lease or a
count reads one row per patient; `site_document` lists what a hospital must mirror.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from consent.decide import Standing, State
from consent.speakers import Speakers
from coop.canonical import jcs, parse_object
from coop.db import Database, metadata
from coop.documents.provision import TIME_MAX, Policy

_CHUNK: Final = (
    500  # SQLite's default limit of bound values is far above, PostgreSQL's plans are not
)


def _counts_columns() -> list[sa.Column[object]]:
    """From when until when what was given counts, and under which representation."""
    return [
        sa.Column("starts_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("ends_at", sa.BigInteger, nullable=False, server_default=str(TIME_MAX)),
        sa.Column("under", sa.String(64)),
    ]


enrolment = sa.Table(
    "enrolment",
    metadata,
    sa.Column("pid", sa.String(26), primary_key=True),
    sa.Column("site", sa.String(64), nullable=False, index=True),
    sa.Column("did", sa.String(128), nullable=False, index=True),
    sa.Column("custody", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False),
    sa.Column("speakers", sa.Text, nullable=False),
    sa.Column("newest", sa.String(64)),
)
"""Who may speak for each record (`consent.speakers.Speakers`, folded): the key it has now, the
newest enrolment, and what a lease vouches for beside the chain's head."""

representation = sa.Table(
    "representation",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("pid", sa.String(26), nullable=False),
    sa.Column("site", sa.String(64), nullable=False),
    sa.Column("did", sa.String(128), nullable=False, index=True),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("ended_index", sa.BigInteger),
)
"""Representations, to find them by the representative's key; what they say is in `speakers`."""

redemption = sa.Table(
    "redemption",
    metadata,
    sa.Column("code_id", sa.String(80), primary_key=True),
    sa.Column("site", sa.String(64), nullable=False),
    sa.Column("did", sa.String(128), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("account_id", sa.BigInteger),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64)),
    sa.Column("pid", sa.String(26)),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index("ix_redemption_waiting", "site", "state", "at"),
)

former_key = sa.Table(
    "former_key",
    metadata,
    sa.Column("did", sa.String(128), primary_key=True),
    sa.Column("pid", sa.String(26), primary_key=True),
    sa.Column("until", sa.BigInteger, nullable=False),
)
"""Keys that a recovery replaced: until then they may object to it."""

consent_event = sa.Table(
    "consent_event",
    metadata,
    sa.Column("pid", sa.String(26), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("actor", sa.String(16), nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False, unique=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("receipt_digest", sa.String(64), nullable=False),
    sa.Column("enrolment_digest", sa.String(64), nullable=False),
    *_counts_columns(),
)

consent_head = sa.Table(
    "consent_head",
    metadata,
    sa.Column("pid", sa.String(26), primary_key=True),
    sa.Column("site", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False),
    sa.Column("widened_index", sa.BigInteger, nullable=False),
    sa.Column("policy", sa.Text),
    sa.Column("objected", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("on_death", sa.String(16), nullable=False, server_default="stop"),
    *_counts_columns(),
    sa.Index("ix_consent_head_site", "site", "state"),
)

consent_draft = sa.Table(
    "consent_draft",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("pid", sa.String(26), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger),
)
"""Unsigned documents with their proof options: what the hub verifies a browser's signature over."""

site_document = sa.Table(
    "site_document",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("site", sa.String(64), nullable=False),
    sa.Column("pid", sa.String(26), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("receipt_digest", sa.String(64)),
    sa.Index("ix_site_document_site", "site", "log_index"),
    sa.Index("ix_site_document_pid", "pid", "log_index"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """Who speaks for a record."""

    pid: str
    site: str
    did: str
    """The key it has now."""
    custody: str
    digest: str
    """Of the newest enrolment."""
    log_index: int
    speakers: Speakers


@contextmanager
def snapshot(database: Database) -> Iterator[sa.Connection]:
    """One read of one instant on both databases.

    A lease names a size, heads and documents; read at different instants they would contradict
    each other. PostgreSQL's default isolation takes a new snapshot for every statement.
    """
    with database.reading() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


def enrolled(
    connection: sa.Connection, pids: Collection[str], *, lock: bool = False
) -> dict[str, Enrolled]:
    """The enrolments of these pids.

    Args:
        connection: Any; of a unit of work when locking.
        pids: Unknown ones are left out.
        lock: Hold the rows until the commit: two writers never continue one chain at once.
    """
    found: dict[str, Enrolled] = {}
    # In order, so that two batches with the same pids cannot wait for each other.
    for chunk in _chunks(sorted(pids)):
        query = sa.select(enrolment).where(enrolment.c.pid.in_(chunk)).order_by(enrolment.c.pid)
        for row in connection.execute(query.with_for_update() if lock else query):
            found[row.pid] = Enrolled(
                pid=row.pid,
                site=row.site,
                did=row.did,
                custody=row.custody,
                digest=row.digest,
                log_index=row.log_index,
                speakers=Speakers.of_text(row.speakers),
            )
    return found


def standings(connection: sa.Connection, pids: Collection[str]) -> dict[str, Standing]:
    """How these pids' chains stand; those without an event are left out."""
    found: dict[str, Standing] = {}
    for chunk in _chunks(sorted(pids)):
        query = sa.select(consent_head).where(consent_head.c.pid.in_(chunk))
        found |= {row.pid: standing_of(row) for row in connection.execute(query)}
    return found


def standing_of(
    row: sa.Row[tuple[object, ...]], parsed: dict[str, Policy] | None = None
) -> Standing:
    """The standing in a row of `consent_head`.

    Args:
        row: The row.
        parsed: Policies by their text: most patients chose one of few, so parse each once.
    """
    policy = None
    if row.policy is not None:
        policy = parsed.get(row.policy) if parsed is not None else None
        policy = policy or Policy.model_validate(parse_object(row.policy))
        if parsed is not None:
            parsed[row.policy] = policy
    return Standing(
        state=State(row.state),
        policy=policy,
        head_digest=row.digest,
        sequence=row.sequence,
        log_index=row.log_index,
        widened_index=row.widened_index,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        under=row.under,
        objected=bool(row.objected),
        on_death=row.on_death,
    )


def save_standings(
    connection: sa.Connection, changed: dict[str, tuple[str, Standing]], known: Collection[str]
) -> None:
    """Write new heads: (site, standing) by pid; `known` are the pids that have a row."""
    rows = [_head_row(pid, site, standing) for pid, (site, standing) in changed.items()]
    new = [row for row in rows if row["pid"] not in known]
    old = [{**row, "of_pid": row["pid"]} for row in rows if row["pid"] in known]
    if new:
        connection.execute(consent_head.insert(), new)
    if old:
        names = tuple(name for name in old[0] if name not in {"pid", "site", "of_pid"})
        update = consent_head.update().where(consent_head.c.pid == sa.bindparam("of_pid"))
        values: dict[str, sa.BindParameter[object]] = {name: sa.bindparam(name) for name in names}
        connection.execute(
            update.values(values), [{k: row[k] for k in ("of_pid", *names)} for row in old]
        )


def events_by_digest(
    connection: sa.Connection, digests: Collection[str]
) -> dict[str, sa.Row[tuple[object, ...]]]:
    """The events that are these documents."""
    found: dict[str, sa.Row[tuple[object, ...]]] = {}
    for chunk in _chunks(sorted(digests)):
        query = sa.select(consent_event).where(consent_event.c.digest.in_(chunk))
        found |= {row.digest: row for row in connection.execute(query)}
    return found


def _head_row(pid: str, site: str, standing: Standing) -> dict[str, object]:
    policy = standing.policy
    text = jcs(policy.model_dump(mode="json", exclude_none=True)).decode() if policy else None
    return {
        "pid": pid,
        "site": site,
        "state": str(standing.state),
        "sequence": standing.sequence,
        "digest": standing.head_digest,
        "log_index": standing.log_index,
        "widened_index": standing.widened_index,
        "policy": text,
        "starts_at": standing.starts_at,
        "ends_at": standing.ends_at,
        "under": standing.under,
        "objected": standing.objected,
        "on_death": standing.on_death,
    }


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(values), _CHUNK):
        yield values[at : at + _CHUNK]
