"""How every chain stands, kept in memory in columns: a question over all patients reads no row.

Whatever changes a chain is logged with the document that changed it, at an index of its own
(`site_document`), so what changed since a roster was made is what was logged since. A roster is
only ever as old as the newest entry at the moment it is asked; it is kept by one process, and lost
with it at no loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

import sqlalchemy as sa

from consent.columns import Columns
from consent.decide import Request, Standing
from consent.store import consent_head, site_document, standing_of
from coop.documents.provision import Policy

POLICIES_KEPT: Final = 4096  # about 20 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The standings as of the entries below `upto`."""

    upto: int = 0
    sites: Mapping[str, Columns] = field(default_factory=dict)


class Roster:
    """The standings of all patients, by site. Thread-safe."""

    def __init__(self) -> None:
        self._known = _Known()
        self._lock = Lock()
        self._parsed: dict[str, Policy] = {}
        """Policies by their text: patients choose one of few; emptied when they do not."""

    def permitted(self, connection: sa.Connection, request: Request) -> dict[str, list[str]]:
        """Pids by site whose consent permits `request`, sorted, as `decide` says of each.

        Args:
            connection: Reads one instant (`consent.store.snapshot`); the answer is at least as new.
            request: What is asked.
        """
        with self._lock:
            known = self._known = self._brought_up(connection)
        sites = known.sites.items()
        return {site: sorted(columns.permitted(request)) for site, columns in sites}

    def _brought_up(self, connection: sa.Connection) -> _Known:
        known = self._known
        newest = connection.execute(sa.select(sa.func.max(site_document.c.log_index))).scalar()
        upto = 0 if newest is None else int(newest) + 1
        if upto <= known.upto:
            return known
        since = sa.select(site_document.c.pid).where(site_document.c.log_index >= known.upto)
        changed = set(connection.execute(since.distinct()).scalars()) if known.upto else {""}
        if "" in changed:  # the first time; or a record was erased, and its name with it
            return _Known(
                upto=upto,
                sites={
                    site: Columns.build(standings.items())
                    for site, standings in self._standings(connection, None).items()
                },
            )
        sites = dict(known.sites)
        for site, standings in self._standings(connection, since).items():
            sites[site] = sites.get(site, Columns.build(())).updated(standings)
        return _Known(upto=upto, sites=sites)

    def _standings(
        self, connection: sa.Connection, of: sa.Select[tuple[str]] | None
    ) -> dict[str, dict[str, Standing]]:
        if len(self._parsed) > POLICIES_KEPT:
            self._parsed = {}
        query = sa.select(consent_head).order_by(consent_head.c.pid)
        query = query if of is None else query.where(consent_head.c.pid.in_(of))
        found: dict[str, dict[str, Standing]] = {}
        for row in connection.execute(query):
            found.setdefault(row.site, {})[row.pid] = standing_of(row, self._parsed)
        return found
