"""Serving the hub over HTTPS until it is told to stop."""

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from coop.errors import UnavailableError
from coop.hub.folder import HubFolder
from coop.settings import Settings

_BACKLOG: Final = 2048
_KEEP_ALIVE_S: Final = 75  # longer than clients keep a connection, so that they close first
_GRACE_S: Final = 3  # for answers under way; long polls end at once


class NotStartedError(UnavailableError):
    """A part of the hub did not start; its log says why."""

    code = "hub.not-started"


class PortTakenError(UnavailableError):
    """Somebody else listens on the hub's port."""

    code = "hub.port-taken"


def serve(settings: Settings, app: FastAPI, *, ready: Callable[[int], None]) -> None:
    """Serve `app` on the settings' host and port; returns after SIGINT or SIGTERM.

    Args:
        settings: Port 0 picks a free one.
        app: What answers; `app.state.stopping` ends its long polls.
        ready: Called with the port once it answers.

    Raises:
        PortTakenError: The port is in use.
        NotStartedError: A part did not start.
    """
    folder = HubFolder.open(settings.state)
    tls = folder.path / "tls"
    config = uvicorn.Config(
        app,
        ssl_keyfile=tls / "server.key",
        ssl_certfile=tls / "server.crt",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        proxy_headers=False,
    )
    listening = _listen(settings)
    with listening:
        server = _Server(
            config,
            ready=lambda: ready(listening.getsockname()[1]),
            stopping=app.state.stopping,
        )
        server.run([listening])
    if not server.started:
        raise NotStartedError("the hub did not start; its log on standard error says why")


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, *, ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own: that raises the signal again at the end, and a stop is no failure.
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._stopping()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def _listen(settings: Settings) -> socket.socket:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        raise PortTakenError(
            f"port {settings.port} on {settings.host} cannot be used ({error.strerror}); "
            "set COOP_PORT or stop what listens there"
        ) from error
    return listening
