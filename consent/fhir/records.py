"""Consent chains read from the registry's tables, a page at a time."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa

from consent.fhir.record import Record
from consent.fhir.search import Test
from consent.store import consent_head, enrolment, events_by_digest, standing_of
from coop.canonical import Json
from coop.documents.provision import Policy
from coop.journal.store import Journal, NotLoggedError

SCANNED_MAX: Final = 5_000  # rows one page looks at: half a second at most
_CHUNK: Final = 500
DOMAIN: Final = "research"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """Whose chains a caller may see: those of a hospital, or some by name."""

    site: str | None = None
    pids: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some of the chains found, and where to go on."""

    records: Sequence[Record]
    after: str | None
    """The last pid looked at; None at the end."""


def page(
    connection: sa.Connection,
    journal: Journal,
    visible: Visible,
    tests: Sequence[Test],
    *,
    after: str,
    count: int,
) -> Page:
    """The next chains that pass every test, in order of pid.

    A page may hold fewer than `count` and still not be the last: it looks at so many rows at most.
    """
    found: list[Record] = []
    parsed: dict[str, Policy] = {}
    scanned = 0
    while len(found) < count and scanned < SCANNED_MAX:
        query = _query(visible).where(consent_head.c.pid > after)
        rows = connection.execute(query.order_by(consent_head.c.pid).limit(_CHUNK)).all()
        heads = events_by_digest(connection, [row.digest for row in rows])
        for row in rows:
            after = row.pid
            scanned += 1
            record = _record(row, heads[row.digest], parsed)
            if all(test(record) for test in tests):
                found.append(record)
                if len(found) == count:
                    break
        if len(rows) < _CHUNK and (not rows or after == rows[-1].pid):
            return Page(records=_signed(connection, journal, found), after=None)
    return Page(records=_signed(connection, journal, found), after=after)


def one(
    connection: sa.Connection, journal: Journal, visible: Visible, resource_id: str
) -> Record | None:
    """The chain with this resource id, if the caller may see it."""
    pid, _, domain = resource_id.partition("-")
    if domain != DOMAIN:
        return None
    query = _query(visible).where(consent_head.c.pid == pid)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    head = events_by_digest(connection, [row.digest])[row.digest]
    return _signed(connection, journal, [_record(row, head, {})])[0]


def _query(visible: Visible) -> sa.Select[tuple[object, ...]]:
    whose = (
        consent_head.c.site == visible.site
        if visible.site is not None
        else consent_head.c.pid.in_(sorted(visible.pids)[:_CHUNK])
    )
    query: sa.Select[tuple[object, ...]] = (
        sa.select(consent_head, enrolment.c.did, enrolment.c.custody)
        .join(enrolment, enrolment.c.pid == consent_head.c.pid)
        .where(whose)
    )
    return query


def _record(
    row: sa.Row[tuple[object, ...]],
    head: sa.Row[tuple[object, ...]],
    parsed: dict[str, Policy],
) -> Record:
    standing = standing_of(row, parsed)
    return Record(
        pid=row.pid,
        site=row.site,
        domain=DOMAIN,
        did=row.did,
        custody=row.custody,
        state=standing.state,
        sequence=standing.sequence,
        at=head.at,
        event=head.event,
        head_sha256=standing.head_digest,
        log_index=standing.log_index,
        policy=standing.policy,
        envelope=None,
        starts_at=standing.starts_at,
        ends_at=standing.ends_at,
        objected=standing.objected,
    )


def _signed(connection: sa.Connection, journal: Journal, records: Sequence[Record]) -> list[Record]:
    """The records with the signed event of each; erased ones stay without."""
    found = []
    for record in records:
        envelope: dict[str, Json] | None = None
        with suppress(NotLoggedError):
            envelope = journal.document(connection, record.head_sha256)
        found.append(replace(record, envelope=envelope))
    return found
