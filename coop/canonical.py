"""The one byte encoding of everything that is hashed or signed.

RFC 8785 (JCS) of I-JSON without floats: objects, arrays, NFC strings, integers within ±(2^53-1),
true, false, null. `encode(tag, value)` adds a domain tag so that bytes signed for one purpose can
never pass for another. The browser component `ui/components/signer/signer.js` is its twin.

Core: pure, no I/O.
"""

import base64
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Final, NewType

import orjson

from coop.errors import InvalidInputError

Json = object
"""A JSON value without floats. Kept as `object`: every reader narrows it."""

Hash = NewType("Hash", bytes)
"""A SHA-256 digest, 32 bytes. Hex only in JSON, the CLI and the UI."""

INTEGER_MAX: Final = 2**53 - 1  # I-JSON, RFC 7493 §2.2: what a JavaScript number holds exactly
DEPTH_MAX: Final = 32  # deepest signed document is 9 levels; a bomb is deeper
DOCUMENT_BYTES_MAX: Final = 262_144  # a study with 200 features is about 60 kB


class NotCanonicalError(InvalidInputError):
    """The value has no canonical form (a float, a lone surrogate, a too large integer …)."""

    code = "canonical.not-signable"


def jcs(value: Json) -> bytes:
    """The RFC 8785 bytes of `value`.

    For what `_check` lets through, sorted compact JSON *is* RFC 8785: member names are ASCII, so
    every order agrees, and there is no float to print. A test compares with `rfc8785`.

    Raises:
        NotCanonicalError: The value contains anything but signable JSON.
    """
    _check(value, 0)
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise NotCanonicalError(f"document: {error}") from error


def encode(tag: bytes, value: Json) -> bytes:
    """Bytes of `value` for the purpose `tag` (`b"coop/policy/v1"`)."""
    return tag + b"\x00" + jcs(value)


def sha256(data: bytes) -> Hash:
    """SHA-256 of `data`."""
    return Hash(hashlib.sha256(data).digest())


def digest(tag: bytes, value: Json) -> Hash:
    """SHA-256 of `encode(tag, value)`."""
    return sha256(encode(tag, value))


def document_digest(document: Mapping[str, Json]) -> str:
    """Hex SHA-256 of a signed document with its proof: how documents are named."""
    return sha256(jcs(dict(document))).hex()


def parse(data: bytes | str, *, bytes_max: int = DOCUMENT_BYTES_MAX) -> Json:
    """Read strict JSON: no floats, no duplicate names, bounded size and depth.

    Raises:
        NotCanonicalError: The text is not signable JSON.
    """
    if len(data) > bytes_max:
        raise NotCanonicalError(f"document: longer than {bytes_max} bytes")
    try:
        value = json.loads(
            data, object_pairs_hook=_no_duplicates, parse_float=_no_float, parse_constant=_no_float
        )
    except (ValueError, RecursionError) as error:
        raise NotCanonicalError(f"document: not strict JSON ({error})") from error
    _check(value, 0)
    return value


def parse_object(data: bytes | str, *, bytes_max: int = DOCUMENT_BYTES_MAX) -> dict[str, Json]:
    """`parse`, for a text that must hold one JSON object."""
    value = parse(data, bytes_max=bytes_max)
    if not isinstance(value, dict):
        raise NotCanonicalError("document: must be a JSON object")
    return value


def b64u(data: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_b64u(text: str) -> bytes:
    """The inverse of `b64u`; refuses anything that does not encode back to itself."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise NotCanonicalError("base64url: not valid") from error
    if b64u(data) != text:
        raise NotCanonicalError("base64url: not in canonical form")
    return data


def _check(value: Json, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise NotCanonicalError(f"document: nested deeper than {DEPTH_MAX}")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):  # true and false are integers of small size
        if abs(value) > INTEGER_MAX:
            raise NotCanonicalError(f"document: integer {value} is beyond 2^53-1")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_name(name)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif value is not None:
        raise NotCanonicalError(f"document: a {type(value).__name__} has no canonical form")


def _check_name(name: object) -> None:
    # Printable ASCII names sort alike by UTF-16 units (JCS) and by code points.
    if not isinstance(name, str) or not name.isascii() or not name.isprintable() or not name:
        raise NotCanonicalError("document: member names must be printable ASCII")


def _check_text(text: str) -> None:
    if text.isascii():  # then it is NFC and has no surrogates
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotCanonicalError("document: a string holds a lone surrogate") from error
    if not unicodedata.is_normalized("NFC", text):
        raise NotCanonicalError("document: a string is not in Unicode form NFC")


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name stands twice")
    return members


def _no_float(text: str) -> Json:
    raise ValueError(f"{text} is not an integer")
