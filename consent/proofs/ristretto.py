"""The group ristretto255 (RFC 9496): points and scalars that were checked before they are used.

The library answers an invalid encoding with the identity, takes scalars above the group's order,
and raises when a product is the identity. Nothing of that gets past this file: `point` and `scalar`
are the only ways in for what others sent, and a result that is the identity is refused.

Core: pure, no I/O.
"""

from hashlib import sha512
from typing import Final, NewType

import rbcl

from coop.errors import InvalidInputError

POINT_BYTES: Final = 32
SCALAR_BYTES: Final = 32
WIDE_BYTES: Final = 64
"""Of hash output or randomness that is reduced to a scalar without a bias."""
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""How many points the group has; a prime."""

Point = NewType("Point", bytes)
"""A valid encoding of a point other than the identity."""
Scalar = NewType("Scalar", bytes)
"""A number below `ORDER`, little-endian."""


class GroupError(InvalidInputError):
    """No point or scalar of the group, or a sum that is its identity."""

    code = "proofs.group"


def point(data: bytes) -> Point:
    """A point that somebody sent.

    Raises:
        GroupError: Not the one encoding of a point, or the identity.
    """
    # The length first: the library reads 32 bytes whatever it is given.
    if len(data) != POINT_BYTES or not rbcl.crypto_core_ristretto255_is_valid_point(data):
        raise GroupError("point: not an encoding of a point of ristretto255")
    return _not_identity(data)


def scalar(data: bytes) -> Scalar:
    """A scalar that somebody sent.

    Raises:
        GroupError: Not 32 bytes of a number below the group's order.
    """
    if len(data) != SCALAR_BYTES or int.from_bytes(data, "little") >= ORDER:
        raise GroupError("scalar: not below the group's order; then it would have a second form")
    return Scalar(data)


def scalar_of(number: int) -> Scalar:
    """A small number as a scalar."""
    return Scalar((number % ORDER).to_bytes(SCALAR_BYTES, "little"))


def reduced(wide: bytes) -> Scalar:
    """64 bytes of a hash or of randomness as a scalar."""
    if len(wide) != WIDE_BYTES:
        raise GroupError(f"scalar: must be reduced from {WIDE_BYTES} bytes")
    return Scalar(rbcl.crypto_core_ristretto255_scalar_reduce(wide))


def plus(left: Scalar, right: Scalar) -> Scalar:
    """The sum of two scalars."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_add(left, right))


def minus(left: Scalar, right: Scalar) -> Scalar:
    """The difference of two scalars."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_sub(left, right))


def times(left: Scalar, right: Scalar) -> Scalar:
    """The product of two scalars."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_mul(left, right))


def multiple(factor: Scalar, of: Point) -> Point:
    """`factor` times a point.

    Raises:
        GroupError: It is the identity.
    """
    try:
        return Point(rbcl.crypto_scalarmult_ristretto255(factor, of))
    except RuntimeError as error:
        raise GroupError("point: the product is the identity") from error


def add(left: Point, right: Point) -> Point:
    """The sum of two points.

    Raises:
        GroupError: It is the identity.
    """
    return _not_identity(rbcl.crypto_core_ristretto255_add(left, right))


def subtract(left: Point, right: Point) -> Point:
    """The difference of two points.

    Raises:
        GroupError: It is the identity.
    """
    return _not_identity(rbcl.crypto_core_ristretto255_sub(left, right))


def _not_identity(data: bytes) -> Point:
    if not any(data):
        raise GroupError("point: the identity hides nothing")
    return Point(data)


G: Final = Point(rbcl.crypto_scalarmult_ristretto255_base(scalar_of(1)))
"""The standard generator."""
H: Final = Point(rbcl.crypto_core_ristretto255_from_hash(sha512(b"coop/tally/H/v1").digest()))
"""A second one, hashed from its name: nobody knows its logarithm to `G`."""
