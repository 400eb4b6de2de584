"""The lease: the registry's signed word on consent at one instant, for one hospital and one nonce.

The hospital reads its clock before it asks; the answer comes from a snapshot taken after the
question arrived; so a lease that lacks a revocation was asked for before that revocation was
acknowledged, and is over within 60 s wherever the clocks stand.
"""

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Final

import sqlalchemy as sa

from consent.chain import cosigners_needed, heads_digest, keys_of
from consent.store import consent_head, enrolment, site_document, snapshot
from coop import members
from coop.canonical import b64u, parse_object
from coop.db import Database
from coop.documents.envelope import issue
from coop.documents.training import Lease
from coop.journal.rows import signed_document
from coop.journal.store import ENTRIES_MAX, Journal
from coop.keys import SigningKey

EFFECTIVE_S: Final = 60  # DESIGN §3 (2): a withdrawal bites everywhere within so long
# A receipt names a whole second before its commit: the lease is shorter by that second and a slow
# commit, so that no lease without the withdrawal outlives what the receipt promises.
LEASE_S: Final = 58
DOCUMENTS_MAX: Final = 2000  # one page, about 5 MB
DOCUMENTS_BYTES: Final = 8_388_608  # and never more than this, however long the documents are


class Leases:
    """Makes leases; remembers each site's heads digest while no event of that site is added."""

    def __init__(
        self, database: Database, journal: Journal, hub_key: SigningKey, now: Callable[[], int]
    ) -> None:
        self._database = database
        self._journal = journal
        self._key = hub_key
        self._now = now
        self._heads: dict[str, tuple[int, str]] = {}
        self._lock = Lock()

    def lease(self, site: str, nonce: str, have: int, documents_from: int) -> dict[str, Any]:
        """A fresh lease with what the hospital needs to check it.

        Args:
            site: The hospital that asks.
            nonce: Its own, 32 hex digits.
            have: It has the log's entries below this index.
            documents_from: It has its own patients' documents below this index.

        Returns:
            {"lease", "latest" (newest signed checkpoint, of size `lease.log_size`), "entries",
            "documents", "documents_to" (the documents are complete below this index), "size"}.
        """
        with snapshot(self._database) as connection:
            size = self._journal.size(connection)
            sites = members.site_dids(connection)
            others = {name: did for name, did in sites.items() if name != site}
            subject = Lease(
                site=site,
                nonce=nonce,
                log_size=size,
                checkpoint=self._journal.checkpoint(
                    connection, cosigners=cosigners_needed(len(sites)), sites=others
                ),
                heads_sha256=self._heads_digest(connection, site),
                seconds=LEASE_S,
            )
            latest = self._journal.checkpoint(connection)
            entries = self._journal.entries(connection, have) if have < size else []
            to = min(size, have + ENTRIES_MAX) if entries else size
            documents, to = _documents(connection, site, documents_from, to)
        return {
            "lease": issue(subject, self._key, self._now()),
            "latest": latest,
            "entries": [b64u(leaf) for leaf in entries],
            "documents": documents,
            "documents_to": to,
            "size": size,
        }

    def _heads_digest(self, connection: sa.Connection, site: str) -> str:
        newest = connection.execute(
            sa.select(sa.func.max(site_document.c.log_index)).where(site_document.c.site == site)
        ).scalar()
        marker = -1 if newest is None else int(newest)
        with self._lock:
            known = self._heads.get(site)
        # Every event of the site adds a document, so the same newest document is the same heads.
        if known is not None and known[0] == marker:
            return known[1]
        digest = heads_digest(heads(connection, site))
        with self._lock:
            self._heads[site] = (marker, digest)
        return digest


def heads(connection: sa.Connection, site: str) -> Mapping[str, str]:
    """What a lease vouches for: the newest event of every chain at this site, by pid.

    And the newest document on who may speak, where there is one after the first enrolment.
    """
    query = sa.select(consent_head.c.pid, consent_head.c.digest).where(consent_head.c.site == site)
    found: dict[str, str] = {row[0]: row[1] for row in connection.execute(query)}
    people = sa.select(enrolment.c.pid, enrolment.c.newest).where(
        enrolment.c.site == site, enrolment.c.newest.is_not(None)
    )
    return found | {keys_of(row.pid): row.newest for row in connection.execute(people)}


def _documents(
    connection: sa.Connection, site: str, start: int, end: int
) -> tuple[list[dict[str, object]], int]:
    query = (
        sa.select(
            site_document.c.log_index,
            site_document.c.digest,
            site_document.c.pid,
            signed_document.c.salt,
            signed_document.c.body,
        )
        .join(signed_document, signed_document.c.digest == site_document.c.digest)
        .where(
            site_document.c.site == site,
            site_document.c.log_index >= start,
            site_document.c.log_index < end,
            signed_document.c.body.is_not(None),
        )
        .order_by(site_document.c.log_index)
        .limit(DOCUMENTS_MAX)
    )
    found: list[dict[str, object]] = []
    held = 0
    for row in connection.execute(query):
        held += len(row.body.encode())
        if found and held > DOCUMENTS_BYTES:
            return found, row.log_index
        found.append(
            {
                "index": row.log_index,
                "digest": row.digest,
                "pid": row.pid,
                "salt": row.salt,
                "document": parse_object(row.body),
            }
        )
    if len(found) == DOCUMENTS_MAX:
        return found, int(str(found[-1]["index"])) + 1
    return found, end
