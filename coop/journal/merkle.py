"""The RFC 6962 tree: append, roots, inclusion and consistency proofs, and their verification.

Core: pure, no I/O. Leaves enter as hashes, so a tree of a million entries is 64 MB.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Final, Self

from coop.canonical import Hash
from coop.errors import CoopError, InvalidInputError, Kind, broken

HASH_BYTES: Final = 32
PROOF_HASHES_MAX: Final = 126  # twice the height of a tree with 2^63 leaves
EMPTY_ROOT: Final = Hash(sha256(b"").digest())  # RFC 6962 §2.1


class JournalProofError(InvalidInputError):
    """A proof does not show what it must show: the log is not what it claims to be."""

    code: ClassVar[str] = "journal.bad-proof"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


class OutsideTreeError(CoopError):
    """The tree has not grown so far: there is no such root, proof or tile."""

    code: ClassVar[str] = "journal.outside-tree"
    kind: ClassVar[Kind] = Kind.ABSENT


def leaf_hash(leaf: bytes) -> Hash:
    """Hash of one entry (RFC 6962 §2.1); the prefix keeps it from passing for a node."""
    return Hash(sha256(b"\x00" + leaf).digest())


def node_hash(left: bytes, right: bytes) -> Hash:
    """Hash of an inner node over its two children (RFC 6962 §2.1)."""
    return Hash(sha256(b"\x01" + left + right).digest())


def root_of(hashes: Iterable[bytes]) -> Hash:
    """Root over leaf hashes in order; the empty tree hashes the empty string."""
    frontier = Frontier()
    for leaf in hashes:
        frontier = frontier.append(leaf)
    return frontier.root()


@dataclass(frozen=True, slots=True)
class Frontier:
    """All an appender must remember: the roots of the perfect subtrees, largest first.

    One hash for every bit set in `size`, so appending costs O(log n) time and space.
    """

    size: int = 0
    hashes: tuple[Hash, ...] = ()

    def append(self, leaf: bytes) -> "Frontier":
        """The frontier with one more leaf hash."""
        merged, hashes, size = Hash(leaf), self.hashes, self.size
        while size & 1:
            hashes, merged, size = hashes[:-1], node_hash(hashes[-1], merged), size >> 1
        return Frontier(self.size + 1, (*hashes, merged))

    def root(self) -> Hash:
        """The tree's root."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root

    def to_bytes(self) -> bytes:
        """The hashes in a row; with the size, the whole frontier."""
        return b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> Self:
        """The inverse of `to_bytes`."""
        if len(data) != HASH_BYTES * size.bit_count():
            broken(f"a frontier of size {size} cannot have {len(data)} bytes")
        parts = range(0, len(data), HASH_BYTES)
        return cls(size, tuple(Hash(data[at : at + HASH_BYTES]) for at in parts))


class Tree:
    """A whole tree in memory, for roots and proofs at any size up to its own."""

    def __init__(self) -> None:
        # _levels[l] holds the hashes of the complete subtrees of height l, back to back.
        self._levels: list[bytearray] = [bytearray()]
        self.size = 0

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        if len(leaf) != HASH_BYTES:
            broken("a leaf hash has 32 bytes")
        self._levels[0] += leaf
        self.size += 1
        size, level = self.size, 0
        while not size & 1:
            pair = bytes(self._levels[level][-2 * HASH_BYTES :])
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level + 1] += node_hash(pair[:HASH_BYTES], pair[HASH_BYTES:])
            size, level = size >> 1, level + 1

    def root(self, size: int | None = None) -> Hash:
        """Root of the first `size` leaves; of all by default."""
        return self._root(0, self._upto(size))

    def inclusion(self, index: int, size: int | None = None) -> list[Hash]:
        """Proof that leaf `index` is in the tree of `size` (RFC 6962 §2.1.1)."""
        end = self._upto(size)
        if not 0 <= index < end:
            raise OutsideTreeError(f"index: {index} is not in a tree of size {end}")
        proof: list[Hash] = []
        start = 0
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._root(middle, end))
                end = middle
            else:
                proof.append(self._root(start, middle))
                start = middle
        return proof[::-1]

    def consistency(self, old: int, new: int | None = None) -> list[Hash]:
        """Proof that the tree of size `new` extends the tree of size `old` (RFC 6962 §2.1.2)."""
        end = self._upto(new)
        if not 0 < old <= end:
            raise OutsideTreeError(f"size: no consistency proof from {old} to {end}")
        proof: list[Hash] = []
        start = 0
        while old != end:
            middle = start + _split(end - start)
            if old <= middle:
                proof.append(self._root(middle, end))
                end = middle
            else:
                proof.append(self._root(start, middle))
                start = middle
        if start:  # otherwise the verifier has this root already: it is the old one
            proof.append(self._root(start, end))
        return proof[::-1]

    def hashes(self, level: int, start: int, end: int) -> bytes:
        """The hashes `start` to `end` of the complete subtrees of height `level`, in a row."""
        row = self._levels[level] if level < len(self._levels) else bytearray()
        if not 0 <= start <= end <= len(row) // HASH_BYTES:
            raise OutsideTreeError(f"tile: level {level} has no subtrees {start} to {end}")
        return bytes(row[start * HASH_BYTES : end * HASH_BYTES])

    def _root(self, start: int, end: int) -> Hash:
        width = end - start
        if width == 0:
            return EMPTY_ROOT
        if width & (width - 1) == 0 and start % width == 0:
            level = width.bit_length() - 1
            at = (start >> level) * HASH_BYTES
            return Hash(bytes(self._levels[level][at : at + HASH_BYTES]))
        middle = start + _split(width)
        return node_hash(self._root(start, middle), self._root(middle, end))

    def _upto(self, size: int | None) -> int:
        end = self.size if size is None else size
        if not 0 <= end <= self.size:
            raise OutsideTreeError(f"size: {end} is beyond the tree's {self.size}")
        return end


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Return if `leaf` (a leaf hash) is entry `index` of the tree of `size` under `root`.

    The loop of RFC 9162 §2.1.3.2: level by level, `fn` is the node's number, `sn` the last one's.

    Raises:
        JournalProofError: It is not shown.
    """
    _check_hashes(leaf, root, *proof)
    if not 0 <= index < size:
        raise JournalProofError(f"index: {index} is not in a tree of size {size}")
    fn, sn, result = index, size - 1, Hash(leaf)
    for part in proof:
        if sn == 0:
            raise JournalProofError("proof: longer than the tree is high")
        if fn & 1 or fn == sn:
            result = node_hash(part, result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = node_hash(result, part)
        fn, sn = fn >> 1, sn >> 1
    if sn or result != root:
        raise JournalProofError("proof: the entry is not in this log")


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Return if the tree of size `new` is the tree of size `old` with entries added at the end.

    The loop of RFC 9162 §2.1.4.2. Growth from the empty tree proves nothing and is refused.

    Raises:
        JournalProofError: It is not shown: the log was rewritten.
    """
    if 0 < old == new and not proof and old_root == new_root:
        return
    _check_hashes(old_root, new_root, *proof)
    if not 0 < old < new or not proof:
        raise JournalProofError(f"proof: none can lead from size {old} to {new}")
    parts = list(proof)
    if old & (old - 1) == 0:
        parts.insert(0, Hash(old_root))
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = Hash(parts[0])
    for part in parts[1:]:
        if sn == 0:
            raise JournalProofError("proof: longer than the tree is high")
        if fn & 1 or fn == sn:
            first, second = node_hash(part, first), node_hash(part, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, part)
        fn, sn = fn >> 1, sn >> 1
    if sn or first != old_root or second != new_root:
        raise JournalProofError("proof: the newer log does not extend the older one")


def _split(width: int) -> int:
    """The largest power of two strictly below `width` (RFC 6962 §2.1)."""
    return 1 << ((width - 1).bit_length() - 1)


def _check_hashes(*hashes: bytes) -> None:
    if len(hashes) > PROOF_HASHES_MAX or any(len(value) != HASH_BYTES for value in hashes):
        raise JournalProofError("proof: must be hashes of 32 bytes")
