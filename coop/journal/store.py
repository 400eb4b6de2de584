"""The log's tables: documents, leaves, head, checkpoints, cosignatures.

`Journal.record` writes the document, its leaf and a signed checkpoint in the caller's own unit of
work, so the fact and its log entry become durable together or not at all. A leaf holds a salted
commitment and nothing else: erasing the document and its salt leaves the tree intact and the leaf
unlinkable.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock
from typing import ClassVar, Final

import sqlalchemy as sa

from coop.canonical import Hash, Json, b64u, jcs, parse_object, sha256
from coop.db import Database, insert_ignore
from coop.errors import InvalidInputError, NotFoundError, broken
from coop.journal import note, rows
from coop.journal.commitments import SALT_BYTES, Logged, commitment_of_digest, leaf_of
from coop.journal.merkle import EMPTY_ROOT, Frontier, Tree, leaf_hash
from coop.journal.receipts import bundle_of, proof_text
from coop.journal.rows import (
    LoggedOtherwiseError,
    log_checkpoint,
    log_cosignature,
    log_entry,
    log_head,
    signed_document,
)
from coop.journal.tiles import Tile, entry_bundle
from coop.keys import SigningKey, random_bytes

__all__ = [
    "Journal",
    "Logged",
    "LoggedOtherwiseError",
    "NotLoggedError",
    "log_checkpoint",
    "log_cosignature",
    "log_entry",
    "log_head",
    "signed_document",
]

ENTRIES_MAX: Final = 5000  # one page of the log: about 600 kB
BATCH_MAX: Final = 1000  # documents in one call: one transaction stays far below a second


class NotLoggedError(NotFoundError):
    """The log holds no such document, or it was erased."""

    code: ClassVar[str] = "journal.not-logged"


class Journal:
    """The transparency log of one hub. Thread-safe; any number may share one database.

    Args:
        database: Where the log lives.
        log_key: Signs checkpoints; not the key that signs documents.
        origin: The log's name in every checkpoint (`hub.example/log`).
        now: UTC seconds.
    """

    def __init__(
        self, database: Database, log_key: SigningKey, origin: str, now: Callable[[], int]
    ) -> None:
        note.checkpoint_text(origin, 0, EMPTY_ROOT)  # refuses an origin that no note can hold
        self.database = database
        self.origin = origin
        self.log_did = log_key.did
        self._key = log_key
        self._now = now
        self._tree = Tree()
        self._tree_checked = (0, b"")
        self._tree_lock = Lock()

    def record(
        self,
        connection: sa.Connection,
        kind: str,
        document: Mapping[str, Json],
        *,
        salt: bytes | None = None,
    ) -> Logged:
        """Put one signed document into the log, in the caller's unit of work.

        Call it last in the unit of work: from here until the commit no other writer appends. The
        same document again returns its first place.

        Args:
            connection: Of a `unit_of_work`.
            kind: `consent`, `order` … stands in the leaf.
            document: Signed and verified by the caller.
            salt: 32 secret bytes of the commitment; fresh ones by default.

        Raises:
            LoggedOtherwiseError: It is in the log as another kind.
        """
        return self._append(connection, kind, [(document, salt)])[0]

    def record_many(
        self, connection: sa.Connection, kind: str, documents: Sequence[Mapping[str, Json]]
    ) -> list[Logged]:
        """`record` for a batch: consecutive entries under one checkpoint."""
        if len(documents) > BATCH_MAX:
            raise InvalidInputError(f"documents: at most {BATCH_MAX} in one batch")
        return self._append(connection, kind, [(document, None) for document in documents])

    def _append(
        self,
        connection: sa.Connection,
        kind: str,
        items: Sequence[tuple[Mapping[str, Json], bytes | None]],
    ) -> list[Logged]:
        # The head is locked before anything is read, so indices have no gap and no twin.
        frontier = rows.lock_head(connection)
        bodies = [jcs(dict(document)) for document, _ in items]
        digests = [sha256(body).hex() for body in bodies]
        known = rows.known(connection, kind, digests)
        results: list[Logged] = []
        documents, entries = [], []
        for (_, given), body, digest in zip(items, bodies, digests, strict=True):
            if digest not in known:
                salt = given if given is not None else random_bytes(SALT_BYTES)
                leaf = leaf_of(kind, commitment_of_digest(salt, digest))
                logged = Logged(index=frontier.size, digest=digest, salt=salt.hex())
                documents.append(rows.document_row(kind, body, logged, self._now()))
                hashed = leaf_hash(leaf)
                entries.append({"log_index": frontier.size, "leaf": leaf, "leaf_hash": hashed})
                frontier = frontier.append(hashed)
                known[digest] = logged
            results.append(known[digest])
        if entries:
            connection.execute(signed_document.insert(), documents)
            connection.execute(log_entry.insert(), entries)
            self._move_head(connection, frontier)
        return results

    def _move_head(self, connection: sa.Connection, frontier: Frontier) -> None:
        values = {"size": frontier.size, "frontier": frontier.to_bytes()}
        connection.execute(log_head.update().where(log_head.c.id == 1).values(values))
        root = frontier.root()
        text = note.sign_checkpoint(self.origin, frontier.size, root, self._key)
        # The signed note exists before the commit but nobody can read it: a crash here loses both.
        row = {"size": frontier.size, "root": root, "note": text}
        connection.execute(log_checkpoint.insert(), row)

    def document(self, connection: sa.Connection, digest: str) -> dict[str, Json]:
        """The signed document of this digest.

        Raises:
            NotLoggedError: Unknown or erased.
        """
        return parse_object(self._row(connection, digest).body)

    def documents_of_kind(self, connection: sa.Connection, kind: str) -> list[dict[str, Json]]:
        """Every document of a kind that was not erased, in the order of the log."""
        query = (
            sa.select(signed_document.c.body)
            .where(signed_document.c.kind == kind, signed_document.c.body.is_not(None))
            .order_by(signed_document.c.log_index)
        )
        return [parse_object(body) for body in connection.execute(query).scalars()]

    def logged(self, connection: sa.Connection, digest: str) -> Logged:
        """Where the document stands in the log, and its salt.

        Raises:
            NotLoggedError: Unknown or erased.
        """
        row = self._row(connection, digest)
        return Logged(index=row.log_index, digest=digest, salt=row.salt)

    def erase(self, connection: sa.Connection, digests: Collection[str]) -> int:
        """Forget documents and their salts; returns how many there were.

        The leaves stay, and can no longer be linked to anything: of each document its index and
        kind are left, which the leaf says in public anyway.
        """
        found = sa.select(signed_document.c.log_index).where(signed_document.c.digest.in_(digests))
        indices = list(connection.execute(found).scalars())
        for index in indices:
            left = {"digest": f"{rows.ERASED}{index}", "body": None, "salt": None, "at": 0}
            same = signed_document.c.log_index == index
            connection.execute(signed_document.update().where(same).values(left))
        return len(indices)

    def size(self, connection: sa.Connection) -> int:
        """How many entries the log has."""
        return connection.execute(sa.select(log_head.c.size)).scalar() or 0

    def checkpoint(
        self,
        connection: sa.Connection,
        *,
        cosigners: int = 0,
        sites: Mapping[str, str] | None = None,
    ) -> str:
        """The newest signed note, with every cosignature known for it.

        Args:
            connection: Any.
            cosigners: How many of `sites` must have cosigned it.
            sites: Name to did of the witnesses that count.

        Returns:
            The note. If no checkpoint has so many cosigners: the one of the empty tree, which needs
            no witness, since no entry stands below it.
        """
        size = self.size(connection)
        if cosigners:
            size = rows.newest_cosigned(connection, cosigners, sites or {})
        return self._note(connection, size)

    def checkpoint_at(self, connection: sa.Connection, size: int) -> str:
        """The signed note of exactly this size, with every cosignature known for it."""
        return self._note(connection, size)

    def _note(
        self, connection: sa.Connection, size: int, sites: Mapping[str, str] | None = None
    ) -> str:
        if size == 0:
            return note.sign_checkpoint(self.origin, 0, EMPTY_ROOT, self._key)
        query = sa.select(log_checkpoint.c.note).where(log_checkpoint.c.size == size)
        text = connection.execute(query).scalar() or broken(f"log size {size} has no checkpoint")
        lines = (
            sa.select(log_cosignature.c.line)
            .where(log_cosignature.c.size == size)
            .order_by(log_cosignature.c.site, log_cosignature.c.did)
        )
        if sites is not None:
            lines = lines.where(rows.made_by(sites))
        return note.with_lines(text, list(connection.execute(lines).scalars()))

    def add_cosignature(
        self, connection: sa.Connection, site: str, did: str, note_text: str
    ) -> None:
        """Keep a hospital's cosignature of one of our own checkpoints.

        Raises:
            NoteError: Not our checkpoint, or not cosigned by this site.
        """
        seen = note.open_checkpoint(note_text, origin=self.origin, log_did=self.log_did)
        query = sa.select(log_checkpoint.c.root).where(log_checkpoint.c.size == seen.size)
        if connection.execute(query).scalar() != seen.root:
            raise note.NoteError(f"checkpoint: this log published no such root at {seen.size}")
        line = note.cosignature_line(note_text, name=site, did=did)
        if line is None:
            raise note.NoteError(f"checkpoint: not cosigned by {site}")
        insert_ignore(
            connection,
            log_cosignature,
            {"size": seen.size, "site": site, "did": did, "line": line},
        )

    def entries(
        self, connection: sa.Connection, start: int, limit: int = ENTRIES_MAX
    ) -> list[bytes]:
        """The leaves from `start` on, at most `limit` of them."""
        query = (
            sa.select(log_entry.c.leaf)
            .where(log_entry.c.log_index >= start)
            .order_by(log_entry.c.log_index)
            .limit(min(limit, ENTRIES_MAX))
        )
        return list(connection.execute(query).scalars())

    def export(self, connection: sa.Connection) -> dict[str, Json]:
        """The whole log for offline verification (`coop verify log`)."""
        query = sa.select(log_entry.c.leaf).order_by(log_entry.c.log_index)
        size = self.size(connection)
        leaves = connection.execute(query.where(log_entry.c.log_index < size)).scalars()
        return {
            "v": 1,
            "checkpoint": self._note(connection, size),
            "entries": [b64u(leaf) for leaf in leaves],
        }

    def inclusion(self, connection: sa.Connection, index: int, size: int) -> list[Hash]:
        """Proof that entry `index` is in the log of `size`."""
        with self._tree_lock:
            return self._grown(connection).inclusion(index, size)

    def consistency(self, connection: sa.Connection, old: int, new: int) -> list[Hash]:
        """Proof that the log of size `new` extends the log of size `old`."""
        with self._tree_lock:
            return self._grown(connection).consistency(old, new)

    def root(self, connection: sa.Connection, size: int) -> Hash:
        """The root the log had at `size`."""
        with self._tree_lock:
            return self._grown(connection).root(size)

    def tile(self, connection: sa.Connection, tile: Tile) -> bytes:
        """A public tile of the log (c2sp.org/tlog-tiles).

        Raises:
            OutsideTreeError, NotFoundError: The log has not grown so far.
        """
        if tile.level is None:
            leaves = self.entries(connection, tile.start, tile.width)
            return entry_bundle(leaves, tile)
        with self._tree_lock:
            tree = self._grown(connection)
            return tree.hashes(8 * tile.level, tile.start, tile.start + tile.width)

    def receipt(
        self, connection: sa.Connection, digest: str, *, sites: Mapping[str, str]
    ) -> dict[str, Json]:
        """The receipt bundle a person keeps: document, salt and proof under a cosigned checkpoint.

        Args:
            connection: Any.
            digest: Of the document.
            sites: Name to did of the witnesses; the checkpoint most of them cosigned is taken.

        Raises:
            NotLoggedError: Unknown or erased.
        """
        row = self._row(connection, digest)
        size = rows.best_cosigned(connection, row.log_index, sites) or self.size(connection)
        return bundle_of(
            row.kind,
            parse_object(row.body),
            Logged(index=row.log_index, digest=digest, salt=row.salt),
            self.inclusion(connection, row.log_index, size),
            self._note(connection, size, sites),
        )

    def proof(self, connection: sa.Connection, index: int, *, sites: Mapping[str, str]) -> str:
        """The `.tlog-proof` of an entry, under the checkpoint above it that most `sites` cosigned.

        Whoever holds a receipt made at its commit completes it with this; it names nobody.

        Raises:
            OutsideTreeError: There is no such entry.
        """
        size = rows.best_cosigned(connection, index, sites) or self.size(connection)
        hashes = self.inclusion(connection, index, size)
        return proof_text(index, hashes, self._note(connection, size, sites))

    def _row(self, connection: sa.Connection, digest: str) -> sa.Row[tuple[object, ...]]:
        query = sa.select(signed_document).where(signed_document.c.digest == digest)
        row = connection.execute(query).one_or_none()
        if row is None or row.body is None:
            raise NotLoggedError("digest: the log holds no such document, or it was erased")
        return row

    def _grown(self, connection: sa.Connection) -> Tree:
        """The cached tree, extended to this connection's head and checked against it.

        A transaction may have read its own entries and rolled back: then the cache holds leaves
        that never became durable, its root differs from the head's, and it is built anew.
        """
        head = rows.head(connection)
        if self._tree_checked != (head.size, head.to_bytes()):
            for _ in range(2):
                rows.extend(connection, self._tree, head.size)
                if self._tree.root(head.size) == head.root():
                    break
                self._tree = Tree()
            else:
                broken("the stored log does not hash to its own head; restore it from a backup")
            self._tree_checked = (head.size, head.to_bytes())
        return self._tree
