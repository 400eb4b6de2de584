"""Studies: proposed by researchers, approved by hospitals, open to everybody's eyes."""

from functools import lru_cache
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query

from consent.duo import Reading, asserted
from coop import members, studies
from coop.documents.study import Budget, Schedule
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import NotFoundError
from coop.hub.bodies import Body, DocumentBody
from coop.journal.store import Journal
from coop.studies import StudyRow, StudyState
from federated.accounting import ImpossiblePlanError, price_of

StudyId = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Version = Annotated[int | None, Query(ge=1, le=2**53 - 1, description="The newest by default.")]
_OPEN: Final = frozenset({StudyState.PROPOSED, StudyState.READY})


class ApprovalAnswer(Body):
    """One hospital's signature."""

    site: str
    digest: str
    document: dict[str, Any]


class EpsilonAnswer(Body):
    """What the study costs a patient at most, in millionths, at the study's own delta."""

    training_and_evaluation_micro: int
    cohort_questions_micro: int
    together_micro: int
    """Both composed; a hospital's cap holds this."""


class StudyAnswer(Body):
    """A study as it stands."""

    study_id: str
    version: int
    state: str
    digest: str
    title: str
    quorum: int
    reading: Reading
    """Whether a machine understands what it is for; `people` waits for an access committee."""
    reason: str | None
    """Why it is not clear: a stable code."""
    epsilon: EpsilonAnswer | None
    """None where its budget cannot be split as it says: then no hospital signs it."""
    document: dict[str, Any]
    approvals: list[ApprovalAnswer]


class StudiesAnswer(Body):
    """Every study."""

    studies: list[StudyAnswer]


class ApprovalsAnswer(Body):
    """Who has signed."""

    approvals: list[ApprovalAnswer]


def routes(doors: Doors, journal: Journal) -> APIRouter:
    """The studies' routes."""
    router = APIRouter(tags=["studies"])

    @doors.route(router, "POST", "/v1/studies", Principal.RESEARCHER, status_code=201)
    def propose(caller: CallerDep, body: DocumentBody) -> StudyAnswer:
        """Propose a study signed with the researcher's own key; a repeat changes nothing."""
        with doors.database.unit_of_work() as connection:
            row = studies.propose(
                connection, journal, body.document, account_id=caller.account, now=doors.now()
            )
            return _answer(row, studies.approvals_of(connection, row.digest))

    @doors.route(router, "GET", "/v1/studies", Principal.PUBLIC)
    def listed(
        reading: Annotated[
            Reading | None, Query(description="`people`: the access committee's queue.")
        ] = None,
    ) -> StudiesAnswer:
        """Every version of every study."""
        with doors.database.reading() as connection:
            every = [
                _answer(row, studies.approvals_of(connection, row.digest))
                for row in studies.every(connection)
            ]
        return StudiesAnswer(
            studies=[answer for answer in every if reading in {None, answer.reading}]
        )

    @doors.route(router, "GET", "/v1/studies/{study_id}", Principal.PUBLIC)
    def shown(study_id: StudyId, version: Version = None) -> StudyAnswer:
        """One study: its signed document, its state, and who has approved it."""
        with doors.database.reading() as connection:
            row = studies.get(connection, study_id, version)
            return _answer(row, studies.approvals_of(connection, row.digest))

    @doors.route(router, "GET", "/v1/studies/{study_id}/approvals", Principal.PUBLIC)
    def approvals(study_id: StudyId, version: Version = None) -> ApprovalsAnswer:
        """The hospitals' signed approvals."""
        with doors.database.reading() as connection:
            row = studies.get(connection, study_id, version)
            found = studies.approvals_of(connection, row.digest)
        return ApprovalsAnswer(approvals=[_approval(approval) for approval in found])

    @doors.route(
        router, "POST", "/v1/studies/{study_id}/approvals", Principal.SITE, status_code=201
    )
    def approve(study_id: StudyId, caller: CallerDep, body: DocumentBody) -> StudyAnswer:
        """Add the hospital's own signed approval; at the quorum the study is ready."""
        with doors.database.unit_of_work() as connection:
            row = studies.approve(
                connection,
                journal,
                body.document,
                site=caller.subject,
                did=members.site_dids(connection)[caller.subject],
                now=doors.now(),
            )
            if row.id != study_id:
                raise studies.ApprovalMismatchError(
                    "approval.study_id: is not the study of the path"
                )
            return _answer(row, studies.approvals_of(connection, row.digest))

    @doors.route(router, "DELETE", "/v1/studies/{study_id}", Principal.RESEARCHER, Principal.STAFF)
    def cancel(study_id: StudyId, caller: CallerDep, version: Version = None) -> StudyAnswer:
        """Cancel a study that is not training or released; its documents stay in the log."""
        with doors.database.unit_of_work() as connection:
            row = studies.get(connection, study_id, version)
            _may_cancel(caller, row)
            row = studies.move(connection, row.digest, to=StudyState.CANCELLED, since=_OPEN)
            return _answer(row, studies.approvals_of(connection, row.digest))

    return router


def _may_cancel(caller: Caller, row: StudyRow) -> None:
    proposer = caller.principal is Principal.RESEARCHER and caller.account == row.proposer_account
    if not proposer and not caller.is_coop_staff:
        raise NotFoundError("study: not found among yours")


def _answer(row: StudyRow, approvals: list[studies.ApprovalRow]) -> StudyAnswer:
    study = row.study
    read = asserted(study.purpose, study.disease, tuple(study.further_purposes))
    return StudyAnswer(
        study_id=row.id,
        version=row.version,
        state=str(row.state),
        digest=row.digest,
        title=study.title,
        quorum=study.hospitals_quorum,
        reading=read.reading,
        reason=read.reason,
        epsilon=_epsilon(study.budget, study.recipe.schedule),
        document=row.document,
        approvals=[_approval(approval) for approval in approvals],
    )


@lru_cache(maxsize=1024)
def _epsilon(budget: Budget, schedule: Schedule) -> EpsilonAnswer | None:
    try:
        price = price_of(budget, schedule)
    except ImpossiblePlanError:
        return None
    return EpsilonAnswer(
        training_and_evaluation_micro=price.plan_micro,
        cohort_questions_micro=price.cohort_micro,
        together_micro=price.together_micro,
    )


def _approval(row: studies.ApprovalRow) -> ApprovalAnswer:
    return ApprovalAnswer(site=row.site, digest=row.digest, document=row.document)
