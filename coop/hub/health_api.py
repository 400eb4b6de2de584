"""For operators: is it up, can it serve, how much does it do."""

import time
from collections.abc import Callable
from typing import Final, Literal

import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coop.db import DatabaseUnavailableError
from coop.doors import Doors, Principal
from coop.hub.bodies import Body
from coop.journal.store import Journal

_METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"})


class HealthAnswer(Body):
    """It is up."""

    status: Literal["ok"] = "ok"


class Metrics:
    """Counts requests by route template (never by path: paths hold pseudonyms)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter(
            "coop_requests", "Requests answered.", labels, registry=self.registry
        )
        self._seconds = Histogram(
            "coop_request_seconds", "Time to answer.", ("route",), registry=self.registry
        )
        self.log_size = Gauge("coop_log_size", "Entries of the log.", registry=self.registry)

    def note(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Metered:
    """ASGI middleware: counts what passes."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.note(
                method=scope["method"] if scope["method"] in _METHODS else "other",
                route=getattr(scope.get("route"), "path", "unmatched"),
                status=status,
                seconds=time.perf_counter() - started,
            )


def routes(
    doors: Doors, journal: Journal, metrics: Metrics, *, ready: Callable[[], None]
) -> APIRouter:
    """The operators' routes.

    Args:
        doors: Guards them.
        journal: Whose size is shown.
        metrics: What is counted.
        ready: Raises while a part the hub needs does not answer.
    """
    router = APIRouter(tags=["operation"])

    @doors.route(router, "GET", "/healthz", Principal.PUBLIC)
    def healthz() -> HealthAnswer:
        """The process is up."""
        return HealthAnswer()

    @doors.route(router, "GET", "/readyz", Principal.PUBLIC)
    def readyz() -> HealthAnswer:
        """The process can serve: its database and its parts answer."""
        try:
            with doors.database.reading() as connection:
                journal.size(connection)
        except sa.exc.DBAPIError as error:
            raise DatabaseUnavailableError("the database does not answer") from error
        ready()
        return HealthAnswer()

    @doors.route(router, "GET", "/metrics", Principal.PUBLIC, response_class=PlainTextResponse)
    def shown() -> Response:
        """Prometheus counters."""
        with doors.database.reading() as connection:
            metrics.log_size.set(journal.size(connection))
        return PlainTextResponse(generate_latest(metrics.registry))

    return router
