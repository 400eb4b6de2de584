"""What a request may weigh: bytes and nesting, checked before any route or parser sees it."""

import re
from typing import Final

import numpy as np
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coop.errors import CoopError, InvalidInputError, Kind
from coop.problems import response_of

BODY_BYTES_MAX: Final = 1_048_576  # a study with 200 features is about 60 kB
BATCH_BYTES_MAX: Final = 16 * 1_048_576  # 1000 signed consents of 9 kB, with room
ROWS_BYTES_MAX: Final = 8 * 1_048_576  # inference_gateway.oip.BODY_BYTES_MAX
_BATCH_PATHS: Final = frozenset({"/v1/consents"})
DEPTH_MAX: Final = 40  # a signed document may have 32 levels, inside two lists
# Possessive and open-ended: an unterminated string costs one pass, not one per character.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class BodyTooLargeError(CoopError):
    """The request's body is longer than this route takes."""

    code = "request.too-large"
    kind = Kind.TOO_LARGE


class TooDeepError(InvalidInputError):
    """The request's JSON is nested deeper than anything sensible."""

    code = "request.too-deep"


class Limits:
    """Reads each body whole, within its limit, and hands it on; adds the safe headers.

    Args:
        app: What answers.
        unread: Paths with this prefix are streams with limits of their own.
    """

    def __init__(self, app: ASGIApp, *, unread: str) -> None:
        self._app = app
        self._unread = unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"].startswith(self._unread):
            await self._app(scope, receive, send)
            return
        try:
            body = await _whole(scope, receive)
        except CoopError as error:
            await response_of(error, scope["path"])(scope, receive, _guarded(send))
            return
        if body is None:
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, _guarded(send))


def limit_of(path: str) -> int:
    """How many bytes a body for this path may have."""
    if path in _BATCH_PATHS:
        return BATCH_BYTES_MAX
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        return ROWS_BYTES_MAX
    return BODY_BYTES_MAX


def json_depth(data: bytes) -> int:
    """How deep brackets nest in `data`, outside strings."""
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    if not brackets:
        return 0
    letters = np.frombuffer(brackets, dtype=np.uint8)
    opens = (letters == ord("[")) | (letters == ord("{"))
    return int(np.cumsum(np.where(opens, 1, -1)).max())


async def _whole(scope: Scope, receive: Receive) -> bytes | None:
    """The body; None if the client went away.

    Raises:
        BodyTooLargeError, TooDeepError: It is more than the route takes.
    """
    limit = limit_of(scope["path"])
    announced = Request(scope).headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > limit:
        raise BodyTooLargeError(f"body: at most {limit} bytes")
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise BodyTooLargeError(f"body: at most {limit} bytes")
        more = message.get("more_body", False)
    body = b"".join(parts)
    if json_depth(body) > DEPTH_MAX:
        raise TooDeepError(f"body: nested deeper than {DEPTH_MAX}")
    return body


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(header for header in _HEADERS if header[0] not in present),
            ]
        await send(message)

    return guarded
