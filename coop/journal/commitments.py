"""What a leaf holds: the kind of a document and a salted commitment to it, nothing else.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coop.canonical import Json, NotCanonicalError, document_digest, jcs, parse_object, sha256

SALT_BYTES: Final = 32
_TAG: Final = b"coop/commit/v1\x00"
_LEAF_BYTES_MAX: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Where a document stands in the log."""

    index: int
    digest: str
    """Hex SHA-256 of the signed document."""
    salt: str
    """Hex of the commitment's 32 secret bytes; goes only to whom the document belongs."""


def commitment(salt: bytes, document: Mapping[str, Json]) -> str:
    """Hex commitment to a signed document: hides it, and binds to it."""
    return commitment_of_digest(salt, document_digest(document))


def commitment_of_digest(salt: bytes, digest: str) -> str:
    """The commitment to the document of this hex digest."""
    if len(salt) != SALT_BYTES:
        raise NotCanonicalError(f"salt: must be {SALT_BYTES} bytes")
    return sha256(_TAG + salt + bytes.fromhex(digest)).hex()


def leaf_of(kind: str, committed: str) -> bytes:
    """The bytes of the leaf."""
    return jcs({"v": 1, "t": kind, "c": committed})


def kind_of_leaf(leaf: bytes) -> str:
    """The kind in a leaf that is exactly what `leaf_of` writes.

    Raises:
        NotCanonicalError: It holds anything else.
    """
    value = parse_object(leaf, bytes_max=_LEAF_BYTES_MAX)
    kind, committed = value.get("t"), value.get("c")
    plain = isinstance(kind, str) and isinstance(committed, str) and len(committed) == 64  # noqa: PLR2004  (hex SHA-256)
    if not plain or leaf != leaf_of(str(kind), str(committed)):
        raise NotCanonicalError("leaf: must hold a kind and a commitment and nothing else")
    return str(kind)
