"""Serving an ASGI application on loopback for the length of a test."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from federated.superlink import free_port


@contextmanager
def served(
    app: Any,
    *,
    certificate: Path | None = None,
    close: Callable[[], Awaitable[None]] | None = None,
    port: int | None = None,
) -> Iterator[int]:
    """The port of `app`; with TLS if a folder with `server.crt` and `server.key` is named."""
    port = port or free_port()
    tls = (
        {}
        if certificate is None
        else {
            "ssl_certfile": certificate / "server.crt",
            "ssl_keyfile": certificate / "server.key",
        }
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=port, log_level="error", lifespan="off", ws="none", **tls
        )
    )

    async def serve() -> None:
        await server.serve()
        if close is not None:
            await close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(10)
