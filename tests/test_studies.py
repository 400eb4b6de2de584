"""Studies: only the right signature proposes, approves, and makes ready."""

import threading
from pathlib import Path

import pytest

from coop import studies
from coop.db import Database
from coop.documents.envelope import WrongDocumentError, issue
from coop.documents.study import Approval, Study
from coop.errors import CoopError
from coop.journal.audit import audit
from coop.journal.store import Journal
from coop.keys import BadSignatureError, SigningKey
from coop.studies import ApprovalMismatchError, StudyExpiredError, StudyState, StudyVersionError
from coop.studyfile import load_study

NOW = 1_800_000_000
EXPIRES = NOW + 86_400
HEART = load_study(Path(__file__).parent.parent / "examples" / "heart.yaml")
RESEARCHER, OTHER, CLEVELAND, BUDAPEST = (SigningKey(bytes([n]) * 32) for n in range(1, 5))


@pytest.fixture
def journal(database: Database) -> Journal:
    return Journal(database, SigningKey(bytes([9]) * 32), "test.example/log", lambda: NOW)


def study(**changes: object) -> Study:
    fields = {**HEART, "version": 1, "expires": EXPIRES, "hospitals_quorum": 2, **changes}
    return Study.model_validate(fields)


def proposed(
    database: Database,
    journal: Journal,
    subject: Study,
    *,
    key: SigningKey = RESEARCHER,
    account: int = 1,
) -> studies.StudyRow:
    with database.unit_of_work() as connection:
        document = issue(subject, key, NOW)
        return studies.propose(connection, journal, document, account_id=account, now=NOW)


def approval(row: studies.StudyRow, for_site: str, **changes: object) -> Approval:
    fields: dict = {
        "study_sha256": row.digest,
        "study_id": row.id,
        "version": row.version,
        "site": for_site,
        "data_version": 1,
        "epsilon_cap_micro": 3_000_000,
        "software": "health-data-coop 0.1.0",
        "fab_sha256": "0" * 64,
        "witnesses": {},
        "expires": EXPIRES,
        **changes,
    }
    return Approval.model_validate(fields)


def approved(
    database: Database,
    journal: Journal,
    subject: Approval,
    key: SigningKey,
    *,
    site: str | None = None,
    at: int = NOW,
) -> studies.StudyRow:
    with database.unit_of_work() as connection:
        return studies.approve(
            connection,
            journal,
            issue(subject, key, at),
            site=site or subject.site,
            did=key.did,
            now=at,
        )


def test_a_study_is_ready_at_its_quorum_and_not_before(database: Database, journal: Journal):
    row = proposed(database, journal, study())
    assert row.state is StudyState.PROPOSED
    once = approved(database, journal, approval(row, "cleveland"), CLEVELAND)
    again = approved(database, journal, approval(row, "cleveland"), CLEVELAND)
    assert (once.state, again.state) == (StudyState.PROPOSED, StudyState.PROPOSED)
    ready = approved(database, journal, approval(row, "budapest"), BUDAPEST)
    assert ready.state is StudyState.READY
    with database.reading() as connection:
        sites = [found.site for found in studies.approvals_of(connection, row.digest)]
        assert sites == ["budapest", "cleveland"]
        # Approving anew is a document of its own, and every document is logged.
        assert audit(connection, journal).kinds == {"study": 1, "approval": 3}


def test_two_last_approvals_at_once_make_the_study_ready(database: Database, journal: Journal):
    row = proposed(database, journal, study())
    start = threading.Barrier(2)

    def run(site: str, key: SigningKey) -> None:
        start.wait()
        approved(database, journal, approval(row, site), key)

    threads = [
        threading.Thread(target=run, args=pair)
        for pair in (("cleveland", CLEVELAND), ("budapest", BUDAPEST))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert studies.get(connection, row.id).state is StudyState.READY


def test_the_same_document_twice_is_one_study(database: Database, journal: Journal):
    document = issue(study(), RESEARCHER, NOW)
    for _ in range(2):
        with database.unit_of_work() as connection:
            studies.propose(connection, journal, document, account_id=1, now=NOW)
    with database.reading() as connection:
        assert len(studies.every(connection)) == 1
        assert journal.size(connection) == 1


def test_nobody_takes_over_another_researchers_study(database: Database, journal: Journal):
    proposed(database, journal, study())
    for key, account in ((OTHER, 1), (RESEARCHER, 2), (OTHER, 2)):
        with pytest.raises(StudyVersionError):
            proposed(database, journal, study(version=2), key=key, account=account)
    for version in (1, 3):
        with pytest.raises(StudyVersionError):
            proposed(database, journal, study(version=version, title="Changed"))
    assert proposed(database, journal, study(version=2)).version == 2


def test_nobody_asks_in_the_name_of_another_accounts_organisation(
    database: Database, journal: Journal
):
    proposed(database, journal, study(study_id="first", proposer="Charité  Berlin"))
    for name in ("charité berlin", "CHARITÉ BERLIN", "\uff23harité Berlin"):
        with pytest.raises(studies.ProposerTakenError):
            proposed(database, journal, study(study_id="second", proposer=name), account=2)
    proposed(database, journal, study(study_id="third", proposer="Charité Berlin"))
    # A patient's permission for the study of this id must not be an organisation's.
    with pytest.raises(studies.ProposerTakenError):
        proposed(database, journal, study(study_id="fourth", proposer="heart-2026"), account=2)


def test_an_expired_study_cannot_be_proposed_or_approved(database: Database, journal: Journal):
    with pytest.raises(StudyExpiredError):
        proposed(database, journal, study(expires=NOW))
    row = proposed(database, journal, study())
    with pytest.raises(StudyExpiredError):
        approved(database, journal, approval(row, "cleveland"), CLEVELAND, at=EXPIRES)
    with pytest.raises(StudyExpiredError):
        approved(database, journal, approval(row, "cleveland", expires=NOW), CLEVELAND)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"study_sha256": "1" * 64}, ApprovalMismatchError),
        ({"study_id": "other"}, ApprovalMismatchError),
        ({"version": 2}, ApprovalMismatchError),
        ({"site": "budapest"}, ApprovalMismatchError),
        ({"expires": EXPIRES + 1}, ApprovalMismatchError),
        ({"epsilon_cap_micro": 1}, ApprovalMismatchError),
    ],
)
def test_an_approval_is_for_exactly_this_study(
    database: Database, journal: Journal, changes: dict, error: type[CoopError]
):
    row = proposed(database, journal, study())
    with pytest.raises(error):
        approved(
            database, journal, approval(row, "cleveland", **changes), CLEVELAND, site="cleveland"
        )
    with database.reading() as connection:
        assert studies.approvals_of(connection, row.digest) == []
        assert journal.size(connection) == 1


def test_an_approval_needs_the_hospitals_own_signature(database: Database, journal: Journal):
    row = proposed(database, journal, study())
    genuine = issue(approval(row, "cleveland"), CLEVELAND, NOW)
    edited = {**genuine, "credentialSubject": {**genuine["credentialSubject"], "version": 1 + 1}}
    cases = [
        (issue(approval(row, "cleveland"), BUDAPEST, NOW), WrongDocumentError),
        (edited, BadSignatureError),
        (issue(study(), CLEVELAND, NOW), WrongDocumentError),
    ]
    for document, error in cases:
        with pytest.raises(error), database.unit_of_work() as connection:
            studies.approve(
                connection, journal, document, site="cleveland", did=CLEVELAND.did, now=NOW
            )


def test_a_hospital_may_approve_anew_but_not_while_the_study_trains(
    database: Database, journal: Journal
):
    row = proposed(database, journal, study(hospitals_quorum=1))
    approved(database, journal, approval(row, "cleveland"), CLEVELAND)
    approved(database, journal, approval(row, "cleveland", data_version=2), CLEVELAND)
    with database.unit_of_work() as connection:
        kept = studies.approvals_of(connection, row.digest)
        assert [one.approval.data_version for one in kept] == [2]
        studies.move(connection, row.digest, to=StudyState.TRAINING, since={StudyState.READY})
    with pytest.raises(studies.WrongStudyStateError):
        approved(database, journal, approval(row, "cleveland", data_version=3), CLEVELAND)


def test_a_state_is_left_only_from_where_it_may_be_left(database: Database, journal: Journal):
    row = proposed(database, journal, study())
    with pytest.raises(studies.WrongStudyStateError), database.unit_of_work() as connection:
        studies.move(connection, row.digest, to=StudyState.TRAINING, since={StudyState.READY})
    with database.unit_of_work() as connection:
        studies.move(connection, row.digest, to=StudyState.CANCELLED, since={StudyState.PROPOSED})
    with pytest.raises(studies.WrongStudyStateError):
        approved(database, journal, approval(row, "cleveland"), CLEVELAND)
