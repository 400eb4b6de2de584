"""The log's tables and the questions asked of them.

One row of `log_head` is the lock and the memory of the whole log: its size and its frontier.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

import sqlalchemy as sa

from coop.db import insert_ignore, metadata
from coop.errors import ConflictError
from coop.journal.commitments import SALT_BYTES, Logged
from coop.journal.merkle import Frontier, Tree

_COSIGNED_LOOKED_AT: Final = 64  # newest cosigned sizes a receipt chooses from
_TREE_CHUNK: Final = 10_000
ERASED: Final = "erased-"
"""Where a document was erased, this and its index stand in the place of its digest."""

signed_document = sa.Table(
    "signed_document",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("body", sa.Text),
    sa.Column("salt", sa.String(2 * SALT_BYTES)),
    sa.Column("log_index", sa.BigInteger, nullable=False, unique=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index("ix_signed_document_kind", "kind", "log_index"),
)
log_entry = sa.Table(
    "log_entry",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("leaf", sa.LargeBinary, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
)
log_head = sa.Table(
    "log_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("frontier", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("id = 1", name="one_row"),
)
log_checkpoint = sa.Table(
    "log_checkpoint",
    metadata,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)
log_cosignature = sa.Table(
    "log_cosignature",
    metadata,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("site", sa.String(64), primary_key=True),
    sa.Column("did", sa.String(128), primary_key=True),
    sa.Column("line", sa.Text, nullable=False),
)

outside_cosignature = sa.Table(
    "outside_cosignature",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("did", sa.String(128), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
)
"""The newest cosignature of each outside witness. Apart from the hospitals': whose word counts for
a grant, and what a receipt holds, are the members' only."""
outside_refusal = sa.Table(
    "outside_refusal",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("status", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sent", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
"""What an outside witness refused, as it was sent and answered: evidence of a fork, or of a fault
of hers. Status 0 is an answer that was no cosignature."""


class LoggedOtherwiseError(ConflictError):
    """The same document is in the log as another kind."""

    code: ClassVar[str] = "journal.logged-otherwise"


def lock_head(connection: sa.Connection) -> Frontier:
    """The head, locked against every other writer until this unit of work ends."""
    # On PostgreSQL the UPDATE takes the row lock; SQLite's BEGIN IMMEDIATE has the whole database.
    lock = (
        log_head.update()
        .where(log_head.c.id == 1)
        .values(size=log_head.c.size)
        .returning(log_head.c.size, log_head.c.frontier)
    )
    row = connection.execute(lock).one_or_none()
    if row is None:
        insert_ignore(connection, log_head, {"id": 1, "size": 0, "frontier": b""})
        row = connection.execute(lock).one()
    return Frontier.from_bytes(row.size, row.frontier)


def head(connection: sa.Connection) -> Frontier:
    """The head as this connection sees it, without a lock."""
    query = sa.select(log_head.c.size, log_head.c.frontier).where(log_head.c.id == 1)
    row = connection.execute(query).one_or_none()
    return Frontier() if row is None else Frontier.from_bytes(row.size, row.frontier)


def known(connection: sa.Connection, kind: str, digests: list[str]) -> dict[str, Logged]:
    """Those of `digests` that are in the log as this kind.

    Raises:
        LoggedOtherwiseError: One is there as another kind.
    """
    query = sa.select(signed_document).where(signed_document.c.digest.in_(digests))
    found = {}
    for row in connection.execute(query):
        if row.kind != kind:
            raise LoggedOtherwiseError(f"digest: logged as {row.kind}")
        found[row.digest] = Logged(index=row.log_index, digest=row.digest, salt=row.salt)
    return found


def document_row(kind: str, body: bytes, logged: Logged, at: int) -> dict[str, object]:
    """The row of a document whose canonical bytes are `body`."""
    return {
        "digest": logged.digest,
        "kind": kind,
        "body": body.decode(),
        "salt": logged.salt,
        "log_index": logged.index,
        "at": at,
    }


def extend(connection: sa.Connection, tree: Tree, size: int) -> None:
    """Append to `tree` the stored leaves it lacks, up to `size`."""
    query = (
        sa.select(log_entry.c.leaf_hash)
        .where(log_entry.c.log_index >= tree.size, log_entry.c.log_index < size)
        .order_by(log_entry.c.log_index)
        .execution_options(yield_per=_TREE_CHUNK)
    )
    for hashed in connection.execute(query).scalars():
        tree.append(hashed)


def made_by(sites: Mapping[str, str]) -> sa.ColumnElement[bool]:
    """The condition that a cosignature is by one of `sites` with the did it has there."""
    return sa.tuple_(log_cosignature.c.site, log_cosignature.c.did).in_(list(sites.items()))


def newest_cosigned(connection: sa.Connection, cosigners: int, sites: Mapping[str, str]) -> int:
    """The newest size that so many of `sites` cosigned; 0 if there is none."""
    query = (
        sa.select(log_cosignature.c.size)
        .where(made_by(sites))
        .group_by(log_cosignature.c.size)
        .having(sa.func.count() >= cosigners)
        .order_by(log_cosignature.c.size.desc())
        .limit(1)
    )
    return connection.execute(query).scalar() or 0


def best_cosigned(connection: sa.Connection, index: int, sites: Mapping[str, str]) -> int | None:
    """Of the newest cosigned sizes above `index`, the one with the most cosigners."""
    newest = (
        sa.select(log_cosignature.c.size, sa.func.count().label("cosigners"))
        .where(made_by(sites), log_cosignature.c.size > index)
        .group_by(log_cosignature.c.size)
        .order_by(log_cosignature.c.size.desc())
        .limit(_COSIGNED_LOOKED_AT)
        .subquery()
    )
    best = sa.select(newest.c.size).order_by(newest.c.cosigners.desc(), newest.c.size.desc())
    return connection.execute(best.limit(1)).scalar()
