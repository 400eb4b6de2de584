"""A cohort question: asked of every hospital that approved the study, answered with noise there.

The hub signs one job per hospital and queues it; each hospital decides under its own lease, draws
its own noise and signs its own answer (`settlement` takes it). Hospitals that refuse or stay silent
are named with a code and no reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from coop import ledger, members, studies
from coop.canonical import Json, jcs, parse_object, sha256
from coop.db import Database, insert_ignore
from coop.documents.envelope import issue
from coop.documents.serving import CohortAnswer, CohortJob, CohortQuery
from coop.documents.study import Name, Study
from coop.errors import ConflictError, NotFoundError, UnavailableError
from coop.keys import SigningKey
from coop.ledger import Leg
from inference_gateway import jobs, pricing, query, scope
from inference_gateway.jobs import JobState, NewJob
from inference_gateway.models import Models
from inference_gateway.registry_state import RegistryView
from inference_gateway.settlement import NO_ANSWERS
from inference_gateway.store import IdempotencyMismatchError, question_table

ANSWER_S: Final = 120  # a node that restarts is back in 30 s; longer than this it is offline
SETTLE_S: Final = 600  # how long after that the fee stays set aside for a slow sweep
_OPEN_STATES: Final = (
    studies.StudyState.READY,
    studies.StudyState.TRAINING,
    studies.StudyState.RELEASED,
)
VERSION_MAX: Final = 1_000_000  # fits every database's integers
_LISTED_MAX: Final = 200


class CohortAsk(BaseModel):
    """The body of `POST /v1/jobs` and `POST /v1/jobs:estimate`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["cohort"]
    study_id: str = Name
    version: int = Field(ge=1, le=VERSION_MAX)
    query: CohortQuery


class NobodyToAskError(UnavailableError):
    """No member hospital has a live approval of this study."""

    code = "cohort.nobody-to-ask"


class NotFinishedError(ConflictError):
    """The question is still with the hospitals."""

    code = "cohort.not-finished"


class QuestionFailedError(UnavailableError):
    """No hospital answered; the fee was given back."""

    code = NO_ANSWERS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Admitted:
    row: studies.StudyRow
    study: Study
    purpose: str
    sites: list[str]


class Cohorts:
    """Asks cohort questions and says where they stand. Thread-safe.

    Args:
        database: The hub's.
        hub_key: Signs jobs.
        models: The released models.
        registry: The gateway's view of the log.
        now: UTC seconds.
    """

    def __init__(
        self,
        database: Database,
        hub_key: SigningKey,
        *,
        models: Models,
        registry: RegistryView,
        now: Callable[[], int],
    ) -> None:
        self._database = database
        self._hub_key = hub_key
        self._models = models
        self._registry = registry
        self._now = now

    def estimate(self, asker: scope.Asker, ask: CohortAsk) -> dict[str, object]:
        """Fee, privacy cost, expected error and who may answer: free, and touches no data."""
        with self._database.reading() as connection:
            admitted = self._admit(connection, asker, ask)
        delta = admitted.study.budget.delta_pico
        return {
            "fee_nano": pricing.fee_cohort(admitted.study),
            "rho_nano": ask.query.rho_nano,
            "epsilon_upper_micro": pricing.epsilon_micro(ask.query.rho_nano, delta),
            "delta_pico": delta,
            "sites": admitted.sites,
            "count_sd_micro": pricing.sd_count_micro(ask.query, len(admitted.sites)),
        }

    def ask(
        self, asker: scope.Asker, ask: CohortAsk, key: str, fresh: str | None = None
    ) -> dict[str, object]:
        """Queue the question at every approved hospital; a repeat of the key is the same question.

        Steps: (1) a question stored under this key is returned; (2) the query is in the grammar,
        the study live, the use in scope, the model not retired; (3) the registry's checkpoint is at
        most 60 s old, and holds what the token `fresh` is for; (4) in one transaction: the fee is
        set aside, the question and its signed jobs are stored.
        """
        asked: dict[str, Json] = ask.model_dump(mode="json", exclude_none=True)
        body = sha256(jcs(asked | ({} if fresh is None else {"fresh": fresh}))).hex()
        with self._database.reading() as connection:
            # (1)
            known = _under_key(connection, asker.account_id, key)
            if known is not None:
                return _same(known, body)
            # (2)
            admitted = self._admit(connection, asker, ask)
        # (3) The hospitals' leases come later, out of the same registry: they know as much.
        self._registry.fresh(fresh)
        # (4)
        now = self._now()
        question_id = f"q{jobs.new_id(now)}"
        with self._database.unit_of_work() as connection:
            row = self._question(asker, ask, admitted, now=now)
            row |= {"id": question_id, "idempotency_key": key, "body_sha256": body}
            if not insert_ignore(connection, question_table, row):
                known = _under_key(connection, asker.account_id, key)
                return _same(known, body)
            self._set_aside(connection, row)
            for site in admitted.sites:
                job = self._job(question_id, site, ask, study_sha256=admitted.row.digest, now=now)
                jobs.add(connection, job)
        return self.view(asker.account_id, question_id)

    def view(self, account_id: int, question_id: str) -> dict[str, object]:
        """Where the question stands.

        Raises:
            NotFoundError: Somebody else's, or unknown.
        """
        with self._database.reading() as connection:
            row = _mine(connection, account_id, question_id)
            outcomes = jobs.outcomes(connection, question_id)
        ended = sum(outcome.state not in jobs.OPEN for outcome in outcomes)
        return {**_view(row), "asked": len(outcomes), "ended": ended}

    def listed(self, account_id: int) -> list[dict[str, object]]:
        """The account's newest questions."""
        newest = (
            sa.select(question_table)
            .where(question_table.c.account_id == account_id)
            .order_by(question_table.c.id.desc())
            .limit(_LISTED_MAX)
        )
        with self._database.reading() as connection:
            return [_view(row) for row in connection.execute(newest)]

    def result(self, account_id: int, question_id: str) -> dict[str, Json]:
        """The combined answer with the hospitals' signed ones.

        Raises:
            NotFoundError: Somebody else's, or unknown.
            NotFinishedError: Still with the hospitals.
            QuestionFailedError: Nobody answered.
        """
        with self._database.reading() as connection:
            row = _mine(connection, account_id, question_id)
            if row.state == "running":
                raise NotFinishedError("job: is still with the hospitals", retry_after_s=1)
            if row.state == "failed":
                raise QuestionFailedError("job: no hospital answered; the fee was given back")
            answers = [
                outcome.result
                for outcome in jobs.outcomes(connection, question_id)
                if outcome.state is JobState.DONE
            ]
        found: dict[str, Json] = {**parse_object(row.result), "answers": answers}
        return {**found, "receipt_sha256": row.receipt_sha256}

    def spent(self, connection: sa.Connection, study_sha256: str) -> Mapping[str, int]:
        """Rho that each hospital's answers under this study have cost, as far as the hub saw."""
        mine = sa.select(question_table.c.id).where(question_table.c.study_sha256 == study_sha256)
        texts = connection.execute(
            sa.select(jobs.job.c.result).where(
                jobs.job.c.question.in_(mine), jobs.job.c.state == JobState.DONE
            )
        ).scalars()
        answers = [
            CohortAnswer.model_validate(parse_object(text)["credentialSubject"]) for text in texts
        ]
        return query.spent_nano(answers)

    def _admit(self, connection: sa.Connection, asker: scope.Asker, ask: CohortAsk) -> _Admitted:
        row = studies.get(connection, ask.study_id, ask.version)
        study = row.study
        query.check(ask.query, study)
        # The cohort line is the proposer's: another account could otherwise spend it.
        if row.proposer_account != asker.account_id:
            raise scope.OutOfScopeError("study: only who proposed it may ask its hospitals")
        declaring = scope.Asker(
            account_id=asker.account_id,
            key_id=asker.key_id,
            study_id=asker.study_id or ask.study_id,
            purpose=asker.purpose or study.purpose,
        )
        now = self._now()
        declared = scope.admit(connection, declaring, study=study, purpose=study.purpose, now=now)
        if row.state not in _OPEN_STATES:
            raise studies.WrongStudyStateError(f"study: is {row.state}; its hospitals must approve")
        if ask.query.model_id is not None:
            model = self._models.found(connection, ask.query.model_id)
            if model.passport.study_id != study.study_id:
                raise scope.OutOfScopeError("query.model_id: was not made in this study")
            self._models.check_state(connection, ask.query.model_id)
        active = members.site_dids(connection)
        sites = [
            approved.site
            for approved in studies.approvals_of(connection, row.digest)
            if approved.site in active and approved.approval.expires > now
        ]
        if not sites:
            raise NobodyToAskError("study: no member hospital has a live approval of it")
        return _Admitted(row=row, study=study, purpose=declared.purpose, sites=sites)

    def _question(
        self, asker: scope.Asker, ask: CohortAsk, admitted: _Admitted, *, now: int
    ) -> dict[str, object]:
        return {
            "account_id": asker.account_id,
            "study_id": ask.study_id,
            "version": ask.version,
            "study_sha256": admitted.row.digest,
            "purpose": admitted.purpose,
            "query": jcs(ask.query.model_dump(mode="json", exclude_none=True)).decode(),
            "revenue": ask.query.model_id or ask.study_id,
            "fee_nano": pricing.fee_cohort(admitted.study),
            "hold": None,
            "state": "running",
            "at": now,
            "not_after": now + ANSWER_S,
        }

    def _set_aside(self, connection: sa.Connection, row: Mapping[str, Any]) -> None:
        if not row["fee_nano"]:
            return
        held = ledger.hold(
            connection,
            key=f"question:{row['id']}",
            leg=Leg(
                f"researcher:{row['account_id']}", f"revenue:{row['revenue']}", row["fee_nano"]
            ),
            expires=row["not_after"] + SETTLE_S,
            now=row["at"],
        )
        mine = question_table.c.id == row["id"]
        connection.execute(question_table.update().where(mine).values(hold=held.id))

    def _job(
        self, question_id: str, site: str, ask: CohortAsk, *, study_sha256: str, now: int
    ) -> NewJob:
        job_id = f"{question_id}.{site}"
        subject = CohortJob(
            job_id=job_id,
            site=site,
            study_sha256=study_sha256,
            study_id=ask.study_id,
            version=ask.version,
            query=ask.query,
            not_after=now + ANSWER_S,
        )
        return NewJob(
            id=job_id,
            site=site,
            kind="cohort",
            payload=issue(subject, self._hub_key, now),
            at=now,
            not_after=now + ANSWER_S,
            question=question_id,
        )


def _under_key(connection: sa.Connection, account_id: int, key: str) -> sa.Row[Any] | None:
    return connection.execute(
        sa.select(question_table).where(
            question_table.c.account_id == account_id, question_table.c.idempotency_key == key
        )
    ).one_or_none()


def _same(row: sa.Row[Any] | None, body_sha256: str) -> dict[str, object]:
    if row is None:
        raise NotFoundError("job: not found")
    if row.body_sha256 != body_sha256:
        raise IdempotencyMismatchError(
            "Idempotency-Key: used for another request; choose a new one"
        )
    return _view(row)


def _mine(connection: sa.Connection, account_id: int, question_id: str) -> sa.Row[Any]:
    row = connection.execute(
        sa.select(question_table).where(
            question_table.c.id == question_id, question_table.c.account_id == account_id
        )
    ).one_or_none()
    if row is None:
        raise NotFoundError("job: not found")
    return row


def _view(row: sa.Row[Any]) -> dict[str, object]:
    seen: dict[str, object] = {
        "id": row.id,
        "kind": "cohort",
        "state": row.state,
        "study_id": row.study_id,
        "version": row.version,
        "query": parse_object(row.query),
        "fee_nano": row.fee_nano,
        "at": row.at,
        "not_after": row.not_after,
    }
    if row.state == "failed":
        return {**seen, "code": row.code, **parse_object(row.result)}
    return {**seen, "receipt_sha256": row.receipt_sha256} if row.receipt_sha256 else seen
