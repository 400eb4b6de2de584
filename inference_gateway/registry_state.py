"""How fresh the gateway's view of the registry is: no answer on a view older than a minute.

The view is the newest checkpoint of the log, read and verified under the log's key. A withdrawal of
a model or of consent is in the log before it is acknowledged, so an answer under a checkpoint at
most `AGE_MAX_S` old cannot miss one that is older than that.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from consent import freshness
from coop.db import Database
from coop.errors import UnavailableError
from coop.journal import note
from coop.journal.store import Journal

AGE_MAX_S: Final = 60  # DESIGN §3: a withdrawal bites within 60 s
REFRESH_S: Final = 5  # a newer view is fetched well before the old one may no longer be used


class RegistryStaleError(UnavailableError):
    """The registry's checkpoint could not be confirmed within the last minute."""

    code = "gateway.registry-stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A verified checkpoint and when it was the newest one."""

    checkpoint: str
    size: int
    at: int


class RegistryView:
    """The newest verified checkpoint, at most `AGE_MAX_S` old. Thread-safe.

    Args:
        database: Holds the log.
        journal: Knows the log's name and key.
        now: UTC seconds.
    """

    def __init__(self, database: Database, journal: Journal, now: Callable[[], int]) -> None:
        self._database = database
        self._journal = journal
        self._now = now
        self._lock = threading.Lock()
        self._view: View | None = None

    def refresh(self) -> View:
        """Read and verify the newest checkpoint.

        Raises:
            NoteError: It is not signed by the log's key.
            RegistryStaleError: The log is smaller than it was: it was rolled back.
        """
        at = self._now()  # before the read: the view is at least as old as this
        with self._database.reading() as connection:
            text = self._journal.checkpoint(connection)
        opened = note.open_checkpoint(
            text, origin=self._journal.origin, log_did=self._journal.log_did
        )
        with self._lock:
            if self._view is not None and opened.size < self._view.size:
                raise RegistryStaleError("registry: its log is smaller than it was; restore it")
            self._view = View(checkpoint=text, size=opened.size, at=at)
            return self._view

    def fresh(self, at_least_as_fresh: str | None = None) -> View:
        """A view at most `AGE_MAX_S` old, that holds what a token is for.

        Args:
            at_least_as_fresh: The `fresh` of a consent receipt (`consent.freshness`).

        Raises:
            FreshTokenError: It is no token of this log.
            BehindError: The registry does not know that much.
            RegistryStaleError: There is no view, and none can be had now.
        """
        wanted = 0
        if at_least_as_fresh is not None:
            wanted = freshness.size_in(at_least_as_fresh, self._journal.origin)
        view = self._recent(wanted)
        freshness.check(view.size, wanted)
        return view

    def _recent(self, wanted: int) -> View:
        with self._lock:
            view = self._view
        if view is not None and self._now() - view.at < REFRESH_S and view.size >= wanted:
            return view
        try:
            return self.refresh()
        except (sa.exc.OperationalError, note.NoteError) as error:
            if view is not None and self._now() - view.at <= AGE_MAX_S:
                return view
            raise RegistryStaleError(
                "registry: no checkpoint of the last 60 seconds; nothing is answered without one"
            ) from error
