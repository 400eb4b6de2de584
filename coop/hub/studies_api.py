"""Studies: proposed by researchers, approved by hospitals, open to everybody's eyes."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query

from coop import members, studies
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import NotFoundError
from coop.hub.bodies import Body, DocumentBody
from coop.journal.store import Journal
from coop.studies import StudyRow, StudyState

StudyId = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Version = Annotated[int | None, Query(ge=1, le=2**53 - 1, description="The newest by default.")]
_OPEN: Final = frozenset({StudyState.PROPOSED, StudyState.READY})


class ApprovalAnswer(Body):
    """One hospital's signature."""

    site: str
    digest: str
    document: dict[str, Any]


class StudyAnswer(Body):
    """A study as it stands."""

    study_id: str
    version: int
    state: str
    digest: str
    title: str
    quorum: int
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
    def listed() -> StudiesAnswer:
        """Every version of every study."""
        with doors.database.reading() as connection:
            return StudiesAnswer(
                studies=[
                    _answer(row, studies.approvals_of(connection, row.digest))
                    for row in studies.every(connection)
                ]
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
    return StudyAnswer(
        study_id=row.id,
        version=row.version,
        state=str(row.state),
        digest=row.digest,
        title=study.title,
        quorum=study.hospitals_quorum,
        document=row.document,
        approvals=[_approval(approval) for approval in approvals],
    )


def _approval(row: studies.ApprovalRow) -> ApprovalAnswer:
    return ApprovalAnswer(site=row.site, digest=row.digest, document=row.document)
