"""Auditing the stored log: every leaf, root, signature and document recomputed from the tables.

Writing checks once, this checks again: after a restore, at the end of the demo, in every test.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from coop.canonical import parse_object
from coop.errors import broken
from coop.journal import note
from coop.journal.commitments import commitment, kind_of_leaf, leaf_of
from coop.journal.merkle import Tree, leaf_hash
from coop.journal.rows import ERASED
from coop.journal.store import (
    Journal,
    log_checkpoint,
    log_cosignature,
    log_entry,
    signed_document,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was recomputed, and agreed."""

    entries: int
    checkpoints: int
    cosignatures: int
    documents: int
    erased: int
    """Documents of which only index and kind are left."""
    kinds: dict[str, int]


def audit(connection: sa.Connection, journal: Journal) -> Audit:
    """Recompute the whole log and return what was checked.

    Steps: (1) indices have no gap and every leaf hashes to its stored hash; (2) every leaf has its
    document, which commits to it, or the note that it was erased; (3) every checkpoint is signed
    and has the root of its size, the newest one that of the head; (4) every cosignature is of one
    of those checkpoints.

    Raises:
        InvariantError: The tables disagree with each other.
        NoteError: A stored checkpoint is not the log's.
    """
    # (1)
    tree, kinds, leaves = Tree(), Counter[str](), {}
    for row in connection.execute(sa.select(log_entry).order_by(log_entry.c.log_index)):
        if row.log_index != tree.size or leaf_hash(row.leaf) != row.leaf_hash:
            broken(f"log entry {tree.size} is missing or does not hash to its stored hash")
        tree.append(row.leaf_hash)
        leaves[row.log_index] = row.leaf
        kinds[kind_of_leaf(row.leaf)] += 1
    # (2)
    documents, erased = _documents(connection, leaves)
    # (3)
    sizes = set()
    for size, root in _checkpoints(connection, journal):
        if size > tree.size or tree.root(size) != root:
            broken(f"checkpoint {size} has a root the log never had")
        sizes.add(size)
    if tree.size != journal.size(connection) or (tree.size and tree.size not in sizes):
        broken("the log's head has no checkpoint")
    # (4)
    cosignatures = 0
    for row in connection.execute(sa.select(log_cosignature)):
        text = journal.checkpoint_at(connection, row.size)
        if note.cosignature_line(text, name=row.site, did=row.did) != row.line:
            broken(f"the cosignature of {row.site} at {row.size} does not verify")
        cosignatures += 1
    return Audit(
        entries=tree.size,
        checkpoints=len(sizes),
        cosignatures=cosignatures,
        documents=documents,
        erased=erased,
        kinds=dict(kinds),
    )


def _documents(connection: sa.Connection, leaves: Mapping[int, bytes]) -> tuple[int, int]:
    """How many documents are there and how many were erased; together one for each leaf."""
    documents = erased = 0
    for row in connection.execute(sa.select(signed_document)):
        if row.body is None:
            if row.salt is not None or row.digest != f"{ERASED}{row.log_index}":
                broken(f"the document at {row.log_index} is half erased")
            erased += 1
            continue
        committed = commitment(bytes.fromhex(row.salt), parse_object(row.body))
        if leaves.get(row.log_index) != leaf_of(row.kind, committed):
            broken(f"the document at {row.log_index} is not the one its leaf commits to")
        documents += 1
    if documents + erased != len(leaves):
        broken("a leaf has neither its document nor the note that it was erased")
    return documents, erased


def _checkpoints(connection: sa.Connection, journal: Journal) -> Iterator[tuple[int, bytes]]:
    for row in connection.execute(sa.select(log_checkpoint).order_by(log_checkpoint.c.size)):
        seen = note.open_checkpoint(row.note, origin=journal.origin, log_did=journal.log_did)
        if (seen.size, seen.root) != (row.size, row.root):
            broken(f"checkpoint {row.size} is stored beside another one's note")
        yield seen.size, seen.root
