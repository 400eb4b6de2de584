"""Shamir's secret sharing of 32 bytes: any `threshold` shares give them back, fewer nothing.

Pure; the field is the integers modulo the smallest prime above 2^256 (Shamir 1979). A share is the
value of a random polynomial at the holder's public place, and the secret its value at 0.
"""

from collections.abc import Callable, Mapping
from typing import Final

from coop.errors import InvalidInputError, InvariantError, Kind

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
PLACES_MAX: Final = 1000

_PRIME: Final = 2**256 + 297
_DRAW_BYTES: Final = 64  # a 512-bit draw modulo the prime is uniform but for 2^-255


class BadShareError(InvalidInputError):
    """Too few shares, or one that is none; nothing can be put together from them."""

    code = "shamir.bad-share"
    kind = Kind.UNPROCESSABLE


def split(
    secret: bytes, *, threshold: int, places: int, random: Callable[[int], bytes]
) -> list[bytes]:
    """Shares for the places 1 … `places`, in this order.

    Args:
        secret: 32 bytes.
        threshold: How many shares give it back; 1 to `places`.
        places: How many holders there are.
        random: So many secret random bytes.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= places <= PLACES_MAX:
        raise InvariantError("shamir: a 32-byte secret, and a threshold of at most the places")
    polynomial = [int.from_bytes(secret)]
    polynomial += [int.from_bytes(random(_DRAW_BYTES)) % _PRIME for _ in range(threshold - 1)]
    return [_value_at(place, polynomial).to_bytes(SHARE_BYTES) for place in range(1, places + 1)]


def join(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret behind the shares at these places; more than `threshold` are not looked at.

    A wrong share gives another secret, or none: whoever joins compares it with a commitment.

    Raises:
        BadShareError: Too few, a place or a share out of range, or no 32-byte secret comes out.
    """
    used = dict(sorted(shares.items())[:threshold])
    if len(used) < threshold:
        raise BadShareError(f"shares: {len(used)} of {threshold} needed")
    points = {place: int.from_bytes(share) for place, share in used.items()}
    if not all(1 <= place <= PLACES_MAX for place in points):
        raise BadShareError("shares: a place is out of range")
    if not all(len(share) == SHARE_BYTES for share in used.values()) or any(
        value >= _PRIME for value in points.values()
    ):
        raise BadShareError("shares: one is not a number of the field")
    secret = sum(value * _weight(place, points) for place, value in points.items()) % _PRIME
    if secret >> (8 * SECRET_BYTES):
        raise BadShareError("shares: they belong to no secret")
    return secret.to_bytes(SECRET_BYTES)


def _value_at(place: int, polynomial: list[int]) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * place + coefficient) % _PRIME
    return value


def _weight(place: int, points: Mapping[int, int]) -> int:
    """Lagrange's weight of this place for the value at 0."""
    above, below = 1, 1
    for other in points:
        if other != place:
            above = above * other % _PRIME
            below = below * (other - place) % _PRIME
    return above * pow(below, -1, _PRIME) % _PRIME
