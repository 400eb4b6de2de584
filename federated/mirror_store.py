"""The mirror's tables, and what is read from and written to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from consent.speakers import Speakers
from coop.canonical import jcs, parse_object
from coop.db import RowId, insert_ignore, metadata
from coop.documents.envelope import Opened
from coop.documents.training import Lease
from coop.errors import ConflictError
from coop.journal.merkle import Tree, leaf_hash
from federated.envelopes import Envelope
from federated.site import Site, desk_document, enrolled, get_state, put_state

_DOCUMENTS_TO: Final = "mirror_documents_to"

mirror_entry = sa.Table(
    "mirror_entry",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
)
mirror_document = sa.Table(
    "mirror_document",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("pid", sa.String(26), nullable=False, index=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("salt", sa.String(64), nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.Column("lease_sequence", sa.BigInteger, nullable=False),
)
"""`lease_sequence` is the lease with which a document came: what an older lease vouched for had to
do without it."""
mirror_note = sa.Table(
    "mirror_note",
    metadata,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("cosigned_at", sa.BigInteger),
)
mirror_lease = sa.Table(
    "mirror_lease",
    metadata,
    sa.Column("sequence", RowId, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("log_size", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)
"""Leases held: with a patient's receipt they convict a hub that withheld her withdrawal."""
mirror_evidence = sa.Table(
    "mirror_evidence",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("ours", sa.Text, nullable=False),
    sa.Column("theirs", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
"""Signed notes of the log that contradict what it showed before."""


Purge = Callable[[sa.Connection, Site, Sequence[Envelope]], None]
_NEWEST_NOTE: Final = sa.select(mirror_note.c.note).order_by(mirror_note.c.size.desc()).limit(1)


class MirrorMovedError(ConflictError):
    """Another process of this hospital verified more of the log meanwhile."""

    code = "mirror.moved"


def stored_tree(site: Site) -> Tree:
    """The verified tree."""
    tree = Tree()
    with site.database.reading() as connection:
        query = sa.select(mirror_entry.c.leaf_hash).order_by(mirror_entry.c.log_index)
        for hashed in connection.execute(query).scalars():
            tree.append(bytes(hashed))
    return tree


def stored_envelopes(site: Site, lease_sequence: int | None = None) -> list[Envelope]:
    """Every verified envelope of this site's patients, in the order of the log.

    Args:
        site: This hospital.
        lease_sequence: Only those that came with this lease or before it.
    """
    with site.database.reading() as connection:
        query = sa.select(mirror_document).order_by(mirror_document.c.log_index)
        if lease_sequence is not None:
            query = query.where(mirror_document.c.lease_sequence <= lease_sequence)
        return [
            Envelope(
                index=row.log_index,
                salt=row.salt,
                document=parse_object(row.document),
                seen_at=row.seen_at,
            )
            for row in connection.execute(query)
        ]


def stored_size(site: Site) -> int:
    """How many entries are stored."""
    with site.database.reading() as connection:
        return entries(connection)


def documents_to(site: Site) -> int:
    """The stored envelopes are complete below this index, as far as the hub said."""
    with site.database.reading() as connection:
        return int(get_state(connection, _DOCUMENTS_TO) or 0)


def keep_growth(site: Site, size: int, text: str, leaves: Sequence[bytes]) -> None:
    """Make verified growth durable: `leaves` are the last entries of the log of `size`."""
    with site.database.unit_of_work() as connection:
        _keep_growth(connection, size, text, leaves)


def keep_lease(
    site: Site,
    lease: Opened[Lease],
    text: str,
    leaves: Sequence[bytes],
    envelopes: Sequence[Envelope],
    purge: Purge,
) -> None:
    """Make a verified lease and what came with it durable, in one unit of work.

    `purge` deletes, last of all, what erasures among `envelopes` name.
    """
    with site.database.unit_of_work() as connection:
        _keep_growth(connection, lease.subject.log_size, text, leaves)
        sequence = connection.execute(
            mirror_lease.insert()
            .values(
                digest=lease.digest,
                log_size=lease.subject.log_size,
                document=jcs(lease.document).decode(),
            )
            .returning(mirror_lease.c.sequence)
        ).scalar_one()
        for envelope in envelopes:
            row = {**_document_row(envelope), "lease_sequence": sequence}
            insert_ignore(connection, mirror_document, row)
        if leaves or envelopes:
            put_state(connection, _DOCUMENTS_TO, str(lease.subject.log_size))
        purge(connection, site, envelopes)


class NewestEnrolments:
    """When this hospital signed its last enrolment for each pid, and its digest.

    Several only within one second. Kept until an enrolment comes or goes: every lease asks.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._kept: tuple[tuple[object, ...], dict[str, tuple[int, set[str]]]] = ((), {})

    def now(self) -> Mapping[str, tuple[int, set[str]]]:
        """As the database says now."""
        columns = digest, at = enrolled.c.digest, enrolled.c.at
        functions = sa.func.count(), sa.func.sum(at), sa.func.min(digest), sa.func.max(digest)
        with self._site.database.reading() as connection:
            marker = tuple(connection.execute(sa.select(*functions)).one())
            kept = self._kept
            if marker == kept[0]:
                return kept[1]
            newest: dict[str, tuple[int, set[str]]] = {}
            rows = connection.execute(sa.select(enrolled.c.pid, *columns).order_by(at))
            for pid, name, when in rows:
                before = newest.get(pid)
                if before is not None and before[0] == when:
                    before[1].add(name)
                else:
                    newest[pid] = when, {name}
        self._kept = marker, newest
        return newest


def is_behind(speakers: Speakers, newest: tuple[int, set[str]] | None) -> bool:
    """Whether this hospital has enrolled a newer key than the hub has shown it."""
    if newest is None or speakers.enrolled_at > newest[0]:  # restored from a backup
        return False
    return speakers.enrolled_at < newest[0] or newest[1].isdisjoint(speakers.enrolments)


def ended_representations(site: Site) -> set[str]:
    """Representations that this hospital ended, whether or not the hub has logged it."""
    with site.database.reading() as connection:
        query = sa.select(desk_document.c.ends).where(desk_document.c.ends.is_not(None))
        return set(connection.execute(query).scalars())


def must_cosign(site: Site, size: int) -> bool:
    """Whether the verified checkpoint of this size still lacks our cosignature at the hub."""
    with site.database.reading() as connection:
        query = sa.select(mirror_note.c.cosigned_at).where(mirror_note.c.size == size)
        return size > 0 and connection.execute(query).scalar() is None


def keep_cosigned(site: Site, size: int, at: int) -> None:
    """Note that the hub has our cosignature of this size."""
    with site.database.unit_of_work() as connection:
        connection.execute(
            mirror_note.update().where(mirror_note.c.size == size).values(cosigned_at=at)
        )


def newest_note(site: Site) -> str:
    """The newest verified checkpoint: it is of the stored tree."""
    with site.database.reading() as connection:
        return connection.execute(_NEWEST_NOTE).scalar() or ""


def keep_evidence(site: Site, theirs: str, reason: str, at: int) -> None:
    """Keep a signed note that contradicts our newest one, beside that one; once."""
    with site.database.unit_of_work() as connection:
        ours = connection.execute(_NEWEST_NOTE).scalar() or ""
        same = (mirror_evidence.c.ours == ours) & (mirror_evidence.c.theirs == theirs)
        if connection.execute(sa.select(mirror_evidence.c.id).where(same)).first() is None:
            values = {"reason": reason, "ours": ours, "theirs": theirs, "at": at}
            connection.execute(mirror_evidence.insert().values(values))


def evidence(site: Site) -> list[Mapping[str, Any]]:
    """Signed notes that contradict each other, oldest first."""
    with site.database.reading() as connection:
        query = sa.select(mirror_evidence).order_by(mirror_evidence.c.id)
        return [dict(row) for row in connection.execute(query).mappings()]


def entries(connection: sa.Connection) -> int:
    """How many entries are stored."""
    newest = connection.execute(sa.select(sa.func.max(mirror_entry.c.log_index))).scalar()
    return 0 if newest is None else int(newest) + 1


def _keep_growth(connection: sa.Connection, size: int, text: str, leaves: Sequence[bytes]) -> None:
    start = size - len(leaves)
    if entries(connection) != start:
        raise MirrorMovedError("mirror: another process of this hospital moved it; ask again")
    if leaves:
        rows = [
            {"log_index": start + number, "leaf_hash": leaf_hash(leaf)}
            for number, leaf in enumerate(leaves)
        ]
        connection.execute(mirror_entry.insert(), rows)
    insert_ignore(connection, mirror_note, {"size": size, "note": text})


def _document_row(envelope: Envelope) -> dict[str, object]:
    subject = envelope.document["credentialSubject"]
    return {
        "log_index": envelope.index,
        "pid": str(subject.get("pid", "")) if isinstance(subject, dict) else "",
        "kind": envelope.kind,
        "digest": envelope.digest,
        "document": jcs(envelope.document).decode(),
        "salt": envelope.salt,
        "seen_at": envelope.seen_at,
    }
