"""A cohort committed to before anyone knows whom an audit will ask about.

The hospital's round receipt holds a commitment to a Merkle tree (RFC 6962) of salted leaves: one a
member, with the place of her newest consent document in the log, and dummies beside them, so that
neither the commitment nor a few opened leaves tell how many members there are. Leaves stand in the
order of their hashes: a place says nothing of whose it is.

Once the receipt is in the log, a later checkpoint that other hospitals have cosigned gives the
challenge. Their signatures are in it, so neither the hospital nor the hub can try out beforehand
which places it will name. Places are opened in the challenge's order until enough members have
been: those are a uniform sample of the cohort, however many dummies there are.

This shows whether the *committed* members had permits. It is no zero-knowledge proof: what is
opened is seen. And nothing here shows that the hospital computed with those members and no others.

Core: pure, no I/O.
"""

import hmac
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from coop.canonical import Json, encode
from coop.errors import InvalidInputError, Kind
from coop.journal.merkle import Tree, leaf_hash

MEMBERS: Final = 300
"""Opened by default: if 1 % of a cohort had no permit, one of them is found in 95 of 100 audits."""
PLACES_PER_MEMBER: Final = 100
"""An audit for so many members opens at most so many times as many places."""
MICRO: Final = 1_000_000
_SALT: Final = b"coop/cohort-salt/v1\x00"
_DRAW: Final = b"coop/cohort-draw/v1\x00"
_WORD: Final = 2**64
_THOUSAND: Final = 1000


class CohortProofError(InvalidInputError):
    """What was opened is not what was committed to, or not what the challenge asked for."""

    code = "audit.opening"
    kind = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One place of the tree: a member's, or a dummy without `pid` and `consent`."""

    salt: str
    pid: str | None = None
    consent: int | None = None
    """Where in the log her newest consent document stood when the cohort was drawn up."""

    def hashed(self) -> bytes:
        """Its leaf hash."""
        if self.pid is None:
            return leaf_hash(encode(b"coop/cohort-dummy/v1", {"salt": self.salt}))
        member: dict[str, Json] = {"pid": self.pid, "consent": self.consent, "salt": self.salt}
        return leaf_hash(encode(b"coop/cohort-member/v1", member))


@dataclass(frozen=True, slots=True)
class Arranged:
    """A cohort's leaves in their order."""

    leaves: Sequence[Leaf]
    tree: Tree

    @property
    def commitment(self) -> str:
        """What the receipt holds."""
        return commitment(self.tree.root(), len(self.leaves))


def arrange(members: Mapping[str, int], places: int, seed: bytes) -> Arranged:
    """The leaves of a cohort.

    Args:
        members: By pid, where her newest consent document stands in the log.
        places: How many leaves there shall be; a number that says nothing of the cohort.
        seed: 32 secret bytes, used for this cohort alone.
    """
    leaves = [
        Leaf(salt=member_salt(seed, pid), pid=pid, consent=consent)
        for pid, consent in members.items()
    ]
    dummies = max(places, 1) - len(leaves)
    leaves += [Leaf(salt=_salted(seed, b"dummy %d" % number)) for number in range(dummies)]
    ordered = sorted((leaf.hashed(), leaf) for leaf in leaves)
    tree = Tree()
    for hashed, _ in ordered:
        tree.append(hashed)
    return Arranged([leaf for _, leaf in ordered], tree)


def commitment(root: bytes, places: int) -> str:
    """Hex commitment to a tree and its size: another size would let the places be chosen."""
    said: dict[str, Json] = {"root": root.hex(), "places": places}
    return sha256(encode(b"coop/cohort/v1", said)).hexdigest()


def count_commitment(seed: bytes, count: int) -> str:
    """Hex commitment to how many members there are; opened by the hospital alone."""
    said: dict[str, Json] = {"salt": _salted(seed, b"count"), "count": count}
    return sha256(encode(b"coop/count/v1", said)).hexdigest()


def member_salt(seed: bytes, pid: str) -> str:
    """The salt of a member's leaf, which she may have for herself."""
    return _salted(seed, b"member " + pid.encode())


def challenge(
    committed: str, receipt_sha256: str, checkpoint: str, cosignatures: Sequence[str]
) -> bytes:
    """What the order of places is drawn from.

    Args:
        committed: The cohort's commitment.
        receipt_sha256: Digest of the signed round receipt: hospital, order, phase and round.
        checkpoint: The three lines of a checkpoint over a log that holds the receipt.
        cosignatures: The lines of the other hospitals that cosigned it.
    """
    said: dict[str, Json] = {
        "commitment": committed,
        "receipt": receipt_sha256,
        "checkpoint": checkpoint,
        "cosignatures": sorted(cosignatures),
    }
    return sha256(encode(b"coop/cohort-challenge/v1", said)).digest()


def places_of(drawn: bytes, size: int) -> Iterator[int]:
    """Every place of a tree of `size`, in the order in which this challenge asks for them.

    A uniform permutation: each next place is drawn among those that are left (Fisher & Yates), by
    64-bit words of SHA-256 in counter mode; a word that would favour small numbers is passed over.
    """
    words = _words(drawn)
    moved: dict[int, int] = {}
    for turn in range(size):
        left = size - turn
        fair = _WORD - _WORD % left
        word = next(word for word in words if word < fair)
        chosen = turn + word % left
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.pop(turn, turn)


def places_max(size: int, members: int) -> int:
    """How many places an audit for so many members opens at most."""
    return min(size, members * PLACES_PER_MEMBER)


def caught_micro(opened: int, members_max: int, missing: int) -> int:
    """The least chance, in millionths, that an audit had found somebody without a permit.

    Exact for a cohort of `members_max` (the hypergeometric distribution), and a lower bound for
    every smaller one: of fewer members the same share is easier to hit.

    Args:
        opened: How many members were opened, drawn uniformly without putting back.
        members_max: The most there can be.
        missing: How many of 1000 members had none.
    """
    passed, all_ = 1, 1
    for drawn in range(opened):
        left = _THOUSAND * (members_max - drawn)
        passed *= max(0, left - missing * members_max)
        all_ *= left
    return MICRO - -(-MICRO * passed // all_)


def surely_found(opened: int, members_max: int, confidence_micro: int) -> int | None:
    """The least share of 1000 members without permit found with that chance; None if none is."""

    def caught(missing: int) -> int:
        return caught_micro(opened, members_max, missing)

    shares = range(1, _THOUSAND + 1)
    found = bisect_left(shares, confidence_micro, key=caught)
    return shares[found] if found < len(shares) else None


def _words(drawn: bytes) -> Iterator[int]:
    for block in range(2**63):
        hashed = sha256(_DRAW + drawn + block.to_bytes(8, "big")).digest()
        for at in range(0, len(hashed), 8):
            yield int.from_bytes(hashed[at : at + 8], "big")


def _salted(seed: bytes, name: bytes) -> str:
    return hmac.digest(seed, _SALT + name, "sha256").hex()
