"""Signed HTTP requests: how hospitals and patients' own keys prove who is calling.

The signature binds method, path with query, body, time and a nonce, so a request replayed, moved to
another route or given another body is refused (`coop.doors` keeps the nonces).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coop.canonical import b64u, encode, from_b64u, sha256
from coop.errors import InvalidInputError, Kind
from coop.keys import SigningKey, public_of, random_bytes, verify

_TAG: Final = b"coop/request/v1"
SKEW_MAX_S: Final = 300  # a hospital's clock may be off by so much; nonces are kept twice as long
_NONCE_HEX: Final = 32
HEADERS: Final = ("coop-did", "coop-time", "coop-nonce", "coop-signature")


class BadRequestSignatureError(InvalidInputError):
    """The request's signature headers are missing, stale or do not verify."""

    code = "request.bad-signature"
    kind = Kind.UNAUTHENTICATED


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who signed a request; the nonce must be recorded before the request is acted on."""

    did: str
    nonce: str
    time: int


def sign(key: SigningKey, *, method: str, path: str, body: bytes, now: int) -> dict[str, str]:
    """The headers that authenticate this request by `key`."""
    nonce = random_bytes(_NONCE_HEX // 2).hex()
    message = _message(key.did, method, path, body, (now, nonce))
    return {
        "Coop-Did": key.did,
        "Coop-Time": str(now),
        "Coop-Nonce": nonce,
        "Coop-Signature": b64u(key.sign(message)),
    }


def verify_request(
    headers: Mapping[str, str], *, method: str, path: str, body: bytes, now: int
) -> Caller:
    """Who signed this request.

    Args:
        headers: With lower-case names.
        method: `GET`, `POST` …
        path: With the query, exactly as sent.
        body: The raw bytes.
        now: UTC seconds.

    Raises:
        BadRequestSignatureError: Missing header, stale time, or a signature of something else.
    """
    values = [headers.get(name, "") for name in HEADERS]
    did, time, nonce, signature = values
    well_formed = time.isascii() and time.isdigit() and len(nonce) == _NONCE_HEX and all(values)
    if not well_formed or abs(int(time) - now) > SKEW_MAX_S:
        raise BadRequestSignatureError(
            "Coop-Time: missing or off by more than 300 s; check the clock"
        )
    message = _message(did, method, path, body, (int(time), nonce))
    try:
        verify(public_of(did), message, from_b64u(signature))
    except InvalidInputError as error:
        raise BadRequestSignatureError(
            "Coop-Signature: does not verify for this request"
        ) from error
    return Caller(did=did, nonce=nonce, time=int(time))


def _message(did: str, method: str, path: str, body: bytes, stamp: tuple[int, str]) -> bytes:
    time, nonce = stamp
    return encode(
        _TAG,
        {
            "did": did,
            "method": method,
            "path": path,
            "body_sha256": sha256(body).hex(),
            "time": time,
            "nonce": nonce,
        },
    )
