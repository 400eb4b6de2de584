"""The gateway assembled: one object per hub that the routes speak to."""

from collections.abc import Callable, Mapping
from typing import Final

import sqlalchemy as sa

from coop import ledger, studies
from coop.canonical import Json
from coop.db import Database
from coop.errors import NotFoundError
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.passkeys import RelyingParty
from inference_gateway import jobs, oip, scope
from inference_gateway.answer import PointRequest, Points
from inference_gateway.cohort import Cohorts
from inference_gateway.jobs import Claimed
from inference_gateway.models import Models
from inference_gateway.registry_state import RegistryView
from inference_gateway.settlement import Settlement
from inference_gateway.store import (
    SEEN_STEP_S,
    Stored,
    erase_replays,
    last_seen,
    note_seen,
    replays_due,
    usage,
)
from inference_gateway.uses import KIND as USES
from inference_gateway.uses import Uses

_SEEN_HERE_MAX: Final = 10_000


class Gateway:
    """The researcher's counter and the hospitals' outbound channel. Thread-safe.

    Args:
        database: The hub's.
        journal: The transparency log.
        hub_key: Signs jobs and receipts.
        now: UTC seconds.
        passkeys: The portal whose passkeys sign here.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        hub_key: SigningKey,
        *,
        now: Callable[[], int],
        passkeys: RelyingParty | None = None,
    ) -> None:
        self.database = database
        self.now = now
        self.registry = RegistryView(database, journal, now)
        self.models = Models(journal, hub_key.did)
        self.points = Points(
            database, journal, hub_key, models=self.models, registry=self.registry, now=now
        )
        self.cohorts = Cohorts(
            database, hub_key, models=self.models, registry=self.registry, now=now
        )
        self.settlement = Settlement(
            database, journal, hub_key, models=self.models, registry=self.registry, now=now
        )
        self.uses = Uses(database, now, passkeys)
        self._seen: dict[str, int] = {}

    def answer(self, request: PointRequest) -> Stored:
        """A point answer, charged and receipted (`answer.Points.answer`)."""
        return self.points.answer(request)

    def metadata(self, model_id: str) -> dict[str, object]:
        """The protocol's metadata of a model.

        Raises:
            NotFoundError: No such model.
        """
        with self.database.reading() as connection:
            model = self.models.found(connection, model_id)
        return oip.metadata(model_id, model.version, model.study.schema_)

    def check_ready(self, model_id: str) -> None:
        """Return if the model answers questions now.

        Raises:
            CoopError: Unknown, retired or damaged.
        """
        with self.database.reading() as connection:
            self.models.found(connection, model_id)
            self.models.check_state(connection, model_id)

    def claim(self, site: str) -> Claimed | None:
        """The oldest job that waits for `site`; also notes that the site called."""
        now = self.now()
        with self.database.reading() as connection:
            stale = now - self._seen.get(site, 0) >= SEEN_STEP_S
            if stale:
                stale = now - last_seen(connection, site) >= SEEN_STEP_S
            waiting = jobs.is_waiting(connection, site, now)
        if stale:
            with self.database.unit_of_work() as connection:
                connection.execution_options(coop_quiet=True)
                note_seen(connection, site, now)
            if len(self._seen) < _SEEN_HERE_MAX:
                self._seen[site] = now
        if not waiting:
            return None
        with self.database.unit_of_work() as connection:
            connection.execution_options(coop_quiet=True)
            return jobs.claim(connection, site, now)

    def receive(
        self,
        site: str,
        job_id: str,
        attempt: int,
        *,
        document: Mapping[str, Json] | None,
        code: str | None,
    ) -> None:
        """Take a hospital's answer to one of its jobs.

        Raises:
            CoopError: Not its job, not its answer, or too late.
        """
        with self.database.reading() as connection:
            kind, _ = jobs.payload_of(connection, site, job_id)
        taker = self.uses.receive if kind == USES else self.settlement.receive
        taker(site, job_id, attempt, document=document, code=code)

    def usage(self, account_id: int) -> list[dict[str, str | int]]:
        """What the account asked and paid, by day and model."""
        with self.database.reading() as connection:
            return usage(connection, account_id)

    def budgets(self, asker: scope.Asker, study_id: str) -> list[dict[str, object]]:
        """The cohort line of each version of the asker's study: total, and spent by hospital.

        Raises:
            NotFoundError: No such study, or somebody else's.
        """
        with self.database.reading() as connection:
            rows = [
                row
                for row in studies.every(connection)
                if row.id == study_id and row.proposer_account == asker.account_id
            ]
            if not rows:
                raise NotFoundError("study: not found")
            return [self._budget(connection, row) for row in rows]

    def _budget(self, connection: sa.Connection, row: studies.StudyRow) -> dict[str, object]:
        total = row.study.budget.cohort_rho_nano
        spent = self.cohorts.spent(connection, row.digest)
        return {
            "study_id": row.id,
            "version": row.version,
            "cohort_rho_nano": total,
            "sites": [
                {
                    "site": approved.site,
                    "spent_rho_nano": spent.get(approved.site, 0),
                    "left_rho_nano": max(total - spent.get(approved.site, 0), 0),
                }
                for approved in studies.approvals_of(connection, row.digest)
            ],
        }

    def sweep(self) -> None:
        """End what is overdue; every part is idempotent and does nothing when nothing is due."""
        now = self.now()
        self.settlement.sweep()
        self.uses.sweep()
        with self.database.reading() as connection:
            due = replays_due(connection, now)
        if due:
            with self.database.unit_of_work() as connection:
                connection.execution_options(coop_quiet=True)
                erase_replays(connection, now)
        with self.database.unit_of_work() as connection:
            connection.execution_options(coop_quiet=True)
            ledger.expire(connection, now)
