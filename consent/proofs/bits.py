"""A commitment to yes or no, and the proof that it holds nothing else.

C = b·G + r·H (Pedersen). The proof says "C = r·H or C - G = r·H" for an r that the prover knows,
and not which of the two (Cramer, Damgård & Schoenmakers 1994): honest-verifier zero-knowledge,
made non-interactive by hashing everything it is about (Fiat & Shamir). A row is C and the proof,
160 bytes.

Core: pure; whoever proves hands in the randomness.
"""

from collections.abc import Callable
from hashlib import sha512
from typing import Final

from consent.proofs import ristretto
from consent.proofs.ristretto import (
    POINT_BYTES,
    SCALAR_BYTES,
    WIDE_BYTES,
    G,
    GroupError,
    H,
    Point,
    Scalar,
)
from coop.errors import InvalidInputError

ROW_BYTES: Final = POINT_BYTES + 4 * SCALAR_BYTES
_TAG: Final = b"coop/bit/v1"
Random = Callable[[int], bytes]
"""So many bytes that nobody can foresee."""


class BitProofError(InvalidInputError):
    """The row does not prove that its commitment holds yes or no, here and at this place."""

    code = "proofs.bit"


def commitment(bit: int, blinding: Scalar) -> Point:
    """The commitment to a bit under a blinding that is used once.

    Raises:
        GroupError: The blinding hides nothing.
    """
    hidden = ristretto.multiple(blinding, H)
    return ristretto.add(hidden, G) if bit else hidden


def prove(context: bytes, index: int, bit: int, blinding: Scalar, random: Random) -> bytes:
    """The row of a commitment.

    Args:
        context: What the tally is about, as bytes.
        index: The row's place in it.
        bit: 1 or 0.
        blinding: Of the commitment.
        random: For the proof.
    """
    committed = commitment(bit, blinding)
    other = 1 - bit
    # The branch that is false is simulated: its challenge is chosen before its first message.
    nonce, c_other, z_other = (ristretto.reduced(random(WIDE_BYTES)) for _ in range(3))
    first = {bit: ristretto.multiple(nonce, H)}
    first[other] = _first(_branch(committed, other), c_other, z_other)
    whole = _challenge(context, index, committed, first[0], first[1])
    c_own = ristretto.minus(whole, c_other)
    z_own = ristretto.plus(nonce, ristretto.times(c_own, blinding))
    c, z = {bit: c_own, other: c_other}, {bit: z_own, other: z_other}
    return committed + c[0] + c[1] + z[0] + z[1]


def check(context: bytes, index: int, row: bytes) -> Point:
    """The commitment of a row that proves it holds a bit.

    Raises:
        BitProofError: It proves no such thing in this context at this index.
    """
    try:
        committed, c0, c1, z0, z1 = _read(row)
        a0 = _first(_branch(committed, 0), c0, z0)
        a1 = _first(_branch(committed, 1), c1, z1)
        holds = ristretto.plus(c0, c1) == _challenge(context, index, committed, a0, a1)
    except GroupError as error:
        raise BitProofError(f"row {index}: {error.message}") from error
    if not holds:
        raise BitProofError(f"row {index}: the proof does not hold here")
    return committed


def commitment_of(row: bytes) -> bytes:
    """The commitment's bytes in a row, unchecked."""
    return row[:POINT_BYTES]


def _read(row: bytes) -> tuple[Point, Scalar, Scalar, Scalar, Scalar]:
    if len(row) != ROW_BYTES:
        raise GroupError(f"row: must have {ROW_BYTES} bytes")
    parts = [row[at : at + SCALAR_BYTES] for at in range(POINT_BYTES, ROW_BYTES, SCALAR_BYTES)]
    c0, c1, z0, z1 = (ristretto.scalar(part) for part in parts)
    return ristretto.point(commitment_of(row)), c0, c1, z0, z1


def _branch(committed: Point, bit: int) -> Point:
    """What is a multiple of H if the commitment holds `bit`."""
    return ristretto.subtract(committed, G) if bit else committed


def _first(branch: Point, c: Scalar, z: Scalar) -> Point:
    """The first message that answer and challenge belong to."""
    return ristretto.subtract(ristretto.multiple(z, H), ristretto.multiple(c, branch))


def _challenge(context: bytes, index: int, committed: Point, a0: Point, a1: Point) -> Scalar:
    parts = (_TAG, context, index.to_bytes(8, "big"), G, H, committed, a0, a1)
    hashed = sha512(b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    return ristretto.reduced(hashed.digest())
