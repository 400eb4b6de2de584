"""At least as fresh: a token for how much of the log an answer knows.

Whoever got one with a receipt hands it in with a later question and is answered only from a reading
that holds what the receipt acknowledged: not from a copy that lags, nor from a backup that was put
back. To its holder the token is opaque.
"""

from typing import Final

import sqlalchemy as sa

from coop.canonical import INTEGER_MAX, NotCanonicalError, b64u, encode, from_b64u, parse_object
from coop.errors import CoopError, InvalidInputError, Kind
from coop.journal.store import Journal

TOKEN_CHARS_MAX: Final = 512
_TAG: Final = b"coop/fresh/v1"
_BYTES_MAX: Final = 384


class FreshTokenError(InvalidInputError):
    """No token of this log."""

    code = "consent.fresh-token"


class BehindError(CoopError):
    """This registry does not know yet what the token's holder was told; ask again."""

    code = "consent.behind"
    kind = Kind.UNAVAILABLE


def token(origin: str, size: int) -> str:
    """The token for a log of this size."""
    return b64u(encode(_TAG, {"origin": origin, "size": size}))


def known(connection: sa.Connection, journal: Journal) -> str:
    """The token for what this connection sees."""
    return token(journal.origin, journal.size(connection))


def demand(connection: sa.Connection, journal: Journal, wanted: str) -> None:
    """Return if this connection sees at least what the token is for.

    Raises:
        FreshTokenError: It is no token of this log.
        BehindError: It sees less.
    """
    check(journal.size(connection), size_in(wanted, journal.origin))


def check(known_size: int, wanted_size: int) -> None:
    """Return if a log of the one size holds what the other is for.

    Raises:
        BehindError: It does not yet.
    """
    if known_size < wanted_size:
        raise BehindError("at_least_as_fresh: not known here yet; ask again in a moment")


def size_in(text: str, origin: str) -> int:
    """The size of the log that a token is for.

    Raises:
        FreshTokenError: It is no token of this log.
    """
    if len(text) > TOKEN_CHARS_MAX:
        raise FreshTokenError("at_least_as_fresh: not a token")
    try:
        tag, _, body = from_b64u(text).partition(b"\x00")
        said = parse_object(body, bytes_max=_BYTES_MAX)
    except (NotCanonicalError, UnicodeDecodeError) as error:
        raise FreshTokenError("at_least_as_fresh: not a token") from error
    size = said.get("size")
    whole = isinstance(size, int) and 0 <= size <= INTEGER_MAX and not isinstance(size, bool)
    if tag != _TAG or said.get("origin") != origin or not whole:
        raise FreshTokenError("at_least_as_fresh: not a token of this log")
    return int(str(size))
