"""Documents that do not verify: kept as evidence, and set aside by the staff's signed act.

One such document stops every lease of the hospital, for nobody can say what it hides. Staff who
looked into it may set exactly this entry aside. Then its patient counts as denied until she signs a
choice again, and leases are possible for all others. Nothing that does not verify ever counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa

from coop.canonical import Json, jcs, parse_object
from coop.db import insert_ignore, metadata
from coop.documents.envelope import issue, open_document
from coop.documents.quarantine import Quarantine
from coop.errors import CoopError, InvalidInputError, Kind
from coop.journal.commitments import commitment_of_digest, leaf_of
from coop.journal.merkle import leaf_hash
from federated.envelopes import Envelope, Fold, UnloggedDocumentError
from federated.site import PID_LETTERS, Site

RUNBOOK: Final = "docs/runbook.md, “A document does not verify”"

mirror_refused = sa.Table(
    "mirror_refused",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("pid", sa.String(26), nullable=False),
    sa.Column("salt", sa.String(64), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("code", sa.String(64), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("settled_at", sa.BigInteger),
)
"""Evidence, never deleted: documents as the hub sent them. `kind` is empty where the log commits to
another document, and `digest` is then only what came. Settled once a lease was possible again."""

mirror_quarantine = sa.Table(
    "mirror_quarantine",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("document", sa.Text, nullable=False),
)
"""The staff's signed acts; nobody without the site's key can add one."""

_REASON_MIN: Final = 3
_REASON_MAX: Final = 500
_OPEN: Final = mirror_refused.c.settled_at.is_(None)


class NothingToSetAsideError(CoopError):
    """There is no refused document at this entry, or it is not the one the log holds."""

    code = "quarantine.nothing"
    kind = Kind.CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """An entry of the log that staff set aside."""

    index: int
    said: Quarantine

    def check_logged(self, logged: bytes) -> None:
        """Return if the entry with this leaf hash commits to exactly what was set aside.

        Raises:
            UnloggedDocumentError: It does not.
        """
        said = self.said
        committed = commitment_of_digest(bytes.fromhex(said.salt), said.document_sha256)
        if leaf_hash(leaf_of(said.document_kind, committed)) != logged:
            raise UnloggedDocumentError(f"entry {self.index}: the log holds another document there")


def take(fold: Fold, item: Envelope | Aside) -> None:
    """Let the fold take an envelope, or pass over what was set aside."""
    if isinstance(item, Envelope):
        fold.take(item)
    else:
        said = item.said
        fold.set_aside(item.index, said.document_kind, said.document_sha256, said.pid)


def keep_refused(site: Site, envelope: Envelope, logged: bytes, code: str, at: int) -> None:
    """Keep what the hub sent and why it does not count; once."""
    kind, digest = envelope.committed(logged) or ("", envelope.claimed_digest)
    whole = digest == envelope.claimed_digest
    with site.database.unit_of_work() as connection:
        insert_ignore(
            connection,
            mirror_refused,
            {
                "log_index": envelope.index,
                "digest": digest,
                "kind": kind,
                "pid": _pid(envelope.document) if whole else envelope.named_pid,
                "salt": envelope.salt,
                "document": _text(envelope.document),
                "code": code,
                "at": at,
            },
        )
        same = (mirror_refused.c.log_index == envelope.index) & (mirror_refused.c.digest == digest)
        connection.execute(sa.update(mirror_refused).where(same).values(settled_at=None))


def settle(site: Site, at: int) -> None:
    """A lease was possible: whatever was refused before no longer stands in its way."""
    with site.database.reading() as connection:
        if connection.execute(sa.select(mirror_refused.c.log_index).where(_OPEN)).first() is None:
            return
    with site.database.unit_of_work() as connection:
        connection.execute(sa.update(mirror_refused).where(_OPEN).values(settled_at=at))


def refusals(site: Site) -> list[dict[str, Any]]:
    """Refused documents that stop the leases, in the order of the log; for the staff."""
    with site.database.reading() as connection:
        aside = sa.select(mirror_quarantine.c.log_index)
        query = (
            sa.select(mirror_refused)
            .where(_OPEN, mirror_refused.c.log_index.not_in(aside))
            .order_by(mirror_refused.c.log_index, mirror_refused.c.at)
        )
        return [dict(row) for row in connection.execute(query).mappings()]


def set_aside(site: Site, index: int, reason: str, *, now: int) -> dict[str, Any]:
    """Set the refused document at this entry aside; returns the signed act, the same if repeated.

    Raises:
        NothingToSetAsideError: No document was refused there, or what was refused is not what the
            log holds: then the hub has to send the right one first.
        InvalidInputError: The reason is too short or too long.
    """
    reason = reason.strip()
    if not _REASON_MIN <= len(reason) <= _REASON_MAX:
        raise InvalidInputError(
            f"reason: {_REASON_MIN} to {_REASON_MAX} characters, for later readers"
        )
    with site.database.unit_of_work() as connection:
        known = sa.select(mirror_quarantine.c.document).where(
            mirror_quarantine.c.log_index == index
        )
        if (text := connection.execute(known).scalar()) is not None:
            return dict(parse_object(text))
        query = sa.select(mirror_refused).where(mirror_refused.c.log_index == index)
        rows = connection.execute(query.order_by(mirror_refused.c.at)).all()
        if not rows:
            raise NothingToSetAsideError(
                f"entry {index}: no document was refused there; see `coop hospital doctor`"
            )
        logged = [row for row in rows if row.kind]
        if not logged:
            raise NothingToSetAsideError(
                f"entry {index}: the log holds another document than the hub sends; "
                "the cooperative's staff must put the right one back"
            )
        row = logged[0]
        subject = Quarantine(
            site=site.name,
            log_index=index,
            document_kind=row.kind,
            document_sha256=row.digest,
            salt=row.salt,
            pid=row.pid,
            code=row.code,
            reason=reason,
        )
        document = issue(subject, site.key, now)
        connection.execute(
            mirror_quarantine.insert().values(log_index=index, document=jcs(document).decode())
        )
    return document


def asides(site: Site) -> dict[int, Aside]:
    """Every entry set aside, by index; the staff's signatures verified."""
    return {index: Aside(index=index, said=said) for index, said, _ in _acts(site)}


def acts(site: Site) -> list[dict[str, Any]]:
    """What was set aside, when and why, newest first; for the staff."""
    listed = [
        {**said.model_dump(exclude={"salt", "site"}), "at": at} for _, said, at in _acts(site)
    ]
    return listed[::-1]


def _acts(site: Site) -> list[tuple[int, Quarantine, int]]:
    with site.database.reading() as connection:
        query = sa.select(mirror_quarantine).order_by(mirror_quarantine.c.log_index)
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        opened = open_document(Quarantine, parse_object(row.document), issuers={site.key.did})
        found.append((opened.subject.log_index, opened.subject, opened.at))
    return found


def _pid(document: Mapping[str, Json]) -> str:
    """Whom the document names; empty if nobody that could have a record here."""
    subject = document.get("credentialSubject")
    pid = subject.get("pid") if isinstance(subject, dict) else None
    return pid if isinstance(pid, str) and len(pid) == PID_LETTERS else ""


def _text(document: Mapping[str, Json]) -> str:
    try:
        return jcs(dict(document)).decode()
    except CoopError:  # what has no canonical form is kept as it came
        return orjson.dumps(document).decode()
