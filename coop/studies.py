"""Studies and their approvals: what is asked, and which hospitals have signed under it.

A study is ready when as many hospitals as it names have signed. Its signed document never changes;
only its state does. An edit of this table cannot make a hospital train: each node compares an order
with the approval it signed itself.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from coop.canonical import INTEGER_MAX, Json, jcs, parse_object
from coop.db import insert_ignore, metadata
from coop.documents.envelope import open_document
from coop.documents.study import Approval, Study
from coop.errors import ConflictError, CoopError, ForbiddenError, Kind, NotFoundError
from coop.journal.store import Journal

_STUDY_ID: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
STUDIES_MAX: Final = 1000  # one page of the list; the catalogue of one cooperative


class StudyState(StrEnum):
    """Where a study stands."""

    PROPOSED = "proposed"
    READY = "ready"
    TRAINING = "training"
    RELEASED = "released"
    CANCELLED = "cancelled"


class StudyExpiredError(CoopError):
    """Nothing may be signed, trained or asked under an expired study."""

    code = "study.expired"
    kind = Kind.CONFLICT


class WrongStudyStateError(ConflictError):
    """The study is not in a state in which this can be done."""

    code = "study.wrong-state"


class StudyVersionError(ConflictError):
    """The version is not the next one of this study, or the study is somebody else's."""

    code = "study.wrong-version"


class ProposerTakenError(ConflictError):
    """The study names an organisation that another account speaks for, or none at all."""

    code = "study.proposer-taken"


class ApprovalMismatchError(ForbiddenError):
    """The approval is not this hospital's signature under exactly this study."""

    code = "study.approval-mismatch"


study_table = sa.Table(
    "study",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("proposer_account", sa.BigInteger, nullable=False),
)
approval_table = sa.Table(
    "approval",
    metadata,
    sa.Column("study_digest", sa.Text, primary_key=True),
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One version of a study as it stands."""

    id: str
    version: int
    digest: str
    document: dict[str, Json]
    state: StudyState
    proposer_account: int

    @property
    def study(self) -> Study:
        """What the document says (verified when it came in)."""
        return Study.model_validate(self.document["credentialSubject"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRow:
    """One hospital's signed approval."""

    site: str
    digest: str
    document: dict[str, Json]

    @property
    def approval(self) -> Approval:
        """What the document says (verified when it came in)."""
        return Approval.model_validate(self.document["credentialSubject"])


def _check_proposer(connection: sa.Connection, study: Study, account_id: int) -> None:
    """Patients name organisations in their policies: the first account to use a name keeps it."""
    plain = _plain(study.proposer)
    if _STUDY_ID.fullmatch(study.proposer.strip()):
        raise ProposerTakenError("study.proposer: has a study id's form; write it in full")
    taken = {_plain(row.study.proposer): row.proposer_account for row in every(connection)}
    if taken.get(plain, account_id) != account_id:
        raise ProposerTakenError("study.proposer: is the name of another account's organisation")


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def propose(
    connection: sa.Connection,
    journal: Journal,
    document: Mapping[str, Json],
    *,
    account_id: int,
    now: int,
) -> StudyRow:
    """Store and log a signed study. A repeat of the same document changes nothing.

    Steps: (1) the proposer's own key signed it; (2) it is not expired; (3) it is version 1 of a new
    study, or the next version by the same account and the same key, in a name that is nobody
    else's; (4) stored and logged at once.

    Raises:
        WrongDocumentError, BadSignatureError: (1) fails.
        StudyExpiredError: (2) fails.
        StudyVersionError, ProposerTakenError: (3) fails.
    """
    # (1) Any key may propose: what counts is that later versions carry the same one.
    opened = open_document(Study, document, issuers=None)
    study = opened.subject
    known = _by_digest(connection, opened.digest)
    if known is not None:
        if known.proposer_account != account_id:
            raise StudyVersionError("study: proposed by another account")
        return known
    # (2)
    if study.expires <= now:
        raise StudyExpiredError("study.expires: lies in the past")
    # (3)
    before = _newest(connection, study.study_id)
    due = before.version + 1 if before else 1
    if study.version != due:
        raise StudyVersionError(f"study.version: must be {due}, the next one of {study.study_id}")
    same = before is None or (
        before.proposer_account == account_id and before.document["issuer"] == opened.issuer
    )
    if not same:
        raise StudyVersionError("study.study_id: is taken by another researcher's study")
    _check_proposer(connection, study, account_id)
    # (4)
    row = StudyRow(
        id=study.study_id,
        version=study.version,
        digest=opened.digest,
        document=opened.document,
        state=StudyState.PROPOSED,
        proposer_account=account_id,
    )
    values = {
        "id": row.id,
        "version": row.version,
        "digest": row.digest,
        "document": jcs(row.document).decode(),
        "state": str(row.state),
        "proposer_account": account_id,
    }
    if not insert_ignore(connection, study_table, values):
        raise StudyVersionError("study.version: somebody proposed it a moment ago")
    journal.record(connection, Study.kind, opened.document)
    return row


def approve(
    connection: sa.Connection,
    journal: Journal,
    document: Mapping[str, Json],
    *,
    site: str,
    did: str,
    now: int,
) -> StudyRow:
    """Store and log a hospital's approval; the study is ready at its quorum.

    Steps: (1) this hospital signed it; (2) it names exactly this study; (3) study and approval
    are live; (4) it allows the budget; (5) stored and logged at once. A hospital may approve
    anew (its data changed) except while the study trains.

    Raises:
        WrongDocumentError, BadSignatureError: (1) fails.
        ApprovalMismatchError: (2) or (4) fails.
        StudyExpiredError, WrongStudyStateError: (3) fails.
    """
    # (1)
    opened = open_document(Approval, document, issuers=[did])
    approval = opened.subject
    # (2)
    row = _by_digest(connection, approval.study_sha256, lock=True)
    if row is None:
        raise ApprovalMismatchError("approval.study_sha256: names no study here")
    if (approval.study_id, approval.version) != (row.id, row.version) or approval.site != site:
        raise ApprovalMismatchError("approval: its study, version or site is not the one it signs")
    # (3)
    study = row.study
    if study.expires <= now or approval.expires <= now:
        raise StudyExpiredError("approval.expires: the study or the approval has expired")
    if approval.expires > study.expires:
        raise ApprovalMismatchError("approval.expires: is later than the study's own end")
    if row.state in {StudyState.TRAINING, StudyState.CANCELLED}:
        raise WrongStudyStateError(f"study: is {row.state}")
    # (4)
    if approval.epsilon_cap_micro < study.budget.epsilon_micro:
        raise ApprovalMismatchError("approval.epsilon_cap_micro: is below the study's budget")
    # (5)
    known = {approved.site: approved.digest for approved in approvals_of(connection, row.digest)}
    if known.get(site) == opened.digest:
        return row
    mine = (approval_table.c.study_digest == row.digest) & (approval_table.c.site == site)
    connection.execute(approval_table.delete().where(mine))
    connection.execute(
        approval_table.insert().values(
            study_digest=row.digest,
            site=site,
            digest=opened.digest,
            document=jcs(opened.document).decode(),
        )
    )
    if row.state is StudyState.PROPOSED and len(known.keys() | {site}) >= study.hospitals_quorum:
        row = move(connection, row.digest, to=StudyState.READY, since={StudyState.PROPOSED})
    journal.record(connection, Approval.kind, opened.document)
    return row


def get(connection: sa.Connection, study_id: str, version: int | None = None) -> StudyRow:
    """This version of the study; the newest by default.

    Raises:
        NotFoundError: There is none.
    """
    if version is None:
        row = _newest(connection, study_id)
    elif version > INTEGER_MAX:
        row = None  # no signed document can hold it, nor can the column
    else:
        chosen = (study_table.c.id == study_id) & (study_table.c.version == version)
        found = connection.execute(sa.select(study_table).where(chosen)).one_or_none()
        row = _study(found) if found else None
    if row is None:
        raise NotFoundError("study: not found")
    return row


def by_digest(connection: sa.Connection, digest: str) -> StudyRow:
    """The study whose signed document has this digest.

    Raises:
        NotFoundError: There is none.
    """
    row = _by_digest(connection, digest)
    if row is None:
        raise NotFoundError("study: not found")
    return row


def every(connection: sa.Connection) -> list[StudyRow]:
    """Every version of every study, in order of id and version."""
    query = (
        sa.select(study_table).order_by(study_table.c.id, study_table.c.version).limit(STUDIES_MAX)
    )
    return [_study(row) for row in connection.execute(query)]


def approvals_of(connection: sa.Connection, digest: str) -> list[ApprovalRow]:
    """The approvals of the study with this digest, in site order."""
    query = (
        sa.select(approval_table)
        .where(approval_table.c.study_digest == digest)
        .order_by(approval_table.c.site)
    )
    return [
        ApprovalRow(site=row.site, digest=row.digest, document=parse_object(row.document))
        for row in connection.execute(query)
    ]


def move(
    connection: sa.Connection, digest: str, *, to: StudyState, since: Collection[StudyState]
) -> StudyRow:
    """Change the study's state, if it is in one of `since`; a repeat changes nothing.

    Raises:
        WrongStudyStateError: It is in another state.
    """
    connection.execute(
        study_table.update()
        .where(study_table.c.digest == digest, study_table.c.state.in_([str(s) for s in since]))
        .values(state=str(to))
    )
    row = by_digest(connection, digest)
    if row.state is not to:
        raise WrongStudyStateError(f"study: is {row.state}, must be {' or '.join(sorted(since))}")
    return row


def _newest(connection: sa.Connection, study_id: str) -> StudyRow | None:
    query = (
        sa.select(study_table)
        .where(study_table.c.id == study_id)
        .order_by(study_table.c.version.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return _study(row) if row else None


def _by_digest(connection: sa.Connection, digest: str, *, lock: bool = False) -> StudyRow | None:
    query = sa.select(study_table).where(study_table.c.digest == digest)
    if lock:
        # Two last approvals at once must see each other, or the study would never be ready.
        query = query.with_for_update()
    row = connection.execute(query).one_or_none()
    return _study(row) if row else None


def _study(row: sa.Row[tuple[object, ...]]) -> StudyRow:
    return StudyRow(
        id=row.id,
        version=row.version,
        digest=row.digest,
        document=parse_object(row.document),
        state=StudyState(row.state),
        proposer_account=row.proposer_account,
    )
