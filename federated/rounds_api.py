"""HTTP: order a training run, follow it, cancel it.

`POST /v1/rounds` is for the researcher who proposed the study and for the cooperative's staff.
Reading is public: a run's orders and records stand in the public log anyway.
"""

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from coop import studies
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import ForbiddenError
from federated.rounds import Rounds
from federated.run_tables import RunRow


class NotYourStudyError(ForbiddenError):
    """Only the researcher who proposed a study, or the cooperative's staff, may train it."""

    code = "training.not-your-study"


class TrainRequest(BaseModel):
    """Which study to train."""

    model_config = ConfigDict(extra="forbid")

    study_id: str = Field(max_length=64)
    version: int | None = Field(default=None, ge=1)


class Run(BaseModel):
    """A training run as it stands."""

    order_sha256: str
    study_id: str
    version: int
    state: str
    phase: str
    round: int
    rounds: int
    error: str | None
    waiting: dict[str, str]
    """Code by hospital that an open run waits for."""
    created_at: int
    updated_at: int


class Ordered(BaseModel):
    """A run that was ordered, and its signed order."""

    order: dict[str, Any]
    run: Run


class RunDetails(Run):
    """A run with its signed documents."""

    order: dict[str, Any]
    records: list[dict[str, Any]]
    sites: list[str]


class Runs(BaseModel):
    """Runs, newest first."""

    runs: list[Run]


def routes(doors: Doors, rounds: Rounds) -> APIRouter:
    """The routes over the hub's runs."""
    router = APIRouter(prefix="/v1/rounds", tags=["Training"])
    who = (Principal.RESEARCHER, Principal.STAFF)

    @doors.route(router, "POST", "", *who, status_code=201)
    def order_training(asked: TrainRequest, caller: CallerDep) -> Ordered:
        """Order the training of a ready study; a repeat while it runs returns the same order."""
        with rounds.database.reading() as connection:
            row = studies.get(connection, asked.study_id, asked.version)
        _refuse_others(row, caller)
        document = rounds.create(row.id, row.version)
        with rounds.database.reading() as connection:
            run = next(r for r in rounds.runs(connection, row.id) if r.version == row.version)
        return Ordered(order=document, run=_run(run))

    @doors.route(router, "GET", "", Principal.PUBLIC)
    def list_training(study_id: str | None = None) -> Runs:
        """Every run, or those of one study."""
        with rounds.database.reading() as connection:
            return Runs(runs=[_run(row) for row in rounds.runs(connection, study_id)])

    @doors.route(router, "GET", "/{order_sha256}", Principal.PUBLIC)
    def show_training(order_sha256: str) -> RunDetails:
        """One run with its order and round records."""
        with rounds.database.reading() as connection:
            return _details(rounds, connection, order_sha256)

    @doors.route(router, "DELETE", "/{order_sha256}", *who)
    def cancel_training(order_sha256: str, caller: CallerDep) -> Run:
        """Stop a run before its next round; what hospitals were charged stays charged."""
        with rounds.database.reading() as connection:
            run = rounds.get(connection, order_sha256)
            row = studies.by_digest(connection, run.study_sha256)
        _refuse_others(row, caller)
        return _run(rounds.cancel(order_sha256))

    return router


def _refuse_others(row: studies.StudyRow, caller: Caller) -> None:
    if not caller.is_coop_staff and caller.account_or_none != row.proposer_account:
        raise NotYourStudyError("study: was proposed by somebody else")


def _run(row: RunRow) -> Run:
    return Run(**{name: getattr(row, name) for name in Run.model_fields})


def _details(rounds: Rounds, connection: sa.Connection, order_sha256: str) -> RunDetails:
    order = rounds.order(connection, order_sha256)
    row = rounds.get(connection, order_sha256)
    return RunDetails(
        **_run(row).model_dump(),
        order=order.document,
        records=rounds.records(connection, order_sha256),
        sites=[entry.site for entry in order.subject.roster],
    )
