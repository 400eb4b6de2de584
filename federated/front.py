"""The front of the SuperLink: passes exactly ten node-signed operations, answers 404 to all else.

A pure ASGI application, mounted by the hub under `/v1/fleet`. TLS from the hospital ends in the
hub's server; the request is encrypted again to the loopback SuperLink, whose certificate authority
is the only one trusted here.
"""

import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import aiohttp

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPERATIONS: Final = frozenset(
    {
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages",
        "push-messages", "get-run", "get-fab", "push-object", "pull-object",
        "confirm-message-received",
    }
)  # fmt: skip
"""`register-node` and `unregister-node` serve keyless nodes only and stay shut."""

_PREFIX: Final = "/v1/fleet/"
BODY_BYTES_MAX: Final = 16 * 1024 * 1024  # a model of 4 million float32 in one object
_READ_S: Final = 40.0  # Flower's own calls give up after 30 s
_DROPPED: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "te", "trailer",
     "upgrade", "proxy-authorization", "proxy-connection", "cookie", "accept-encoding", "expect"}
)  # fmt: skip
"""Hop-by-hop headers, and those that name a user of the hub rather than a node."""


class Front:
    """The ASGI application. It must see the whole path (Starlette's mounts leave it whole)."""

    def __init__(self, upstream: str, ca_file: Path) -> None:
        self._base = f"https://{upstream}{_PREFIX}"
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request.

        Steps: (1) POST to one of the ten operations, spelled exactly, or 404; (2) a body within the
        cap, or 413; (3) the SuperLink's own answer, or 502 while it restarts.
        """
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        if scope["type"] != "http":
            return
        # (1)
        operation = _operation(scope)
        if operation is None:
            await _plain(send, 404)
            return
        # (2)
        body = await _body(receive)
        if body is None:
            await _plain(send, 413)
            return
        # (3)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.decode("latin-1") not in _DROPPED
        ]
        try:
            async with self._client().post(
                self._base + operation, data=body, headers=headers, allow_redirects=False
            ) as answer:
                await _pass_on(send, answer.status, answer.headers, await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            await _plain(send, 502)

    async def close(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            # Here and not earlier: the authority's file is made when the SuperLink first starts.
            context = ssl.create_default_context(cafile=str(self._ca_file))
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=64, keepalive_timeout=20),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_READ_S),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept", "content-type"),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


def _operation(scope: Scope) -> str | None:
    """The operation, if the request names one of the ten and nothing else.

    Both the decoded path and the raw one must be the plain spelling, so no encoding of a dot or a
    slash can mean something else to the SuperLink than it means here.
    """
    path = str(scope["path"])
    raw = scope.get("raw_path") or path.encode()
    if scope["method"] != "POST" or scope.get("query_string"):
        return None
    name = path.rpartition("/")[2]
    if name not in OPERATIONS or path != f"{_PREFIX}{name}" or bytes(raw) != path.encode():
        return None
    return name


async def _body(receive: Receive) -> bytes | None:
    parts = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        parts += event.get("body", b"")
        if len(parts) > BODY_BYTES_MAX:
            return None
        if not event.get("more_body", False):
            return bytes(parts)


async def _plain(send: Send, status: int) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})


async def _pass_on(send: Send, status: int, headers: Any, body: bytes) -> None:  # noqa: ANN401
    kept = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers.items()
        if name.lower()
        not in {"connection", "transfer-encoding", "content-length", "date", "server"}
    ]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})
