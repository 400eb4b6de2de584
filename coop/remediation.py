"""What withdrawals do to released models, by the rule each study was approved with.

Who permitted a study at its first round is registry knowledge, and so is who of them withdrew;
whose record was used stays at the hospitals. So a model's rounds count as affected by everybody who
permitted them, used or not: more than was true, never less.
"""

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from coop import catalogue
from coop.catalogue import RELEASED, RETIRED, RETRAIN_DUE, Catalogue, ModelRow
from coop.documents.envelope import open_document
from coop.documents.study import Remediation, Study
from coop.documents.training import ModelState, Passport
from coop.journal.store import Journal
from coop.pools import holding_table, pool_change, pool_table
from coop.studies import study_table

_PERCENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawals:
    """How a model stands towards those who permitted its study."""

    rule: Remediation
    permitted: int
    withdrawn: int
    rounds: int
    """Rounds their records may have been in."""

    @property
    def due(self) -> bool:
        """Whether the rule's share is reached."""
        return self.withdrawn * _PERCENT >= self.rule.percent * max(self.permitted, 1)


def withdrawals(connection: sa.Connection, journal: Journal, row: ModelRow) -> Withdrawals:
    """Counted from the model's pools: everybody who permitted has a share until she withdraws."""
    first = (
        sa.select(pool_change.c.pool_id, sa.func.min(pool_change.c.id).label("id"))
        .group_by(pool_change.c.pool_id)
        .subquery()
    )
    begun, left = connection.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(pool_change.c.shares), 0),
            sa.func.coalesce(sa.func.sum(pool_table.c.shares), 0),
        )
        .select_from(pool_table)
        .join(first, first.c.pool_id == pool_table.c.id)
        .join(pool_change, pool_change.c.id == first.c.id)
        .where(pool_table.c.model_id == row.model_id)
    ).one()
    records = row.card.get("record_sha256s")
    return Withdrawals(
        rule=_rule(connection, journal, row),
        permitted=int(begun),
        withdrawn=int(begun) - int(left),
        rounds=len(records) if isinstance(records, list) else 0,
    )


def remedy(connection: sa.Connection, models: Catalogue, pids: list[str]) -> list[str]:
    """Apply each model's rule after these patients withdrew; returns the models that changed.

    Called in the withdrawal's own unit of work, after their shares ended.
    """
    query = (
        sa.select(pool_table.c.model_id)
        .join(holding_table, holding_table.c.pool_id == pool_table.c.id)
        .where(holding_table.c.pid.in_(pids))
        .distinct()
        .order_by(pool_table.c.model_id)
    )
    changed = []
    for model_id in connection.execute(query).scalars().all():
        if not catalogue.exists(connection, model_id):
            continue  # the pools of a study's questions without a model
        row = catalogue.model(connection, model_id)
        found = withdrawals(connection, models.journal, row)
        wanted = {"keep": None, "retrain": RETRAIN_DUE, "retire": RETIRED}[found.rule.policy]
        if wanted is not None and row.state == RELEASED and found.due:
            state: Literal["retrain-due", "retired"] = (
                "retired" if wanted == RETIRED else "retrain-due"
            )
            models.change(connection, _state(row, found, state, "withdrawals"))
            changed.append(model_id)
    return changed


def replace_due(connection: sa.Connection, models: Catalogue, study_id: str, by: str) -> list[str]:
    """A new version of the study has a model: those that waited for it answer nothing any more."""
    changed = []
    for row in catalogue.models(connection):
        if row.study_id == study_id and row.state == RETRAIN_DUE and row.model_id != by:
            found = withdrawals(connection, models.journal, row)
            models.change(connection, _state(row, found, "retired", "replaced"))
            changed.append(row.model_id)
    return changed


def refuse_unfair(connection: sa.Connection, models: Catalogue, model_id: str) -> bool:
    """Take a model out of use that is surely below its study's floor; whether it is.

    Called in the release's own unit of work: there is no moment at which it answers.
    """
    row = catalogue.model(connection, model_id)
    document = models.journal.document(connection, row.passport_digest)
    said = open_document(Passport, document, issuers=None).subject.fairness
    if said is None or said.verdict != "below":
        return False
    found = withdrawals(connection, models.journal, row)
    models.change(connection, _state(row, found, "retired", "fairness"))
    return True


def retire(connection: sa.Connection, models: Catalogue, model_id: str) -> None:
    """Take a model out of use by the staff's own decision.

    Raises:
        NotFoundError: No such model.
        ConflictError: It is out of use already.
    """
    row = catalogue.model(connection, model_id)
    found = withdrawals(connection, models.journal, row)
    models.change(connection, _state(row, found, "retired", "staff"))


def _state(
    row: ModelRow,
    found: Withdrawals,
    state: Literal["retrain-due", "retired"],
    reason: Literal["staff", "withdrawals", "replaced", "fairness"],
) -> ModelState:
    return ModelState(
        model_id=row.model_id,
        passport_sha256=row.passport_digest,
        state=state,
        reason=reason,
        permitted=found.permitted,
        withdrawn=found.withdrawn,
        rounds=found.rounds,
    )


def _rule(connection: sa.Connection, journal: Journal, row: ModelRow) -> Remediation:
    digest = connection.execute(
        sa.select(study_table.c.digest).where(
            study_table.c.id == row.study_id, study_table.c.version == row.version
        )
    ).scalar()
    if digest is None:
        return Remediation()
    document = journal.document(connection, digest)
    return open_document(Study, document, issuers=None).subject.remediation
