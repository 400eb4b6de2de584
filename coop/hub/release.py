"""From a finished training to a released model: evaluation, passport, pools. Wiring, no rules.

Everything here happens once: a crash before the end repeats the whole release, which finds what is
there and changes nothing the second time.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import sqlalchemy as sa

from consent.decide import State
from consent.snapshot import permitted_at
from consent.store import enrolled, standings
from coop import catalogue, remediation, studies
from coop.catalogue import Catalogue, Cost
from coop.db import Database
from coop.documents.study import MICRO
from coop.documents.training import GroupMetric
from coop.economy import Economy
from coop.journal.store import Journal
from coop.pools import fees_of, lock_pools_of, models_with_pools
from federated import metrics
from federated.accounting import plan, price_of
from federated.permits import consent_request
from federated.registered import permitted_at_start
from federated.rounds import Rounds
from federated.run_tables import RunResult

_COUNTING: Final = "infer-aggregate"


class Releases:
    """Releases the model of a finished order.

    Args:
        database: The hub's.
        journal: The log whose size at the first round fixes who earns.
        rounds: Finished runs.
        models: The catalogue.
        economy: The pools.
        now: UTC seconds.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        rounds: Rounds,
        models: Catalogue,
        economy: Economy,
        now: Callable[[], int],
    ) -> None:
        self._now = now
        self._database = database
        self._journal = journal
        self._rounds = rounds
        self._models = models
        self._economy = economy

    def release(self, order_sha256: str) -> None:
        """Build the model of this order, sign its passport, open its pools; once."""
        with self._database.unit_of_work() as connection:
            result = self._rounds.result(connection, order_sha256)
            model_id = catalogue.model_id_of(result.order)
            if catalogue.exists(connection, model_id):
                return
            permitted = permitted_at_start(connection, self._journal, result.study, order_sha256)
            weights = {entry.site: 0 for entry in result.order.subject.roster}
            weights |= {site: len(pids) for site, pids in permitted.items() if site in weights}
            rosters = {site: permitted.get(site, []) for site in weights}
            # Pools before the passport: every writer takes pools, then accounts, then the log.
            self._economy.open_pools(connection, model_id, rosters, weights)
            everybody = [pid for pids in rosters.values() for pid in pids]
            gone = _withdrawn(connection, everybody)
            stop_earning(self._economy, connection, gone)
            self._models.release(
                connection,
                order=result.order,
                study=result.study,
                record_sha256s=result.record_sha256s,
                weights=result.weights,
                metrics=_metrics(result),
                hospital_weights=weights,
                cost=_cost(result),
            )
            if remediation.refuse_unfair(connection, self._models, model_id):
                return  # what it would have replaced goes on as it was
            remediation.remedy(connection, self._models, gone)
            remediation.replace_due(connection, self._models, result.study.study_id, model_id)

    def share_questions(self) -> list[str]:
        """Open the pools of studies whose questions without a model were paid; returns which.

        Such a question reads records of everybody who permits it, so its fee goes to them: the
        pools bear the study's name and are frozen when the first fee is split. Every window after
        that pays the same hospitals and, of their patients, whoever has not withdrawn.
        """
        opened = []
        with self._database.unit_of_work() as connection:
            known = set(models_with_pools(connection))
            newest = {row.study.study_id: row.study for row in studies.every(connection)}
            for study_id, study in newest.items():
                if study_id in known or not fees_of(connection, study_id, only_open=True):
                    continue
                request = consent_request(study, _COUNTING, self._now())
                size = self._journal.size(connection)
                rosters = permitted_at(connection, self._journal, request, size)
                weights = {site: len(pids) for site, pids in rosters.items()}
                if not any(weights.values()):
                    continue  # the fee waits until somebody permits the study
                self._economy.open_pools(connection, study_id, rosters, weights)
                everybody = [pid for pids in rosters.values() for pid in pids]
                stop_earning(self._economy, connection, _withdrawn(connection, everybody))
                opened.append(study_id)
        return opened


def _withdrawn(connection: sa.Connection, pids: list[str]) -> list[str]:
    """Who permitted when the pools' list was made and has withdrawn since: she earns no more."""
    # Held until the commit: a withdrawal at this very moment waits, and then finds her pools.
    enrolled(connection, pids, lock=True)
    now = standings(connection, pids)
    gone = {State.REVOKED, State.VOID}
    return [p for p in pids if p in now and (now[p].state in gone or now[p].objected)]


def leave(economy: Economy, models: Catalogue, connection: sa.Connection, pids: list[str]) -> None:
    """These withdrew: they stop earning, and each model's rule is applied."""
    stop_earning(economy, connection, pids)
    remediation.remedy(connection, models, pids)


def stop_earning(economy: Economy, connection: sa.Connection, pids: list[str]) -> None:
    """These withdrew: what they earned stays theirs, later windows pay others."""
    # All their pools at once and in order, so that two batches cannot wait for each other.
    lock_pools_of(connection, pids)
    for pid in pids:
        economy.withdraw(connection, pid)


def _cost(result: RunResult) -> Cost:
    budget, schedule = result.study.budget, result.study.recipe.schedule
    price = price_of(budget, schedule)
    return Cost(
        epsilon_micro=price.plan_micro,
        training_epsilon_micro=math.ceil(plan(budget, schedule).training_epsilon * MICRO),
        cohort_epsilon_micro=price.cohort_micro,
        together_epsilon_micro=price.together_micro,
    )


def _metrics(result: RunResult) -> list[GroupMetric]:
    """Over all hospitals, by subgroup, and by hospital; the noise was drawn at the hospitals."""
    by_site = result.histograms
    if not by_site:
        return []
    sigma = plan(result.study.budget, result.study.recipe.schedule).evaluation_sigma_micro / MICRO
    groups = list(result.study.evaluation.groups)
    # Spreads the known noise for the error bars; seeded by the order so that anyone recomputes.
    generator = np.random.default_rng(int(result.order.digest[:16], 16))
    total = np.sum([by_site[site] for site in sorted(by_site)], axis=0)
    noise_sd = sigma * math.sqrt(len(by_site))
    rows = metrics.measure(total, groups, noise_sd=noise_sd, generator=generator)
    for site in sorted(by_site):
        # Post-processing of what the hospital released: it costs no further privacy.
        row = metrics.measure(by_site[site], groups, noise_sd=sigma, generator=generator)[0]
        rows.append(row.model_copy(update={"group": f"hospital {site}"}))
    return rows
