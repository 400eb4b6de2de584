"""The doorbell: wakes long polls after a commit; none holds a thread while it waits."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

WAIT_MAX_S: Final = 25  # proxies cut silent connections after 30 s
_FALLBACK_S: Final = 5.0  # how late another process's commit is noticed

T = TypeVar("T")


@dataclass(slots=True)
class Doorbell:
    """Wakes waiting long polls when something was committed, without asking the database.

    A poll holds no thread and no connection while it waits. Another process's commit is noticed by
    a slow fallback check.
    """

    _waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def close(self) -> None:
        """The server stops: every poll ends now, with what it has."""
        self._closed = True
        self.ring()

    def ring(self) -> None:
        """Wake every poll; any thread may."""
        with self._lock:
            waiting = list(self._waiting.items())
        for bell, loop in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(bell.set)

    async def poll(
        self, check: Callable[[], T | None], wait_s: int, *, request: Request | None = None
    ) -> T | None:
        """The first thing `check` finds within `wait_s` (at most 25) seconds, or None.

        Args:
            check: Looks in the database; runs in a worker thread; None means nothing yet.
            wait_s: How long the caller wants to wait.
            request: Stops when its client is gone, so that nothing is handed to nobody.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + max(0, min(wait_s, WAIT_MAX_S))
        bell = asyncio.Event()
        with self._lock:
            self._waiting[bell] = loop
        try:
            while True:
                # Cleared before the look: a commit during the look rings again.
                bell.clear()
                if request is not None and await request.is_disconnected():
                    return None
                found = await run_in_threadpool(check)
                left = until - loop.time()
                if found is not None or left <= 0 or self._closed:
                    return found
                await _within(bell.wait(), min(left, _FALLBACK_S))
        finally:
            with self._lock:
                self._waiting.pop(bell, None)


def ring_after_commits(engine: sa.Engine, bell: Doorbell) -> None:
    """Ring `bell` after every commit of `engine` in this process."""

    # The commit event comes before the database commits, the check-in after it: mark, then ring.
    def mark(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("coop_quiet"):
            connection.info["coop_committed"] = True

    def ring(_dbapi: object, record: Any) -> None:  # noqa: ANN401  (SQLAlchemy's pool record)
        if record.info.pop("coop_committed", False):
            bell.ring()

    event.listen(engine, "commit", mark)
    event.listen(engine, "checkin", ring)


async def _within(waiting: Awaitable[object], seconds: float) -> None:
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        return
