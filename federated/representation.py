"""Representatives at the desk: recorded with their paper, ended, and sent to the registry.

A document is durable here before it is sent; a node that runs sends what is still waiting. An end
counts in this house at once, whether or not the hub has logged it (`Mirror`).
"""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from consent.speakers import Speakers
from coop.canonical import Json, document_digest, jcs, parse_object
from coop.client import Client
from coop.documents.envelope import issue
from coop.documents.people import Authority, Representation, RepresentationEnd, Role
from coop.errors import NotFoundError
from coop.passkeys import check_did
from federated.desk import pid_of_record
from federated.site import Site, desk_document

_PAPER: Final[dict[Role, Any]] = {
    "parent": "birth-record",
    "guardian": "court-order",
    "proxy": "power-of-attorney",
    "executor": "will",
}


class NoRepresentationError(NotFoundError):
    """This hospital has recorded no such representative of the record."""

    code = "desk.no-representation"


def represent(
    site: Site,
    record_key: str,
    who: tuple[str, Role],
    period: tuple[int, int],
    paper_sha256: str,
    *,
    now: int,
) -> dict[str, Json]:
    """Record that somebody may decide for a patient; the registrar has seen the paper.

    Args:
        site: This hospital.
        record_key: The patient's record number.
        who: The did of the representative's own key, and by what right.
        period: From when until when; of a minor until the second she comes of age.
        paper_sha256: Of the paper, which stays here.
        now: UTC seconds.
    """
    did, role = who
    with site.database.unit_of_work() as connection:
        subject = Representation(
            pid=pid_of_record(connection, record_key),
            site=site.name,
            did=check_did(did),
            role=role,
            authority=Authority(kind=_PAPER[role], document_sha256=paper_sha256),
            valid_from=period[0],
            valid_until=period[1],
        )
        return _kept(connection, site, subject, None, now)


def end(
    site: Site, record_key: str, did: str, known: Mapping[str, Speakers], *, now: int
) -> list[dict[str, Json]]:
    """End every representation of a patient by this did: the hospital's own, and the patient's.

    Args:
        site: This hospital.
        record_key: The patient's record number.
        did: The representative's.
        known: Who may speak, as far as this hospital has seen (`Mirror.speakers`).
        now: UTC seconds.

    Raises:
        NoRepresentationError: There is none.
    """
    with site.database.unit_of_work() as connection:
        pid = pid_of_record(connection, record_key)
        digests = _recorded(connection, pid, did)
        if pid in known:
            named = known[pid].representatives
            digests |= {one.digest for one in named if one.did == did and not one.ended}
        ended = sa.select(desk_document.c.ends).where(desk_document.c.ends.is_not(None))
        digests -= set(connection.execute(ended).scalars())
        if not digests:
            raise NoRepresentationError("did: no such representative of this patient is known here")
        return [
            _kept(
                connection,
                site,
                RepresentationEnd(pid=pid, site=site.name, representation_sha256=digest),
                digest,
                now,
            )
            for digest in sorted(digests)
        ]


def _recorded(connection: sa.Connection, pid: str, did: str) -> set[str]:
    query = sa.select(desk_document.c.digest, desk_document.c.document).where(
        desk_document.c.pid == pid, desk_document.c.kind == Representation.kind
    )
    rows = connection.execute(query).all()
    return {row.digest for row in rows if _subject(row.document).get("did") == did}


def send(site: Site, client: Client, *, now: int) -> list[dict[str, Any]]:
    """Send what waits to the registry, oldest first; for each what the registry answered.

    A document that the registry took twice is one document: a crash between its answer and the
    note of it here sends it again.
    """
    with site.database.reading() as connection:
        query = sa.select(desk_document.c.digest, desk_document.c.document).where(
            desk_document.c.sent_at.is_(None), desk_document.c.refused.is_(None)
        )
        # An end follows what it ends, also within one second.
        query = query.order_by(desk_document.c.at, desk_document.c.kind)
        rows = connection.execute(query).all()
    if not rows:
        return []
    body = {"documents": [parse_object(row.document) for row in rows]}
    answers: list[dict[str, Any]] = client.post("/v1/keys", body)["results"]
    with site.database.unit_of_work() as connection:
        for row, answer in zip(rows, answers, strict=True):
            problem = answer["problem"]
            noted = {"sent_at": now} if problem is None else {"refused": problem["code"]}
            same = desk_document.c.digest == row.digest
            connection.execute(desk_document.update().where(same).values(noted))
    return answers


def _kept(
    connection: sa.Connection,
    site: Site,
    subject: Representation | RepresentationEnd,
    ends: str | None,
    now: int,
) -> dict[str, Json]:
    document = issue(subject, site.key, now)
    connection.execute(
        desk_document.insert().values(
            digest=document_digest(document),
            pid=subject.pid,
            kind=type(subject).kind,
            document=jcs(document).decode(),
            ends=ends,
            at=now,
        )
    )
    return document


def _subject(text: str) -> dict[str, Json]:
    subject = parse_object(text)["credentialSubject"]
    return subject if isinstance(subject, dict) else {}
