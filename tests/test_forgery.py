"""A hub with every key and its database, against real hospitals: what it forges trains no row.

The processes are the real ones; the forger writes into the running hub's database and signs with
the hub's and the log's own keys. Whatever it adds, the hospitals refuse it with a code, debit
nothing for it, and the victim's record is in no cohort. Nothing here is undone: a hospital whose
hub lied about its patients answers no round until somebody has looked.
"""

import time
from collections.abc import Iterator

import orjson
import pytest
import sqlalchemy as sa
from real_house import Faulty, accepted, open_faulty

from consent.policy import preset
from consent.store import consent_head, site_document
from coop import members, studies
from coop.canonical import jcs
from coop.demo import learning
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import issue
from coop.documents.study import Approval
from coop.hub.folder import HubFolder
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.studies import StudyState
from coop.studyfile import load_study
from federated.approval import software_version
from federated.budget import debit_pid
from federated.fab import fab_hash
from federated.orders import make_order
from federated.rounds import Rounds

pytestmark = [pytest.mark.flow, pytest.mark.timeout(900)]

# Positions in a hospital's file, by what their patients chose (coop.demo.people).
WILLING = 0
REFUSED_ALL = 11
NEVER_ENROLLED = -1


def clock() -> int:
    return int(time.time())


class Forger:
    """What somebody with the hub's folder and database can do."""

    def __init__(self, faulty: Faulty) -> None:
        self.faulty = faulty
        self.folder = HubFolder.open(faulty.house.folder / "hub")
        self.database = faulty.hub_database()
        self.journal = Journal(self.database, self.folder.log_key, self.folder.origin, clock)
        self.rounds = Rounds(self.database, self.journal, self.folder.hub_key, now=clock)

    def add(self, kind: str, subject: Enrolment | Consent, signer: SigningKey) -> None:
        """Log an enrolment or a consent and serve it to the hospital as the registry would."""
        document = issue(subject, signer, clock())
        with self.database.unit_of_work() as connection:
            place = self.journal.record(connection, kind, document)
            row = {"site": subject.site, "pid": subject.pid, "digest": place.digest}
            connection.execute(site_document.insert().values(log_index=place.index, **row))
            if isinstance(subject, Consent):
                connection.execute(consent_head.delete().where(consent_head.c.pid == subject.pid))
                connection.execute(
                    consent_head.insert().values(
                        **row,
                        state="active",
                        sequence=subject.sequence,
                        log_index=place.index,
                        widened_index=place.index,
                        policy=None,
                    )
                )

    def head(self, pid: str) -> str:
        with self.database.reading() as connection:
            query = sa.select(consent_head.c.digest).where(consent_head.c.pid == pid)
            return connection.execute(query).scalar_one()

    def approve(self, study_sha256: str) -> None:
        """Insert an approval of every hospital, signed by the only keys at hand: the hub's."""
        with self.database.unit_of_work() as connection:
            study = studies.by_digest(connection, study_sha256)
            dids = members.site_dids(connection)
            for site in dids:
                subject = Approval(
                    study_sha256=study_sha256,
                    study_id=study.id,
                    version=study.version,
                    site=site,
                    data_version=1,
                    epsilon_cap_micro=study.study.budget.epsilon_micro,
                    software=software_version(),
                    fab_sha256=fab_hash(),
                    witnesses={name: did for name, did in dids.items() if name != site},
                    expires=study.study.expires,
                )
                document = issue(subject, self.folder.hub_key, clock())
                place = self.journal.record(connection, Approval.kind, document)
                connection.execute(
                    studies.approval_table.insert().values(
                        study_digest=study_sha256,
                        site=site,
                        digest=place.digest,
                        document=jcs(document).decode(),
                    )
                )
            studies.move(connection, study_sha256, to=StudyState.READY, since={StudyState.PROPOSED})

    def order_with_half_the_noise(self, study_sha256: str) -> str:
        """Queue an order that the real hub key signed; its digest."""
        with self.database.unit_of_work() as connection:
            order = make_order(
                studies.by_digest(connection, study_sha256),
                studies.approvals_of(connection, study_sha256),
                members.site_dids(connection),
                now=clock(),
            )
            halved = order.model_copy(
                update={"training_sigma_micro": order.training_sigma_micro // 2}
            )
            self.rounds._insert(connection, halved)
        with self.database.reading() as connection:
            return self.rounds.runs(connection)[0].order_sha256


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    opened = open_faulty(tmp_path_factory.mktemp("forgery") / "house")
    try:
        yield opened
    finally:
        opened.house.close()


@pytest.fixture
def forger(faulty: Faulty) -> Iterator[Forger]:
    made = Forger(faulty)
    yield made
    made.database.close()


def propose(faulty: Faulty, *, approved: bool) -> tuple[dict, str]:
    """A new version of the study, two rounds, for which two hospitals are enough; its digest."""
    faulty.versions += 1
    fields = load_study(learning.study_file())
    fields["version"], fields["hospitals_quorum"] = faulty.versions, 2
    fields["recipe"] = {**fields["recipe"], "rounds": 2, "average_last": 2}
    digest = learning.propose(faulty.house, fields)
    if approved:
        learning.approve_everywhere(faulty.house, fields)
    return fields, digest


def order(faulty: Faulty, fields: dict) -> str:
    body = {"study_id": fields["study_id"], "version": fields["version"]}
    return faulty.house.researcher_client.post("/v1/rounds", body)["run"]["order_sha256"]


def pid_at(faulty: Faulty, name: str, position: int) -> str:
    site = faulty.site(name)
    pid = site.pid_of(faulty.house.hospitals[name].records[position])
    site.close()
    return pid


def times_used(faulty: Faulty, name: str, pid: str) -> int:
    site = faulty.site(name)
    with site.database.reading() as connection:
        query = sa.select(sa.func.count()).where(debit_pid.c.pid == pid)
        used = connection.execute(query).scalar_one()
    site.close()
    return used


def refusals(faulty: Faulty, name: str) -> list[str]:
    """The codes of the tasks that a hospital refused, by its own log."""
    child = faulty.house.hospitals[name].child
    assert child is not None
    said = [line for line in child.log.read_text().splitlines() if '"task refused"' in line]
    return [orjson.loads(line)["code"] for line in said]


def test_grants_and_enrolments_forged_with_every_key_of_the_hub_train_no_row(
    faulty: Faulty, forger: Forger
):
    unwilling = pid_at(faulty, "budapest", REFUSED_ALL)
    amended = Consent(
        pid=unwilling,
        site="budapest",
        domain="research",
        sequence=2,
        previous=forger.head(unwilling),
        event="amend",
        policy=preset("all-research"),
    )
    forger.add("consent", amended, forger.folder.hub_key)
    stranger = pid_at(faulty, "zurich", NEVER_ENROLLED)
    thief = SigningKey.generate()
    enrolled = Enrolment(
        site="zurich", pid=stranger, key=thief.did, method="desk", custody="self", code_id="x"
    )
    granted = Consent(
        pid=stranger,
        site="zurich",
        domain="research",
        sequence=1,
        event="grant",
        policy=preset("all-research"),
    )
    forger.add("enrolment", enrolled, forger.folder.hub_key)
    forger.add("consent", granted, thief)
    fields, _ = propose(faulty, approved=True)
    run = faulty.finish(order(faulty, fields))
    # The honest half goes on; the two that were lied to say no, each with its reason.
    assert run["state"] == "finished"
    assert accepted(run) == [{"cleveland", "longbeach"}] * 3
    for record in run["records"]:
        assert record["credentialSubject"]["refused"] == [
            {"site": "budapest", "code": "consent.wrong-key"},
            {"site": "zurich", "code": "documents.wrong-document"},
        ]
    for name, pid, code in (
        ("budapest", unwilling, "consent.wrong-key"),
        ("zurich", stranger, "documents.wrong-document"),
    ):
        assert faulty.debits(name, run["order_sha256"]) == []
        assert times_used(faulty, name, pid) == 0
        assert code in refusals(faulty, name)
    assert times_used(faulty, "cleveland", pid_at(faulty, "cleveland", WILLING)) > 0


def test_approvals_the_hub_inserts_for_its_hospitals_train_no_row(faulty: Faulty, forger: Forger):
    fields, digest = propose(faulty, approved=False)
    forger.approve(digest)
    run = faulty.finish(order(faulty, fields))
    assert (run["state"], run["error"], run["records"]) == ("failed", "round.below-quorum", [])
    for name in faulty.house.hospitals:
        assert faulty.debits(name, run["order_sha256"]) == []
        assert "round.not-approved" in refusals(faulty, name)


def test_an_order_with_less_noise_is_refused_and_leaves_the_budget_whole(
    faulty: Faulty, forger: Forger
):
    fields, digest = propose(faulty, approved=True)
    run = faulty.finish(forger.order_with_half_the_noise(digest))
    assert (run["state"], run["error"], run["records"]) == ("failed", "round.below-quorum", [])
    for name in faulty.house.hospitals:
        assert faulty.debits(name, run["order_sha256"]) == []
        assert "round.plan-mismatch" in refusals(faulty, name)
    honest = faulty.finish(order(faulty, fields))
    assert honest["state"] == "finished"
    assert honest["order_sha256"] != run["order_sha256"]
    for name in ("cleveland", "longbeach"):
        assert faulty.debits(name, honest["order_sha256"]) == [1, 2, 3]
