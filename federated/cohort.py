"""Cohort questions: noised counts, tables and sums of risks, over patients who permit it.

The grammar is closed: conjunctions of conditions on fields the approved study lists. Everyone whose
row is looked at pays, whether she matches or not. The same question at the same data version is
answered from the stored numbers: that reads no row and costs nothing, so asking again averages
nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import sqlalchemy as sa

from consent.proofs.cohort import arrange
from coop.canonical import Json, document_digest, jcs, parse_object, sha256
from coop.documents.envelope import Opened, issue, open_document
from coop.documents.serving import CohortAnswer, CohortJob, CohortQuery, Predicate
from coop.documents.study import MICRO, Study
from coop.errors import ConflictError, InvalidInputError, Kind
from coop.features import columns
from federated import budget
from federated.accounting import sigma_micro_for
from federated.answers import (
    State,
    Stored,
    answer,
    attempts,
    discard,
    of_debit,
    store,
    stored,
)
from federated.approval import Approved, approved_study
from federated.evaluation import gaussian
from federated.mandate import OutOfTimeError, PurposeNotUnderstoodError
from federated.mirror import HeldLease, Mirror
from federated.models import Weights, check, weights_digest
from federated.overlay import refuse_if_forbidden
from federated.pace import even_pace
from federated.permits import consent_request, permitted, shown_by
from federated.records import all_pids, rows_of
from federated.round import (
    ATTEMPTS_MAX,
    Clock,
    TooManyAttemptsError,
    WithdrawnError,
    wall_clock,
)
from federated.site import Site, get_state
from federated.tables import tabulate
from federated.usable import risk_micro

_USE: Final = "infer-aggregate"
Rows = list[tuple[str, dict[str, object]]]


class BadQueryError(InvalidInputError):
    """The question is outside the grammar of the approved study."""

    code = "cohort.bad-query"
    kind = Kind.UNPROCESSABLE


class ChangedJobError(ConflictError):
    """A job of this id was answered for another question."""

    code = "cohort.changed-job"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A question this hospital has found to be within its own approval."""

    job: Opened[CohortJob]
    approved: Approved
    weights: Weights | None
    data_version: int
    input_sha256: str
    """Of study, question, model weights and data version: what makes two jobs the same draw."""
    job_sha256: str
    """Of the job's content, however often it was signed."""

    @property
    def query(self) -> CohortQuery:
        return self.job.subject.query

    @property
    def study(self) -> Study:
        return self.approved.study

    @property
    def key(self) -> str:
        return f"cohort:{self.input_sha256}"

    @property
    def rho_part_nano(self) -> int:
        """What each released number costs."""
        return self.query.rho_nano // (2 if self.query.release == "count-and-mean-risk" else 1)


@even_pace()
def answer_cohort(
    site: Site,
    mirror: Mirror,
    job: Mapping[str, Json],
    *,
    weights: Weights | None = None,
    now: Clock = wall_clock,
) -> dict[str, Json]:
    """The signed answer to one cohort job; the same job always gets the same bytes.

    Guarantees: as in `federated.round`: consents verified here, debit before noise, nothing fresh
    released after a withdrawal. A stored answer is replayed without reading any row.

    Args:
        site: This hospital.
        mirror: Where leases come from.
        job: The signed CohortJob.
        weights: Of the model the question names; the caller checked them against its passport.
        now: UTC seconds, read at each step.

    Raises:
        BadQueryError: Outside the study's grammar, or the model's weights are missing.
        NotApprovedError, OutOfTimeError, PurposeNotUnderstoodError: Not within the approval.
        HouseRuleError: This hospital's own rules forbid it.
        BudgetExhaustedError: The study's cohort line is spent here.
        WithdrawnError: A patient withdrew before the answer could leave.
        ChangedJobError: The job's id was used for another question.
    """
    # (1) The job against this site's own approval and the pinned hub.
    task = _task(site, job, weights, now())
    # (2) What is stored is replayed: the job's own answer, or the same question's numbers.
    with site.database.unit_of_work() as connection:
        replayed = _replay(connection, site, task, now())
    if replayed is not None:
        return replayed
    with site.database.reading() as connection:
        draw = _known(connection, task)
    if draw is None or draw.state is State.GRANTED:
        # (3) Consents this node verified itself; the cohort, its debit and the grant.
        lease = mirror.lease()
        draw = _grant(site, task, lease, now())
        # Debited, noise not yet drawn: a crash here loses budget, never privacy.
        # (4) Compute and store.
        draw = _compute(site, task, draw, lease, now())
    # (5) A fresh lease must still cover everyone who permitted it, as in `federated.round`.
    asked_at = now()
    fresh = mirror.lease()
    _refuse_if_withdrawn(site, task, draw, fresh, asked_at)
    # (6) Sign and send.
    with site.database.unit_of_work() as connection:
        budget.lock(connection)
        fresh.check()  # the lock may have taken longer than the lease lasts
        kept = stored(connection, draw.key)
        if kept is None or kept.state is not State.STORED:
            raise WithdrawnError("cohort: a consent changed while it was answered; ask again")
        return _release(connection, site, task, kept, asked_at)


def matches(row: Mapping[str, object], where: list[Predicate]) -> bool:
    """Whether every condition holds of a row; a missing or odd value fulfils none."""
    return all(_holds(row.get(condition.field), condition) for condition in where)


def _holds(value: object, condition: Predicate) -> bool:
    if condition.operator == "is":
        return isinstance(value, str) and value == condition.text
    if isinstance(value, bool) or not isinstance(value, int | float) or condition.number is None:
        return False
    if condition.operator == "at-least":
        return value >= condition.number
    return value < condition.number


def _task(site: Site, job: Mapping[str, Json], weights: Weights | None, at: int) -> _Task:
    opened = open_document(CohortJob, job, issuers={site.trust.hub})
    asked = opened.subject
    with site.database.reading() as connection:
        approved = approved_study(connection, site, asked.study_sha256)
        version = int(get_state(connection, "data_version") or 0)
    approved.check_in_force(at)
    study = approved.study
    if (asked.site, asked.study_id, asked.version) != (site.name, study.study_id, study.version):
        raise BadQueryError("job: for another hospital or study")
    if at >= asked.not_after:
        raise OutOfTimeError("job: its time is over")
    if _USE not in study.uses:
        raise PurposeNotUnderstoodError(f"uses: the study does not ask for {_USE}")
    refuse_if_forbidden(site, study, _USE, at)
    used = _check_query(asked.query, study, weights)
    named = {
        "study_sha256": approved.study_sha256,
        "query": asked.query.model_dump(mode="json", exclude_none=True),
        "weights_sha256": "" if used is None else weights_digest(used),
        "data_version": version,
    }
    return _Task(
        job=opened,
        approved=approved,
        weights=used,
        data_version=version,
        input_sha256=sha256(jcs(named)).hex(),
        job_sha256=sha256(jcs(asked.model_dump(mode="json", exclude_none=True))).hex(),
    )


def _check_query(query: CohortQuery, study: Study, weights: Weights | None) -> Weights | None:
    """The weights to use, once every part of the question is found in the study's grammar."""
    for condition in query.where:
        number = condition.operator != "is"
        fields = study.cohort.number_fields if number else study.cohort.category_fields
        if condition.field not in fields:
            raise BadQueryError(f"where.{condition.field}: the study offers no such condition")
        if (condition.number is None) == number or (condition.text is None) != number:
            raise BadQueryError(f"where.{condition.field}: needs a number or a text, not the other")
    if query.rho_nano < study.budget.cohort_question_min_nano:
        raise BadQueryError("rho_nano: less than a thousandth of the study's cohort line")
    if problem := query.table_problem(study.cohort):
        raise BadQueryError(problem)
    if query.release != "count-and-mean-risk":
        if query.model_id is not None:
            raise BadQueryError("model_id: only a mean risk needs a model")
        return None
    if query.model_id is None or weights is None:
        raise BadQueryError("model_id: a mean risk needs a released model")
    return check(weights, len(columns(study.schema_)))


def _replay(connection: sa.Connection, site: Site, task: _Task, at: int) -> dict[str, Json] | None:
    """(2): the job's answer, or a new document over numbers that left before."""
    budget.lock(connection)
    job = stored(connection, f"job:{task.job.subject.job_id}")
    if job is not None and job.document is not None:
        if job.input_sha256 != task.job_sha256:
            raise ChangedJobError("job_id: answered before for another question")
        return parse_object(job.document)
    draw = _known(connection, task)
    if draw is None or not of_debit(connection, draw.debit_sequence):
        return None
    return _release(connection, site, task, draw, at)


def _known(connection: sa.Connection, task: _Task) -> Stored | None:
    tried = attempts(connection, task.key)
    living = [draw for draw in tried if draw.state is not State.DISCARDED]
    return living[-1] if living else None


def _grant(site: Site, task: _Task, lease: HeldLease, at: int) -> Stored:
    with site.database.reading() as connection:
        pids = all_pids(connection, task.study.extract)
        willing = permitted(lease, pids, consent_request(task.study, _USE, at))
    with site.database.unit_of_work() as connection:
        budget.lock(connection)
        known = _known(connection, task)
        if known is not None:
            return known
        attempt = len(attempts(connection, task.key)) + 1
        if attempt > ATTEMPTS_MAX:
            raise TooManyAttemptsError("cohort: tried too often")
        cohort = budget.afford(connection, willing, task.query.rho_nano)
        lease.check()
        draw = budget.Draw(
            key=f"{task.key}:{attempt}",
            input_sha256=task.input_sha256,
            lease_sha256=lease.digest,
            phase="cohort",
            attempt=attempt,
            rho_nano=task.query.rho_nano,
            sigma_micro=sigma_micro_for(task.rho_part_nano),
            places=max(len(lease.standings), 1),
            job_id=task.job.subject.job_id,
        )
        lines = task.approved.lines
        shown = shown_by(lease, willing)
        return budget.grant(connection, draw, cohort, lines, permits=shown, now=at)


def _compute(site: Site, task: _Task, draw: Stored, lease: HeldLease, at: int) -> Stored:
    if draw.state is not State.GRANTED:
        return draw
    with site.database.reading() as connection:
        if not _covered(connection, task, draw, lease, at):
            _discard(site, draw)
        members = budget.cohort_of(connection, draw.debit_sequence)
        rows = rows_of(connection, members, task.study.extract)
    lease.check()
    numbers = _numbers(rows, task, site.name)
    with site.database.unit_of_work() as connection:
        return store(connection, draw.key, jcs(numbers))


def _numbers(rows: Rows, task: _Task, site: str) -> dict[str, Json]:
    """The noised integers: patients, and millionths of risk."""
    chosen = [row for _, row in rows if matches(row, task.query.where)]
    cost = task.rho_part_nano
    sigma = sigma_micro_for(cost)
    if task.query.cells:
        noised: list[Json] = list(gaussian(tabulate(chosen, task.query), sigma, cost))
        return {"cells": noised}
    if task.weights is None:
        (count,) = gaussian([len(chosen)], sigma, cost)
        return {"count": count}
    risks = [risk_micro(row, task.weights, task.study, site) for row in chosen]
    known = [risk for risk in risks if risk is not None]
    (count,) = gaussian([len(known)], sigma, cost)
    (total,) = gaussian([sum(known)], sigma, cost, sensitivity=MICRO)
    return {"count": count, "risk_sum_micro": total}


def _refuse_if_withdrawn(site: Site, task: _Task, draw: Stored, fresh: HeldLease, at: int) -> None:
    with site.database.reading() as connection:
        approved_study(connection, site, task.approved.study_sha256).check_in_force(at)
        refuse_if_forbidden(site, task.study, _USE, at)
        fresh.check()
        covered = _covered(connection, task, draw, fresh, at)
    if not covered:
        _discard(site, draw)


def _covered(
    connection: sa.Connection, task: _Task, draw: Stored, lease: HeldLease, at: int
) -> bool:
    """Whether everyone who permitted the draw when it was granted still does."""
    covered = budget.permitted_by(connection, draw.debit_sequence)
    return permitted(lease, covered, consent_request(task.study, _USE, at)) == covered


def _discard(site: Site, draw: Stored) -> NoReturn:
    with site.database.unit_of_work() as connection:
        discard(connection, draw.key)
    raise WithdrawnError("cohort: a consent changed while it was answered; ask again")


def _release(
    connection: sa.Connection, site: Site, task: _Task, draw: Stored, at: int
) -> dict[str, Json]:
    """The signed document of one job over the draw's numbers, kept before it leaves."""
    job = stored(connection, f"job:{task.job.subject.job_id}")
    if job is not None and job.document is not None:
        return parse_object(job.document)
    numbers = parse_object(draw.body or b"")
    members = budget.cohort_of(connection, draw.debit_sequence)
    committed = arrange(members, draw.places, bytes.fromhex(draw.seed))
    sigma = sigma_micro_for(task.rho_part_nano)
    risk = numbers.get("risk_sum_micro")
    table = numbers.get("cells")
    cells = [int(str(cell)) for cell in table] if isinstance(table, list) else None
    count = int(str(numbers["count"])) if cells is None else sum(cells)
    subject = CohortAnswer(
        job_id=task.job.subject.job_id,
        job_sha256=task.job.digest,
        site=site.name,
        lease_sha256=draw.lease_sha256,
        count_noised=count,
        risk_sum_noised_micro=None if risk is None else int(str(risk)),
        cells_noised=cells,
        # Of a table it is the noise of each cell.
        sigma_count_micro=sigma,
        sigma_risk_micro=None if risk is None else sigma,
        rho_nano=task.query.rho_nano,
        debit_sequence=draw.debit_sequence,
        data_version=task.data_version,
        cohort_commitment=committed.commitment,
    )
    document = issue(subject, site.key, at)
    first = of_debit(connection, draw.debit_sequence)
    connection.execute(
        sa.insert(answer).values(
            key=f"job:{task.job.subject.job_id}",
            input_sha256=task.job_sha256,
            debit_sequence=draw.debit_sequence,
            seed=draw.seed,
            places=draw.places,
            lease_sha256=draw.lease_sha256,
            state=State.STORED,
            document=jcs(document).decode(),
            document_sha256=document_digest(document),
            # A replay reads no row: its use is the one of the first release.
            at=min([at, *(earlier.at for earlier in first)]),
        )
    )
    return document
