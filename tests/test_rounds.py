"""Orders, requests, checkpoints: what a training run is, and that a crash loses none of it."""

import threading

import numpy as np
import pytest
import sqlalchemy as sa
from training_world import NOW, TrainingWorld, study_of

from coop import studies
from coop.canonical import document_digest
from coop.db import Database
from coop.documents.envelope import Opened, issue, open_document
from coop.documents.training import Order, Refused, RoundReceipt, RoundRecord
from coop.errors import CoopError
from coop.studies import StudyState
from federated import models
from federated.orders import make_order
from federated.run_tables import RunState, histograms_bytes
from federated.server import Trainer

ZERO = "0" * 64


@pytest.fixture
def world(database: Database) -> TrainingWorld:
    made = TrainingWorld(database)
    for site in ("east", "north", "west"):
        made.join(site)
    return made


def receipt(world: TrainingWorld, site: str, digest: str, number: int) -> Opened[RoundReceipt]:
    subject = RoundReceipt(
        site=site,
        order_sha256=digest,
        phase="train",
        round=number,
        request_sha256=ZERO,
        lease_sha256=ZERO,
        release_lease_sha256=ZERO,
        cohort_commitment=ZERO,
        count_commitment=ZERO,
        debit_sequence=1,
        sigma_micro=1,
        clip_micro=1,
        update_sha256=ZERO,
    )
    return open_document(RoundReceipt, issue(subject, world.keys[site], NOW), issuers=None)


def commit(world: TrainingWorld, digest: str, state: bytes) -> None:
    asked = world.rounds.next_round(digest)
    assert asked is not None
    world.rounds.conclude(
        asked,
        world.rounds.request(asked),
        [receipt(world, "east", digest, asked.round)],
        [Refused(site="west", code="round.no-answer")],
        state,
        ZERO,
    )


def weights(*values: float) -> bytes:
    return models.to_safetensors({"weight": np.array(values, dtype=np.float32)})


def run(world: TrainingWorld, digest: str):
    with world.database.reading() as connection:
        return world.rounds.get(connection, digest)


def refused(code: str, call, *arguments) -> None:
    with pytest.raises(CoopError) as caught:
        call(*arguments)
    assert caught.value.code == code


def test_an_order_says_what_the_hospitals_approved_and_nothing_more(world: TrainingWorld):
    study = world.ready("west", "east", hospitals_quorum=2)
    document = world.rounds.create("heart")
    order = open_document(Order, document, issuers=[world.hub_key.did]).subject
    assert [entry.site for entry in order.roster] == ["east", "west"]
    assert [entry.did for entry in order.roster] == [
        world.keys["east"].did,
        world.keys["west"].did,
    ]
    assert (order.quorum, order.rounds, order.clip_micro) == (2, 2, study.recipe.clip_micro)
    assert order.not_before == NOW
    from federated.accounting import plan

    split = plan(study.budget, study.recipe.schedule)
    assert order.training_sigma_micro == split.training_sigma_micro
    assert order.evaluation_sigma_micro == split.evaluation_sigma_micro
    # It stands in the log before anybody acts on it.
    with world.database.reading() as connection:
        assert world.journal.document(connection, document_digest(document)) == document


def test_hospitals_that_would_refuse_are_not_ordered(world: TrainingWorld):
    study = study_of(hospitals_quorum=1)
    digest = world.propose(study)
    world.approve(study, digest, "east")
    world.approve(study, digest, "north", software="health-data-coop 0.0.1")
    world.approve(study, digest, "west", fab_sha256="f" * 64)
    with world.database.reading() as connection:
        row = studies.get(connection, "heart")
        approvals = studies.approvals_of(connection, digest)
    dids = {site: key.did for site, key in world.keys.items()}
    assert [e.site for e in make_order(row, approvals, dids, now=NOW).roster] == ["east"]
    # Expired, or no member any more.
    refused("training.below-quorum", lambda: make_order(row, approvals, dids, now=2**40))
    refused("training.below-quorum", lambda: make_order(row, approvals, {}, now=NOW))


def test_a_study_without_its_quorum_is_not_ordered(world: TrainingWorld):
    world.ready("east", hospitals_quorum=2)
    refused("training.below-quorum", world.rounds.create, "heart")
    assert world.rounds.next_run() is None


def test_the_same_study_is_ordered_once_while_it_trains(world: TrainingWorld):
    world.ready("east")
    first = world.rounds.create("heart")
    world.now += 100
    assert world.rounds.create("heart") == first


def test_a_request_is_written_once_and_repeated_for_ever(world: TrainingWorld):
    world.ready("east")
    digest = document_digest(world.rounds.create("heart"))
    asked = world.rounds.next_round(digest)
    first = world.rounds.request(asked)
    world.now += 1000
    again = world.rounds.request(world.rounds.next_round(digest))
    assert again.document == first.document
    assert first.subject.weights_sha256 == models.weights_digest(models.initial(2))


def test_a_run_goes_on_after_its_last_checkpoint(world: TrainingWorld):
    world.ready("east", "west")
    digest = document_digest(world.rounds.create("heart"))
    commit(world, digest, weights(1, 2))
    asked = world.rounds.next_round(digest)
    assert (asked.phase, asked.round) == ("train", 2)
    assert asked.weights["weight"].tolist() == [1, 2]
    commit(world, digest, weights(3, 4))
    asked = world.rounds.next_round(digest)
    # The evaluation is of what will be released: the mean of the last two iterates.
    assert (asked.phase, asked.round) == ("evaluate", 3)
    assert asked.weights["weight"].tolist() == [2, 3]
    total = np.arange(40, dtype=np.int64).reshape(2, 2, 10)
    commit(world, digest, histograms_bytes({"zurich": total}))
    assert world.rounds.next_round(digest) is None
    world.rounds.release(digest)
    with world.database.reading() as connection:
        result = world.rounds.result(connection, digest)
        records = world.rounds.records(connection, digest)
    assert result.weights["weight"].tolist() == [2, 3]
    assert {site: own.tolist() for site, own in result.histograms.items()} == {
        "zurich": total.tolist()
    }
    assert result.record_sha256s == [document_digest(record) for record in records]
    world.rounds.finish(digest)
    with world.database.reading() as connection:
        assert studies.get(connection, "heart").state is StudyState.RELEASED


def test_records_form_a_chain_and_name_every_receipt(world: TrainingWorld):
    world.ready("east", "west")
    digest = document_digest(world.rounds.create("heart"))
    commit(world, digest, weights(1, 2))
    commit(world, digest, weights(3, 4))
    with world.database.reading() as connection:
        first, second = world.rounds.records(connection, digest)
        for record in (first, second):
            subject = open_document(RoundRecord, record, issuers=[world.hub_key.did]).subject
            [accepted] = subject.accepted
            stored = world.journal.document(connection, accepted.receipt_sha256)
            assert open_document(RoundReceipt, stored, issuers=None).subject.site == "east"
            assert world.journal.document(connection, subject.request_sha256)
            assert subject.refused[0].code == "round.no-answer"
    assert "previous_sha256" not in first["credentialSubject"]
    assert second["credentialSubject"]["previous_sha256"] == document_digest(first)


def test_a_round_becomes_fact_wholly_or_not_at_all(world: TrainingWorld, monkeypatch):
    world.ready("east")
    digest = document_digest(world.rounds.create("heart"))
    world.rounds.request(world.rounds.next_round(digest))
    with world.database.reading() as connection:
        size = world.journal.size(connection)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world.journal, "record", crash)  # the last write before the commit
        with pytest.raises(KeyboardInterrupt):
            commit(world, digest, weights(1, 2))
    with world.database.reading() as connection:
        assert world.journal.size(connection) == size
    assert world.rounds.next_round(digest).round == 1
    commit(world, digest, weights(1, 2))
    assert world.rounds.next_round(digest).round == 2


def test_a_cancelled_run_keeps_no_late_round(world: TrainingWorld):
    world.ready("east")
    digest = document_digest(world.rounds.create("heart"))
    asked = world.rounds.next_round(digest)
    request = world.rounds.request(asked)
    world.rounds.cancel(digest)
    refused("training.not-open", world.rounds.conclude, asked, request, [], [], weights(1, 2), ZERO)
    refused("training.not-open", world.rounds.next_round, digest)
    refused("training.not-open", world.rounds.cancel, digest)
    assert run(world, digest).state is RunState.CANCELLED
    with world.database.reading() as connection:
        assert studies.get(connection, "heart").state is StudyState.READY


def test_a_cancellation_is_never_overwritten_by_the_trainers_next_look(world, monkeypatch):
    world.ready("east")
    digest = document_digest(world.rounds.create("heart"))
    acknowledged = threading.Event()

    def cancel() -> None:
        world.rounds.cancel(digest)
        acknowledged.set()

    person = threading.Thread(target=cancel)
    looked = studies.by_digest

    def slowly(connection, study_sha256):
        row = looked(connection, study_sha256)
        if not person.ident:  # the trainer has read the run: now someone cancels it
            person.start()
            acknowledged.wait(0.3)
        return row

    monkeypatch.setattr(studies, "by_digest", slowly)
    world.rounds.next_round(digest)
    person.join()
    assert run(world, digest).state is RunState.CANCELLED


def test_the_same_round_is_committed_once(world: TrainingWorld):
    world.ready("east")
    digest = document_digest(world.rounds.create("heart"))
    asked = world.rounds.next_round(digest)
    request = world.rounds.request(asked)
    world.rounds.conclude(asked, request, [], [], weights(1, 2), ZERO)
    refused("training.not-open", world.rounds.conclude, asked, request, [], [], weights(9, 9), ZERO)
    assert world.rounds.next_round(digest).weights["weight"].tolist() == [1, 2]


def test_a_failed_run_resumes_under_its_own_order(world: TrainingWorld):
    world.ready("east")
    document = world.rounds.create("heart")
    digest = document_digest(document)
    commit(world, digest, weights(1, 2))
    world.rounds.fail(digest, "round.below-quorum")
    assert run(world, digest).error == "round.below-quorum"
    world.now += 60
    assert world.rounds.create("heart") == document
    assert world.rounds.next_round(digest).round == 2
    assert run(world, digest).error is None


def test_an_order_whose_roster_changed_is_not_resumed(world: TrainingWorld):
    study = world.ready("east")
    first = world.rounds.create("heart")
    world.rounds.fail(document_digest(first), "round.below-quorum")
    with world.database.reading() as connection:
        digest = studies.get(connection, "heart").digest
    world.approve(study, digest, "west")
    world.now += 60
    second = world.rounds.create("heart")
    assert second != first
    assert len(second["credentialSubject"]["roster"]) == 2


def test_no_second_fault_ends_the_trainers_thread(world: TrainingWorld, monkeypatch):
    world.ready("east")
    digest = document_digest(world.rounds.create("heart"))
    trainer = Trainer(world.rounds, link=None, on_finished=print)
    trainer._current = digest

    def away(*_arguments) -> None:
        raise sa.exc.OperationalError("", {}, Exception())

    with monkeypatch.context() as patch:
        patch.setattr(world.rounds, "fail", away)
        trainer._give_up(TypeError("a bug, and then the database is away"))
    trainer._current = digest
    trainer._give_up(TypeError("the bug again"))
    assert run(world, digest).state is RunState.FAILED


def test_runs_under_way_come_before_queued_ones(world: TrainingWorld):
    world.ready("east")
    world.ready("east", study_id="lung")
    first = document_digest(world.rounds.create("heart"))
    world.now += 1
    second = document_digest(world.rounds.create("lung"))
    assert world.rounds.next_run().order_sha256 == first
    world.rounds.next_round(second)
    assert world.rounds.next_run().order_sha256 == second


def test_a_study_without_evaluation_ends_after_its_rounds(world: TrainingWorld):
    budget = study_of().budget.model_copy(update={"training_percent": 95, "evaluation_percent": 0})
    world.ready("east", budget=budget)
    digest = document_digest(world.rounds.create("heart"))
    commit(world, digest, weights(1, 2))
    commit(world, digest, weights(3, 4))
    assert world.rounds.next_round(digest) is None
    world.rounds.release(digest)
    with world.database.reading() as connection:
        assert world.rounds.result(connection, digest).histograms == {}
