"""One round at a hospital, with a real hub, a real log and real witnesses around it.

Every refusal names its code; every crash is a process that stopped between two of the seven steps.
"""

import contextlib
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sa
from coop_world import HOSPITAL, now, world
from coop_world import digest as digest_of

from consent.duo import Asserted, Reading
from consent.policy import preset
from consent.proofs.cohort import arrange, count_commitment
from coop import members, studies
from coop.canonical import sha256
from coop.client import Client
from coop.documents.envelope import WrongDocumentError, issue, open_document
from coop.documents.training import ApprovalRef, RoundReceipt
from coop.errors import CoopError
from coop.keys import BadSignatureError, SigningKey
from federated import round as rounds
from federated.answers import State, answer
from federated.approval import NotApprovedError, approved_study, revoke
from federated.approval_store import approved
from federated.budget import BudgetExhaustedError, cohort_of, debit, site_spend
from federated.mandate import (
    OrderMismatchError,
    OutOfTimeError,
    PlanMismatchError,
    PurposeNotUnderstoodError,
    RequestMismatchError,
    SoftwareMismatchError,
)
from federated.mirror import LeaseExpiredError, Mirror
from federated.models import WrongWeightsError, to_safetensors
from federated.node import Node, NodeStoppedError
from federated.odometer import patient_budget
from federated.orders import make_order
from federated.pace import BEAT_S, even_pace
from federated.round import ChangedInputError, WithdrawnError, answer_round


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


@pytest.fixture
def run(coop, request):
    name = f"s{sha256(request.node.name.encode()).hex()[:12]}"
    return coop.ready(name)


def answered(run, asked):
    return answer_round(run.world.site, run.world.mirror, asked)


def spent(run):
    with run.world.site.database.reading() as connection:
        return site_spend(connection, run.study.study_id, run.study.version)


def states(run):
    with run.world.site.database.reading() as connection:
        query = (
            sa.select(answer.c.state)
            .join(debit, debit.c.sequence == answer.c.debit_sequence)
            .where(debit.c.study_id == run.study.study_id, answer.c.key.startswith("round:"))
            .order_by(debit.c.sequence)
        )
        return list(connection.execute(query).scalars())


def members_of(run, receipt):
    with run.world.site.database.reading() as connection:
        return cohort_of(connection, receipt["credentialSubject"]["debit_sequence"])


def refused(run, asked, error):
    """The round is refused with this error, and nothing was debited for it."""
    before = spent(run)
    with pytest.raises(error) as caught:
        answered(run, asked)
    assert spent(run) == before
    return caught.value


# -- what leaves -----------------------------------------------------------------------------------


def test_a_round_answers_with_a_noised_update_and_a_receipt_that_names_it(coop, run):
    asked = run.input()
    given = answered(run, asked)
    receipt = open_document(RoundReceipt, given.receipt, issuers={coop.site.key.did}).subject
    assert receipt.update_sha256 == sha256(to_safetensors(given.update)).hex()
    assert receipt.request_sha256 == digest_of(asked.request)
    assert receipt.order_sha256 == digest_of(run.order)
    assert (receipt.site, receipt.phase, receipt.round) == (HOSPITAL, "train", 1)
    assert given.update["weight"].dtype == np.float32
    assert given.update["weight"].shape == run.weights["weight"].shape
    assert receipt.lease_sha256 != receipt.release_lease_sha256


def test_the_receipt_says_nothing_exact_and_its_commitments_open(coop, run):
    given = answered(run, run.input())
    subject = given.receipt["credentialSubject"]
    members = members_of(run, given.receipt)
    assert 0 < len(members) < len(coop.patients)
    with coop.site.database.reading() as connection:
        kept = connection.execute(
            sa.select(answer).where(answer.c.debit_sequence == subject["debit_sequence"])
        ).one()
    seed = bytes.fromhex(kept.seed)
    assert subject["cohort_commitment"] == arrange(members, kept.places, seed).commitment
    assert subject["count_commitment"] == count_commitment(seed, len(members))
    assert len(members) not in subject.values()
    assert not any(pid in str(given.receipt) for pid in members)


def test_training_and_evaluation_use_disjoint_patients(coop, run):
    trained = members_of(run, answered(run, run.input()).receipt)
    last = run.study.recipe.rounds + 1
    given = answered(run, run.input(last, "evaluate"))
    tested = members_of(run, given.receipt)
    assert trained.keys() & tested.keys() == set()
    assert all(coop.site.is_evaluation(pid, 40) for pid in tested)
    assert given.update["histogram"].dtype == np.int64
    assert given.update["histogram"].shape == (2, 2, run.study.evaluation.bins)
    assert spent(run)["evaluation"] > 0


def test_only_patients_whose_policy_permits_this_use_take_part(coop, run):
    refuser, cautious, trainer = coop.newcomers(3)
    coop.say("amend", [refuser], preset("refuse"))
    coop.say("amend", [cautious], preset("all-research", epsilon_cap_micro=500_000))
    coop.say("amend", [trainer], preset("train-only", epsilon_cap_micro=1_000_000))
    coop.cosign()
    first = members_of(run, answered(run, run.input(1)).receipt)
    evaluating = run.input(run.study.recipe.rounds + 1, "evaluate")
    second = members_of(run, answered(run, evaluating).receipt)
    together = first.keys() | second.keys()
    assert refuser.pid not in together
    assert cautious.pid not in together  # the study costs epsilon 1, her cap is 0.5
    assert trainer.pid in together
    assert all(pid in together for pid in [p.pid for p in coop.patients[:3]])


def test_a_grant_that_no_other_hospital_has_seen_is_not_usable(coop, run):
    (fresh,) = coop.newcomers(1)
    coop.say("revoke", [fresh])
    coop.say("grant", [fresh], preset("all-research"))  # after a withdrawal, not cosigned yet
    unseen = members_of(run, answered(run, run.input(1)).receipt)
    last = run.study.recipe.rounds + 1
    unseen |= members_of(run, answered(run, run.input(last, "evaluate")).receipt)
    assert fresh.pid not in unseen
    coop.cosign()
    seen = members_of(run, answered(run, run.input(2)).receipt)
    assert (fresh.pid in seen) != coop.site.is_evaluation(fresh.pid, 40)


def test_a_patient_without_budget_leaves_before_anything_is_drawn(coop, run, monkeypatch):
    with coop.site.database.reading() as connection:
        left = {p.pid: patient_budget(connection, p.pid).rdp_nano for p in coop.patients}
    monkeypatch.setattr("federated.budget.LIFETIME_CAP_NANO", max(left.values()))
    given = answered(run, run.input())
    used = members_of(run, given.receipt)
    assert all(left[pid] < max(left.values()) for pid in used)


def test_an_empty_cohort_answers_with_pure_noise(coop, run, monkeypatch):
    monkeypatch.setattr("federated.budget.LIFETIME_CAP_NANO", 0)
    given = answered(run, run.input())
    assert members_of(run, given.receipt) == {}
    weight = given.update["weight"]  # on a grid a thousandth of the noise: one may fall on zero
    assert np.count_nonzero(weight) > len(weight) // 2
    assert spent(run)["training"] > 0


def test_the_noise_is_that_of_the_approved_plan(coop, run, monkeypatch):
    monkeypatch.setattr("federated.budget.LIFETIME_CAP_NANO", 0)  # nobody: what is left is noise
    noise = np.concatenate([answered(run, run.input(k)).update["weight"] for k in (1, 2, 3, 4)])
    order = run.order["credentialSubject"]
    planned = order["training_sigma_micro"] * order["clip_micro"] / 1e12
    assert len(noise) > 60
    assert 0.65 * planned < noise.std() < 1.35 * planned


def test_an_answer_and_a_refusal_leave_only_at_whole_beats(run, monkeypatch):
    for asked in (run.input(), run.input(99)):
        started = time.monotonic()
        with contextlib.suppress(CoopError):
            answered(run, asked)
        assert time.monotonic() - started >= BEAT_S
    slept: list[float] = []
    for taken in (0.0, BEAT_S * 0.2, BEAT_S * 2.5):
        clock = SimpleNamespace(monotonic=iter([7.0, 7.0 + taken]).__next__, sleep=slept.append)
        with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
            patch.setattr("federated.pace.time", clock)
            with even_pace():
                _ = 1 // 0
    assert [round(pause / BEAT_S, 6) for pause in slept] == [1.0, 0.8, 0.5]


def test_a_row_the_study_cannot_read_is_left_out_without_a_word(coop, run):
    bad = coop.newcomers(1)[0]
    from federated.site import patient_row

    with coop.site.database.unit_of_work() as connection:
        connection.execute(
            sa.update(patient_row)
            .where(patient_row.c.pid == bad.pid)
            .values(row='{"age_years":"old","severity":1,"sex":"male"}')
        )
    used = members_of(run, answered(run, run.input()).receipt)
    last = run.study.recipe.rounds + 1
    used |= members_of(run, answered(run, run.input(last, "evaluate")).receipt)
    assert bad.pid not in used
    assert used


# -- (1): only what this hospital approved ---------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"training_sigma_micro": 1_000_000}, PlanMismatchError),
        ({"evaluation_sigma_micro": 1_000_000}, PlanMismatchError),
        ({"clip_micro": 4_000_000}, PlanMismatchError),
        ({"rounds": 40}, PlanMismatchError),
        ({"delta_pico": 10_000_000}, PlanMismatchError),
        ({"honest": 2}, PlanMismatchError),
        ({"quorum": 2}, PlanMismatchError),
        ({"fab_sha256": "f" * 64}, SoftwareMismatchError),
        ({"software": "health-data-coop 99"}, SoftwareMismatchError),
        ({"not_after": 10}, OutOfTimeError),
        ({"not_before": 9_000_000_000}, OutOfTimeError),
        ({"study_sha256": "a" * 64}, NotApprovedError),
        ({"study_id": "another"}, NotApprovedError),
        ({"version": 2}, NotApprovedError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_order_that_differs_from_the_approval_is_refused(coop, run, change, error):
    run.order = coop.order(run.study, run.document, run.approval, **change)
    refused(run, run.input(), error)


def test_an_order_the_pinned_hub_did_not_sign_is_refused(coop, run):
    run.order = coop.order(run.study, run.document, run.approval, by=SigningKey.generate())
    refused(run, run.input(), WrongDocumentError)
    run.order = coop.order(run.study, run.document, run.approval)
    asked = run.input()
    asked.order["credentialSubject"]["rounds"] = 3
    refused(run, asked, BadSignatureError)


def test_a_request_the_pinned_hub_did_not_sign_is_refused(coop, run):
    refused(run, run.input(by=SigningKey.generate()), WrongDocumentError)


def test_the_roster_must_name_this_hospital_once_with_its_own_key_and_approval(coop, run):
    own = {"site": HOSPITAL, "did": coop.site.key.did, "approval_sha256": digest_of(run.approval)}
    other = {"site": "budapest", "did": SigningKey.generate().did, "approval_sha256": "0" * 64}
    for entries in (
        [{**own, "did": SigningKey.generate().did}],
        [{**own, "site": "elsewhere"}],
        [{**own, "approval_sha256": "0" * 64}],
        [own, own],
        [{**own, "site": "elsewhere", "did": SigningKey.generate().did}],
        [own, other],  # budapest under another key than the one known here
        [own, {**other, "site": "atlantis"}],  # a hospital nobody here has compared keys with
    ):
        roster = [ApprovalRef(**entry) for entry in entries]
        run.order = coop.order(run.study, run.document, run.approval, roster=roster)
        refused(run, run.input(), OrderMismatchError)


def test_a_study_altered_after_the_approval_is_refused(coop, run):
    altered = run.study.model_copy(update={"commercial": True})
    document = issue(altered, coop.researcher, now())
    run.order = coop.order(altered, document, run.approval)
    refused(run, run.input(), NotApprovedError)


@pytest.mark.parametrize("renamed", [False, True], ids=["study", "study and its digest"])
def test_an_altered_row_in_the_hospitals_own_table_is_no_approval(coop, run, renamed):
    from coop.canonical import jcs

    altered = issue(run.study.model_copy(update={"commercial": True}), coop.researcher, now())
    named = digest_of(altered if renamed else run.document)
    with coop.site.database.unit_of_work() as connection:
        assert approved_study(connection, coop.site, digest_of(run.document)).study == run.study
        connection.execute(
            sa.update(approved)
            .where(approved.c.study_sha256 == digest_of(run.document))
            .values(study=jcs(altered).decode(), study_sha256=named)
        )
        with pytest.raises(NotApprovedError, match="stored study"):
            approved_study(connection, coop.site, named)
    refused(run, run.input(), NotApprovedError)


def test_an_approval_taken_back_ends_every_round(coop, run):
    answered(run, run.input())
    revoke(coop.site, digest_of(run.document), now=now())
    refused(run, run.input(2), NotApprovedError)
    refused(run, run.input(1), NotApprovedError)  # and nothing stored is sent again


@pytest.mark.parametrize("reading", [Reading.UNKNOWN, Reading.PEOPLE])
def test_a_purpose_no_machine_judges_is_refused_even_if_it_was_approved(run, monkeypatch, reading):
    monkeypatch.setattr("federated.mandate.asserted", lambda *_: Asserted(reading=reading))
    refused(run, run.input(), PurposeNotUnderstoodError)


def test_a_use_the_study_does_not_name_is_refused(coop):
    run = coop.ready("train-only-study", uses=["train-federated", "release-model"])
    answered(run, run.input())
    refused(run, run.input(5, "evaluate"), PurposeNotUnderstoodError)


@pytest.mark.parametrize("round_", [0, 5, 99])
def test_a_round_outside_the_order_is_refused(run, round_):
    if round_ == 0:
        with pytest.raises(ValueError, match="round"):
            run.input(round_)
        return
    refused(run, run.input(round_), RequestMismatchError)


def test_evaluation_follows_the_last_round_only(run):
    refused(run, run.input(4, "evaluate"), RequestMismatchError)


def test_a_request_for_another_order_is_refused(run):
    refused(run, run.input(order_sha256="b" * 64), RequestMismatchError)


def test_other_weights_than_the_request_names_are_refused(run):
    other = {"weight": run.weights["weight"] + 1}
    refused(run, replace(run.input(), weights=other), RequestMismatchError)
    for broken in (
        {"weight": run.weights["weight"][:-1]},
        {"weight": run.weights["weight"].astype(np.float64)},
        {"weight": run.weights["weight"] * np.float32(np.nan)},
        {"other": run.weights["weight"]},
    ):
        refused(run, replace(run.input(), weights=broken), WrongWeightsError)


# -- (2) and (6): consent, fresh -------------------------------------------------------------------


class Between:
    """The hospital's mirror, with something happening in the world before each lease."""

    def __init__(self, mirror, *steps):
        self.mirror = mirror
        self.steps = list(steps)

    def lease(self):
        if self.steps:
            self.steps.pop(0)()
        return self.mirror.lease()


def nothing():
    pass


def test_a_stale_lease_starts_nothing(coop, run, monkeypatch):
    monkeypatch.setattr(coop.mirror, "_clock", lambda: 0.0)  # a lease asked for at boot
    refused(run, run.input(), LeaseExpiredError)


def test_a_lease_that_ends_before_the_release_lets_nothing_out(coop, run, monkeypatch):
    clock = coop.mirror._clock
    slow = Between(
        coop.mirror, nothing, lambda: monkeypatch.setattr(coop.mirror, "_clock", lambda: 0.0)
    )
    with pytest.raises(LeaseExpiredError):
        answer_round(coop.site, slow, run.input())
    monkeypatch.setattr(coop.mirror, "_clock", clock)
    assert states(run) == [State.STORED]
    answered(run, run.input())  # asked again in time, it is the same debit
    assert spent(run)["training"] > 0
    assert states(run) == [State.STORED]


def test_a_lease_that_ends_while_the_release_waits_for_the_database_lets_nothing_out(
    run, monkeypatch
):
    lock, waits = rounds.budget.lock, [nothing]

    def slow_lock(connection):
        lock(connection)
        if not waits:  # the release's own lock came after the lease's end
            monkeypatch.setattr("federated.held_lease.boottime", lambda: float("inf"))
        del waits[:]

    with monkeypatch.context() as patch:
        patch.setattr(rounds.budget, "lock", slow_lock)
        with pytest.raises(LeaseExpiredError):
            answered(run, run.input())
    monkeypatch.undo()
    assert states(run) == [State.STORED]
    answered(run, run.input())


def test_a_stop_by_the_staff_holds_back_what_was_under_way(coop, run, monkeypatch):
    node = Node(coop.site)

    def stopped_meanwhile(*arguments, **named):
        node.pause(stopped=True)
        return answer_round(*arguments, **named)

    monkeypatch.setattr("federated.node.answer_round", stopped_meanwhile)
    node.mirror = coop.mirror
    with pytest.raises(NodeStoppedError):
        node.answer(run.input())
    node.pause(stopped=False)


def test_a_hub_that_does_not_answer_starts_nothing(coop, run):
    with Client("http://127.0.0.1:9", key=coop.site.key) as deaf:
        before = spent(run)
        with pytest.raises(CoopError) as caught:
            answer_round(coop.site, Mirror(coop.site, deaf), run.input())
    assert caught.value.code == "coop.unavailable"
    assert spent(run) == before


def in_training(coop, count=1):
    """Newcomers of the training fold."""
    found = []
    while len(found) < count:
        found += [p for p in coop.newcomers(2) if not coop.site.is_evaluation(p.pid, 40)]
    return found[:count]


def test_a_withdrawal_between_start_and_release_discards_the_update_and_keeps_the_debit(coop, run):
    (leaving,) = in_training(coop)
    mirror = Between(coop.mirror, nothing, lambda: coop.say("revoke", [leaving]))
    asked = run.input()
    with pytest.raises(WithdrawnError) as caught:
        answer_round(coop.site, mirror, asked)
    assert caught.value.code == "round.withdrawn"
    assert states(run) == [State.DISCARDED]
    paid = spent(run)["training"]
    assert paid > 0
    with coop.site.database.reading() as connection:
        assert (
            connection.scalar(
                sa.select(sa.func.count())
                .select_from(answer)
                .where(answer.c.state == State.DISCARDED, answer.c.body.is_not(None))
            )
            == 0
        )
    # Asked again: a new draw with a new debit, without her.
    given = answered(run, asked)
    assert leaving.pid not in members_of(run, given.receipt)
    assert sum(spent(run).values()) == 2 * paid
    assert states(run) == [State.DISCARDED, State.STORED]


def test_a_discarded_round_is_paid_again_by_the_reserve_until_that_is_spent(coop):
    run = coop.ready("one-round", recipe__rounds=1)  # the reserve holds no whole round
    (leaving,) = in_training(coop)
    mirror = Between(coop.mirror, nothing, lambda: coop.say("revoke", [leaving]))
    asked = run.input()
    with pytest.raises(WithdrawnError):
        answer_round(coop.site, mirror, asked)
    with pytest.raises(BudgetExhaustedError):
        answered(run, asked)


def test_a_repeat_after_a_withdrawal_does_not_send_the_stored_bytes(coop, run):
    (leaving,) = in_training(coop)
    asked = run.input()
    assert leaving.pid in members_of(run, answered(run, asked).receipt)
    coop.say("suspend", [leaving])
    with pytest.raises(WithdrawnError):
        answered(run, asked)
    again = answered(run, asked)
    assert leaving.pid not in members_of(run, again.receipt)


def outsider(coop):
    """Permits, and is in the other fold."""
    return next(p for p in coop.newcomers(12) if coop.site.is_evaluation(p.pid, 40))


@pytest.mark.parametrize("who", [outsider, lambda coop: in_training(coop)[0]])
@pytest.mark.parametrize("event", ["revoke", "suspend"])
def test_a_refusal_does_not_tell_who_was_in_the_cohort(coop, run, who, event):
    # A hub may stop anyone between the leases; what follows must not depend on her fold or row.
    stopped = who(coop)
    mirror = Between(coop.mirror, nothing, lambda: coop.say(event, [stopped]))
    asked = run.input()
    with pytest.raises(WithdrawnError):
        answer_round(coop.site, mirror, asked)
    assert states(run) == [State.DISCARDED]
    answered(run, asked)
    assert states(run) == [State.DISCARDED, State.STORED]


@pytest.mark.parametrize("who", [outsider, lambda coop: in_training(coop)[0]])
def test_nor_does_the_refusal_of_a_repeat(coop, run, who):
    stopped = who(coop)
    asked = run.input()
    answered(run, asked)
    coop.say("suspend", [stopped])
    with pytest.raises(WithdrawnError):
        answered(run, asked)


def test_who_did_not_permit_stops_nothing_when_she_withdraws_or_joins(coop, run):
    (before, between) = in_training(coop, 2)
    coop.say("suspend", [before, between])
    mirror = Between(
        coop.mirror,
        nothing,
        lambda: (coop.say("revoke", [before]), coop.say("resume", [between])),
    )
    answer_round(coop.site, mirror, run.input())
    assert states(run) == [State.STORED]


# -- repeats and crashes ---------------------------------------------------------------------------


def same(one, other):
    return one.receipt == other.receipt and all(
        np.array_equal(one.update[name], other.update[name]) for name in one.update
    )


def test_a_repeat_returns_the_same_bytes_for_the_same_debit(run):
    asked = run.input()
    first = answered(run, asked)
    paid = spent(run)
    assert same(first, answered(run, asked))
    assert spent(run) == paid


def test_a_repeat_by_a_new_process_returns_the_same_bytes(coop, run):
    asked = run.input()
    first = answered(run, asked)
    from federated.site import Site

    coop.sites[HOSPITAL].close()
    coop.sites[HOSPITAL] = Site.open(coop.site.folder)
    coop.mirrors[HOSPITAL] = Mirror(coop.site, coop.client)
    assert same(first, answered(run, asked))


def test_the_same_round_with_other_weights_is_refused(coop, run):
    answered(run, run.input())
    other = {"weight": run.weights["weight"] + 1}
    request = coop.request(run.order, other)
    asked = rounds.RoundInput(order=run.order, request=request, weights=other)
    refused(run, asked, ChangedInputError)


def test_a_request_signed_anew_gets_the_same_update_under_a_receipt_that_names_it(run):
    first, asked = answered(run, run.input()), run.input()
    again = answered(run, asked)
    assert np.array_equal(first.update["weight"], again.update["weight"])
    assert again.receipt["credentialSubject"]["request_sha256"] == digest_of(asked.request)
    assert states(run) == [State.STORED]


class PowerCutError(Exception):
    """The process ends here."""


def test_a_crash_between_debit_and_answer_charges_once(run, monkeypatch):
    def cut(*_):
        raise PowerCutError

    asked = run.input()
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_update", cut)
        with pytest.raises(PowerCutError):
            answered(run, asked)
    assert states(run) == [State.GRANTED]
    paid = spent(run)
    assert paid["training"] > 0
    given = answered(run, asked)
    assert (spent(run), states(run)) == (paid, [State.STORED])
    assert same(given, answered(run, asked))


def test_a_crash_before_the_debit_leaves_nothing(run, monkeypatch):
    def cut(*_, **__):
        raise PowerCutError

    monkeypatch.setattr("federated.budget.grant", cut)
    refused(run, run.input(), PowerCutError)
    assert states(run) == []


def test_a_crash_between_storing_and_sending_sends_the_stored_bytes(run, monkeypatch):
    def cut(*_):
        raise PowerCutError

    asked = run.input()
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "release", cut)
        with pytest.raises(PowerCutError):
            answered(run, asked)
    with run.world.site.database.reading() as connection:
        bodies = list(
            connection.execute(
                sa.select(answer.c.body)
                .join(debit, debit.c.sequence == answer.c.debit_sequence)
                .where(debit.c.study_id == run.study.study_id)
            ).scalars()
        )
    given = answered(run, asked)
    assert to_safetensors(given.update) == bytes(bodies[0])


def test_a_withdrawal_after_a_crash_discards_the_grant_without_reading_her_row(
    coop, run, monkeypatch
):
    def cut(*_):
        raise PowerCutError

    (leaving,) = in_training(coop)
    asked = run.input()
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_update", cut)
        with pytest.raises(PowerCutError):
            answered(run, asked)
    coop.say("revoke", [leaving])
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_update", cut)  # nothing is computed on the way to the refusal
        with pytest.raises(WithdrawnError):
            answered(run, asked)
    assert states(run) == [State.DISCARDED]
    assert leaving.pid not in members_of(run, answered(run, asked).receipt)


def test_two_repeats_at_once_let_one_answer_out(run):
    asked, given = run.input(), []
    start = threading.Barrier(3)

    def one():
        start.wait()
        given.append(answered(run, asked))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 3
    assert all(same(given[0], other) for other in given)
    assert states(run) == [State.STORED]


def test_a_whole_run_spends_exactly_its_plan_and_not_one_round_more(coop):
    run = coop.ready("whole-run", recipe__rounds=3)
    for number in (1, 2, 3):
        answered(run, run.input(number))
    answered(run, run.input(4, "evaluate"))
    from federated.accounting import plan

    split = plan(run.study.budget, run.study.recipe.schedule)
    done = spent(run)
    assert done["training"] == 3 * split.rho_round_nano
    assert done["evaluation"] == split.rho_evaluation_nano
    assert (done["reserve"], done["cohort"]) == (0, 0)
    # A second order of the same study has no budget left: retraining is a new version.
    run.order = coop.order(run.study, run.document, run.approval, not_after=now() + 60)
    refused(run, run.input(1), BudgetExhaustedError)


def test_the_hubs_own_orders_are_obeyed(coop, run):
    with coop.database.reading() as connection:
        row = studies.get(connection, run.study.study_id)
        approvals = studies.approvals_of(connection, row.digest)
        dids = members.site_dids(connection)
    order = make_order(row, approvals, dids, now=now())
    run.order = issue(order, coop.folder.hub_key, now())
    answered(run, run.input())
    answered(run, run.input(5, "evaluate"))


def test_a_hospital_on_postgresql_keeps_the_same_promises(tmp_path, postgres_url):
    import psycopg

    with psycopg.connect(f"{postgres_url}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE hospital")
    with world(tmp_path, f"{postgres_url}/hospital") as coop:
        run, asked = coop.ready("on-postgresql"), None
        asked = run.input()
        first = answered(run, asked)
        paid = spent(run)
        assert same(first, answered(run, asked))
        assert spent(run) == paid
        answered(run, run.input(5, "evaluate"))
        leaving = next(p for p in coop.patients if p.pid in members_of(run, first.receipt))
        mirror = Between(coop.mirror, nothing, lambda: coop.say("revoke", [leaving]))
        with pytest.raises(WithdrawnError):
            answer_round(coop.site, mirror, run.input(2))
        assert sorted(states(run)) == ["discarded", "stored", "stored"]
        threads = [threading.Thread(target=answered, args=(run, run.input(3))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(states(run)) == 4
