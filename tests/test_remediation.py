"""What withdrawals do to a released model, by the rule its study was approved with."""

from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from training_world import NOW, TrainingWorld, study_of

from coop import catalogue, remediation
from coop.catalogue import Catalogue, Cost
from coop.db import Database
from coop.documents.envelope import issue, open_document
from coop.documents.study import Remediation
from coop.documents.training import ApprovalRef, ModelState, Order
from coop.economy import Economy
from coop.errors import ConflictError
from coop.features import columns
from coop.hub.release import leave
from coop.journal.store import signed_document
from federated import models as weights_of

PIDS = [letter * 26 for letter in "abcdefghij"]
COST = Cost(
    epsilon_micro=1, training_epsilon_micro=1, cohort_epsilon_micro=0, together_epsilon_micro=1
)


@dataclass
class World:
    """A hub that released a model which ten patients of two hospitals permitted."""

    here: TrainingWorld
    models: Catalogue
    economy: Economy
    model_id: str

    def leave(self, *pids: str) -> None:
        with self.here.database.unit_of_work() as connection:
            leave(self.economy, self.models, connection, list(pids))

    @property
    def state(self) -> str:
        with self.here.database.reading() as connection:
            return catalogue.model(connection, self.model_id).state

    @property
    def withdrawals(self) -> remediation.Withdrawals:
        with self.here.database.reading() as connection:
            row = catalogue.model(connection, self.model_id)
            return remediation.withdrawals(connection, self.here.journal, row)

    def words(self) -> list[ModelState]:
        """The hub's signed words about models, as they stand in the log."""
        with self.here.database.reading() as connection:
            query = (
                sa.select(signed_document.c.digest)
                .where(signed_document.c.kind == ModelState.kind)
                .order_by(signed_document.c.log_index)
            )
            digests = connection.execute(query).scalars().all()
            found = [self.here.journal.document(connection, digest) for digest in digests]
        hub = self.here.hub_key.did
        return [open_document(ModelState, said, issuers={hub}).subject for said in found]


def released(here: TrainingWorld, policy: str, version: int = 1, percent: int = 30) -> World:
    rule = Remediation(policy=policy, percent=percent)
    study = study_of(remediation=rule, version=version)
    digest = here.propose(study)
    key = here.hub_key
    order = Order(
        study_sha256=digest,
        study_id=study.study_id,
        version=version,
        roster=[ApprovalRef(site="zurich", did=key.did, approval_sha256="0" * 64)],
        quorum=1,
        rounds=2,
        sampling_micro=1_000_000,
        training_sigma_micro=1_000_000,
        evaluation_sigma_micro=1_000_000,
        clip_micro=1_000_000,
        delta_pico=1_000_000,
        mode="A",
        honest=1,
        fab_sha256="0" * 64,
        software="test",
        not_before=NOW,
        not_after=NOW + 1,
    )
    models = Catalogue(here.journal, key, lambda: NOW)
    economy = Economy(here.database, here.journal, key, lambda: NOW)
    opened = open_document(Order, issue(order, key, NOW), issuers={key.did})
    with here.database.unit_of_work() as connection:
        model_id = catalogue.model_id_of(opened)
        rosters = {"zurich": PIDS[:6], "basel": PIDS[6:]}
        economy.open_pools(connection, model_id, rosters, {"zurich": 6, "basel": 4})
        models.release(
            connection,
            order=opened,
            study=study,
            record_sha256s=["1" * 64, "2" * 64, "3" * 64],
            weights=weights_of.initial(len(columns(study.schema_))),
            metrics=[],
            hospital_weights={"zurich": 6, "basel": 4},
            cost=COST,
        )
        remediation.replace_due(connection, models, study.study_id, model_id)
    return World(here=here, models=models, economy=economy, model_id=model_id)


@pytest.fixture
def here(database: Database) -> TrainingWorld:
    made = TrainingWorld(database)
    made.join("zurich")
    return made


def test_it_is_counted_how_many_of_those_who_permitted_have_left(here):
    world = released(here, "keep")
    world.leave(PIDS[0], PIDS[7])
    world.leave(PIDS[7])  # twice is once
    found = world.withdrawals
    assert (found.permitted, found.withdrawn, found.rounds, found.due) == (10, 2, 3, False)
    world.leave(PIDS[1])
    assert world.withdrawals.due
    assert world.state == "released"
    assert world.words() == []


def test_a_model_is_retired_when_the_studys_share_has_left_and_the_log_says_why(here):
    world = released(here, "retire")
    world.leave(*PIDS[:2])
    assert world.state == "released"
    world.leave(PIDS[9])
    assert world.state == "retired"
    world.leave(PIDS[8])  # nothing more happens to it
    (said,) = world.words()
    assert (said.model_id, said.state, said.reason) == (world.model_id, "retired", "withdrawals")
    assert (said.permitted, said.withdrawn, said.rounds) == (10, 3, 3)


def test_a_model_that_must_be_trained_anew_answers_until_its_successor_is_there(here):
    world = released(here, "retrain")
    world.leave(*PIDS[:3])
    assert world.state == "retrain-due"
    other = released(here, "retrain", version=2)
    assert (world.state, other.state) == ("retired", "released")
    assert [(said.state, said.reason) for said in world.words()] == [
        ("retrain-due", "withdrawals"),
        ("retired", "replaced"),
    ]


def test_the_staffs_own_decision_is_in_the_log_too_and_is_taken_once(here):
    world = released(here, "keep")
    with here.database.unit_of_work() as connection:
        remediation.retire(connection, world.models, world.model_id)
    with pytest.raises(ConflictError), here.database.unit_of_work() as connection:
        remediation.retire(connection, world.models, world.model_id)
    assert [(said.state, said.reason) for said in world.words()] == [("retired", "staff")]


def test_who_never_permitted_the_study_changes_nothing(here):
    world = released(here, "retire", percent=1)
    world.leave("z" * 26)
    assert world.state == "released"
