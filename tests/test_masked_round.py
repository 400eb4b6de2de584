"""Mode B whole, among four hospitals: the sum is right, and no rule of its proof can be broken."""

import numpy as np
import orjson
import pytest
import safetensors.numpy
import sqlalchemy as sa
from coop_world import HOSPITAL, now, world
from masked_world import FOURTH, Masked, add_fourth

from coop.canonical import sha256
from federated import masked_state, pace
from federated.accounting import rho_nano_of
from federated.answers import State, answer
from federated.budget import cohort_of, debit, site_spend
from federated.integer_noise import sensitivity, share_sigma_micro, to_numbers
from federated.odometer import patient_budget
from federated.round import INTEGERS
from federated.step import apply_round
from federated.uses import statement


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """The even pace of answers is test_round's subject, and costs seconds here."""
    monkeypatch.setattr(pace, "BEAT_S", 0.001)


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    with world(folder) as made:
        add_fourth(made, folder)
        made.cosign()
        yield made


@pytest.fixture
def masked(coop, request):
    return Masked.ready(coop, f"s{sha256(request.node.name.encode()).hex()[:12]}")


def stored(masked, site=HOSPITAL):
    """The stored answers of this study's rounds at a site, oldest first: state and integers."""
    database = masked.world.sites[site].database
    with database.reading() as connection:
        rows = connection.execute(
            sa.select(answer)
            .join(debit, debit.c.sequence == answer.c.debit_sequence)
            .where(debit.c.study_id == masked.study_id, answer.c.key.startswith("round:"))
            .order_by(debit.c.sequence)
        ).all()
    return [
        (row.state, None if row.body is None else safetensors.numpy.load(row.body)[INTEGERS])
        for row in rows
    ]


def spent(masked, site=HOSPITAL):
    with masked.world.sites[site].database.reading() as connection:
        return sum(site_spend(connection, masked.study_id, 1).values())


def of_stage(run, stage):
    return sorted(site for said, site in run.sent if said == stage)


ALL = sorted([HOSPITAL, "budapest", "zurich", FOURTH])


def test_the_hub_gets_exactly_the_sum_of_what_the_hospitals_stored(masked):
    run = masked.run()
    asked = masked.rounds.next_round(masked.order_sha256)
    summed, refused = masked.attempt(run)
    assert refused == {}
    total = sum(stored(masked, site)[0][1] for site in ALL)
    update = {"sum": {"weight": to_numbers(total.view(np.uint64)).astype(np.float32)}}
    wanted = apply_round(asked.weights, update, asked.study.recipe)
    assert summed.weights["weight"].tobytes() == wanted["weight"].tobytes()
    assert [receipt.subject.site for receipt in summed.receipts] == ALL


def test_what_one_hospital_sends_is_not_what_it_stored_and_its_receipt_names_it(masked):
    seen = {}

    def altered(stage, site, content):
        if stage == "masked":
            seen[site] = content
        return content

    masked.attempt(masked.run(altered=altered))
    for site, content in seen.items():
        vector = safetensors.numpy.load(content["update"])["masked"]
        integers = stored(masked, site)[0][1]
        assert not np.any(vector.view(np.int64) == integers)
        receipt = orjson.loads(content["receipt"])["credentialSubject"]
        assert receipt["update_sha256"] == sha256(content["update"]).hex()
        # The stored noise is h's share: its size is far from the masks', which fill 64 bits.
        assert np.abs(integers).max() < 2**45 < np.abs(vector.view(np.int64)).max()


def test_keys_serve_all_rounds_and_a_round_is_two_messages(masked):
    run = masked.run()
    first = masked.conclude(run)
    again = masked.conclude(run)
    assert of_stage(run, "keys") == of_stage(run, "shares") == ALL
    assert len(of_stage(run, "masked")) == len(of_stage(run, "reveal")) == 8
    assert first.weights["weight"].tobytes() != again.weights["weight"].tobytes()


@pytest.mark.parametrize("gone", [HOSPITAL, FOURTH])
def test_a_hospital_that_is_lost_after_the_set_up_is_not_missed(masked, gone):
    run = masked.run(lost=lambda stage, site: stage in ("masked", "reveal") and site == gone)
    summed, refused = masked.attempt(run)
    left = [site for site in ALL if site != gone]
    assert set(refused) == {gone}
    assert [receipt.subject.site for receipt in summed.receipts] == left
    total = sum(stored(masked, site)[0][1] for site in left)
    numbers = to_numbers(total.view(np.uint64)) / summed_population(masked)
    moved = np.abs(summed.weights["weight"] + numbers * rate(masked))
    assert moved.max() < 1e-4


def summed_population(masked):
    return masked.rounds.next_round(masked.order_sha256).study.recipe.population


def rate(masked):
    return masked.rounds.next_round(masked.order_sha256).study.recipe.learning_rate_micro / 1e6


def test_a_hospital_lost_while_it_reveals_is_still_in_the_sum(masked):
    run = masked.run(lost=lambda stage, site: (stage, site) == ("reveal", "zurich"))
    summed, refused = masked.attempt(run)
    assert [receipt.subject.site for receipt in summed.receipts] == ALL
    assert refused == {}


def test_below_the_threshold_there_is_no_sum_and_the_next_attempt_draws_nothing_anew(masked):
    two = {"zurich", "budapest"}
    run = masked.run(lost=lambda stage, site: stage == "masked" and site in two)
    assert masked.attempt(run)[0] is None
    before = stored(masked)[0][1]
    run.lost = lambda _stage, _site: False
    summed, _ = masked.attempt(run)
    assert len(summed.receipts) == 4
    assert len(stored(masked)) == 1
    assert np.array_equal(stored(masked)[0][1], before)
    assert len(of_stage(run, "keys")) == 8  # under new keys


def test_too_few_at_the_set_up_refuse_the_round(masked):
    run = masked.run(down={"zurich", "budapest"})
    summed, refused = masked.attempt(run)
    assert summed is None
    assert refused == {"zurich": "round.site-offline", "budapest": "round.site-offline"}
    assert spent(masked) == 0


def test_who_was_away_gets_keys_and_takes_part_when_it_is_back(masked):
    run = masked.run(down={"zurich"})
    assert len(masked.conclude(run).receipts) == 3
    run.down.clear()
    assert [receipt.subject.site for receipt in masked.conclude(run).receipts] == ALL


def test_a_hub_that_dies_before_it_reveals_asks_for_the_same_sum(masked):
    lost = masked.run(lost=lambda stage, _: stage == "reveal")
    assert masked.attempt(lost)[0] is None
    fresh = masked.run()  # what the next process of the hub does
    summed, _ = masked.attempt(fresh)
    assert [receipt.subject.site for receipt in summed.receipts] == ALL
    assert {stage for stage, _ in fresh.sent} == {"reveal"}
    assert len(stored(masked)) == 1


def test_every_stage_asked_twice_gives_the_same_bytes(masked):
    answers = []

    def altered(stage, site, content):
        answers.append((stage, site, content))
        return content

    run = masked.run(altered=altered)
    original = run.send

    def twice(kind, content, nodes):
        nodes = list(nodes)
        run.collect(original(kind, content, nodes))
        return original(kind, content, nodes)

    run.send = twice
    assert masked.attempt(run)[0] is not None
    by = {}
    for stage, site, content in answers:
        by.setdefault((stage, site), []).append(content)
    for each in by.values():
        assert len(each) == 2
        assert each[0] == each[1]


# -- what the proof needs --------------------------------------------------------------------------


class Recorder:
    """Remembers every message, to send it again changed."""

    def __init__(self, masked):
        self.run = masked.run()
        self.masked = masked
        self.messages = []
        original = self.run.send

        def send(kind, content, nodes):
            nodes = list(nodes)
            self.messages.append((content, nodes))
            return original(kind, content, nodes)

        self.run.send = send

    def again(self, stage, site, **changes):
        """The code (None if answered) for this stage's message with other words in it."""
        node = self.run.nodes[site]
        content = next(
            dict(content)
            for content, nodes in self.messages
            if content.get("stage") == stage.encode() and node in nodes
        )
        said = orjson.loads(content["about"]) | changes
        content["about"] = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
        sent = self.run.send("train", content, [node])
        (reply,) = self.run.collect(sent)
        return reply.code


@pytest.fixture
def recorded(masked):
    recorder = Recorder(masked)
    assert masked.attempt(recorder.run)[0] is not None
    return recorder


def test_masks_are_lifted_for_one_list_of_survivors_and_no_other(recorded):
    for survivors in ([HOSPITAL, "budapest", "zurich"], [HOSPITAL, "budapest", FOURTH], ALL[:2]):
        code = recorded.again("reveal", HOSPITAL, survivors=sorted(survivors))
        assert code == "masked.already-revealed"
    assert recorded.again("reveal", HOSPITAL, survivors=ALL) is None


def test_a_second_set_up_does_not_lift_a_round_that_was_lifted(recorded):
    assert recorded.again("keys", HOSPITAL, setup=2) is None
    assert recorded.again("masked", HOSPITAL, setup=2) == "masked.already-revealed"
    assert recorded.again("reveal", HOSPITAL, setup=2) == "masked.already-revealed"
    assert recorded.again("reveal", HOSPITAL) is None  # as it was before


def test_a_set_ups_number_is_used_once(recorded):
    assert recorded.again("keys", HOSPITAL, setup=5) is None
    assert recorded.again("keys", HOSPITAL, setup=4) == "masked.setup-changed"
    assert recorded.again("keys", HOSPITAL, setup=5, last=2) == "masked.setup-changed"
    assert recorded.again("keys", HOSPITAL, setup=5, fresh=True) == "masked.setup-changed"
    assert recorded.again("keys", HOSPITAL, setup=6, first=2) == "masked.does-not-fit"
    assert recorded.again("keys", HOSPITAL, setup=0) == "masked.malformed"


def test_one_round_is_masked_with_one_set_of_parties(masked):
    recorder = Recorder(masked)
    recorder.run.lost = lambda stage, _: stage == "reveal"
    assert masked.attempt(recorder.run)[0] is None
    content = next(c for c, _ in recorder.messages if c.get("stage") == b"masked")
    sealed = orjson.loads(content["about"])["sealed"]
    three = {site: sealed[site] for site in list(sealed)[:2]}
    mine = next(s for s in ALL if s not in sealed)
    code = recorder.again("masked", mine, parties=sorted([*three, mine]), sealed=three)
    assert code == "masked.setup-changed"
    alone = recorder.again("masked", mine, parties=[mine], sealed={})
    assert alone == "masked.too-few"


def test_shares_are_sealed_for_one_set_of_keys(masked):
    recorder = Recorder(masked)
    recorder.run.lost = lambda stage, _: stage == "masked"
    masked.attempt(recorder.run)
    content = next(c for c, _ in recorder.messages if c.get("stage") == b"shares")
    keys = orjson.loads(content["about"])["keys"]
    own = next(k for k in keys if k["credentialSubject"]["site"] == HOSPITAL)
    others = [k for k in keys if k is not own]
    again = recorder.again
    assert again("shares", HOSPITAL, keys=[own, *others[:2]]) == "masked.setup-changed"
    assert again("shares", HOSPITAL, keys=others) == "masked.does-not-fit"
    assert again("shares", HOSPITAL, keys=[own, others[0]]) == "masked.too-few"
    assert again("shares", HOSPITAL, keys=[*keys, own]) == "masked.does-not-fit"
    forged = orjson.loads(orjson.dumps(others[0]))
    forged["credentialSubject"]["seal_key"] = "ab" * 32
    assert again("shares", HOSPITAL, keys=[own, forged, *others[1:]]) == "keys.bad-signature"


def test_survivors_are_enough_of_the_rounds_parties_and_this_hospital_one_of_them(masked):
    recorder = Recorder(masked)
    original = recorder.run.send

    def send(kind, content, nodes):
        if content.get("stage") == b"reveal":
            recorder.messages.append((content, list(nodes)))
            return {}
        return original(kind, content, nodes)

    recorder.run.send = send
    assert masked.attempt(recorder.run)[0] is None
    recorder.run.send = original
    for survivors in (
        ALL[:2],
        [s for s in ALL if s != HOSPITAL],
        [*ALL, "stranger"],
        [*ALL, ALL[0]],
    ):
        assert recorder.again("reveal", HOSPITAL, survivors=survivors) == "masked.does-not-fit"


def test_a_withdrawal_before_the_masks_are_lifted_ends_this_sum_and_all_draw_anew(coop, masked):
    """Even where enough others revealed, the hub takes no sum that holds who withdrew."""
    leaver = coop.newcomers(1)[0]
    run = masked.run()
    withdrawn = []
    original = run.send

    def send(kind, content, nodes):
        if content.get("stage") == b"reveal" and not withdrawn:
            withdrawn.append(True)
            coop.say("revoke", [leaver])
        return original(kind, content, nodes)

    run.send = send
    summed, refused = masked.attempt(run)
    assert summed is None
    assert refused[HOSPITAL] == "round.withdrawn"
    before = {site: stored(masked, site) for site in ALL}
    summed, refused = masked.attempt(run)
    assert refused == {}
    assert [receipt.subject.site for receipt in summed.receipts] == ALL
    for site in ALL:
        # Whoever revealed has drawn new noise and paid for it; nothing is in two sums.
        after = stored(masked, site)
        assert [state for state, _ in after] == [State.DISCARDED, State.STORED]
        assert before[site][0][1] is None or not np.any(before[site][0][1] == after[1][1])
    with coop.site.database.reading() as connection:
        newest = connection.execute(sa.select(sa.func.max(debit.c.sequence))).scalar_one()
        assert leaver.pid not in cohort_of(connection, newest)


def test_a_bare_answer_is_refused_in_mode_b_and_a_masked_one_in_mode_a(coop, masked):
    run = masked.run()
    asked = masked.rounds.next_round(masked.order_sha256)
    request = masked.rounds.request(asked)
    from coop.canonical import jcs
    from federated.models import to_safetensors

    content = {
        "order": jcs(asked.order.document),
        "request": jcs(request.document),
        "weights": to_safetensors(asked.weights),
    }
    sent = run.send("train", content, [run.nodes[HOSPITAL]])
    assert [reply.code for reply in run.collect(sent)] == ["round.masked-only"]
    assert spent(masked) == 0
    plain = coop.ready(f"{masked.study_id}a")
    said = {"setup": 1, "first": 1, "last": 1, "fresh": False}
    content = {
        "order": jcs(plain.order),
        "request": jcs(plain.input().request),
        "weights": to_safetensors(plain.weights),
        "stage": b"keys",
        "about": orjson.dumps(said, option=orjson.OPT_SORT_KEYS),
    }
    sent = run.send("train", content, [run.nodes[HOSPITAL]])
    assert [reply.code for reply in run.collect(sent)] == ["round.masked-only"]


def test_after_the_last_round_the_secrets_are_gone(masked):
    run = masked.run()
    while (asked := masked.rounds.next_round(masked.order_sha256)) and asked.masked:
        masked.conclude(run)
    for site in masked.world.sites.values():
        with site.database.reading() as connection:
            of = masked_state.mask_setup.c.order_sha256 == masked.order_sha256
            rows = connection.execute(sa.select(masked_state.mask_setup).where(of)).all()
            sent = connection.execute(
                sa.select(masked_state.mask_sent.c.held).where(
                    masked_state.mask_sent.c.order_sha256 == masked.order_sha256
                )
            ).scalars()
            assert [(row.secrets, row.own_shares, row.sealed) for row in rows] == [(None,) * 3]
            assert set(sent) == {"{}"}


def test_the_ledger_charges_the_sum_at_h_and_the_noise_stored_is_hs_share(masked):
    run = masked.run()
    masked.attempt(run)
    with masked.world.site.database.reading() as connection:
        row = connection.execute(sa.select(debit).where(debit.c.study_id == masked.study_id)).one()
    order = masked.rounds.next_round(masked.order_sha256).order.subject
    assert row.sigma_micro == order.training_sigma_micro
    integers = stored(masked, FOURTH)[0][1]  # no patients there: noise alone
    length = len(integers)
    share = share_sigma_micro(order.training_sigma_micro, 3) / 1e6
    deviation = share * sensitivity(order.clip_micro, length)
    assert 0.4 * deviation < integers.std() < 1.8 * deviation


def test_her_odometer_shows_what_holds_if_the_other_hospitals_lie(coop, masked):
    (patient,) = coop.newcomers(1)
    masked.conclude(masked.run())
    order = masked.rounds.next_round(masked.order_sha256).order.subject
    with coop.site.database.reading() as connection:
        spent = patient_budget(connection, patient.pid)
    paid = rho_nano_of(order.training_sigma_micro)
    trained = not coop.site.is_evaluation(patient.pid, 40)
    assert abs(spent.rho_nano - paid * trained) <= 1
    assert abs(spent.alone_nano - 3 * paid * trained) <= 3
    said = statement(coop.site, patient.pid, now())["credentialSubject"]["privacy"]
    assert said["epsilon_micro"] <= said["alone_epsilon_micro"]
    assert (said["alone_epsilon_micro"] > said["epsilon_micro"]) is trained
    assert said["limit_epsilon_micro"] == 10_000_000


# -- hostile answers at the hub --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        ("keys", "keys", b"{}"),
        ("shares", "sealed", b'{"sealed":{}}'),
        ("shares", "sealed", b"not json"),
        ("masked", "update", b"nothing"),
        ("reveal", "revealed", b'{"masks":{},"seeds":{}}'),
        ("reveal", "revealed", b"[]"),
    ],
)
def test_one_hospitals_nonsense_is_refused_and_the_others_go_on(masked, stage, name, value):
    def altered(said, site, content):
        return content | {name: value} if (said, site) == (stage, "zurich") else content

    summed, refused = masked.attempt(masked.run(altered=altered))
    assert summed is not None
    assert ("zurich" in refused) is (stage != "reveal")


def test_a_wrong_share_does_not_spoil_the_sum(masked):
    def altered(stage, site, content):
        if (stage, site) != ("reveal", "zurich"):
            return content
        said = orjson.loads(content["revealed"])
        said["seeds"] = dict.fromkeys(said["seeds"], "00" * 33)
        return {"revealed": orjson.dumps(said, option=orjson.OPT_SORT_KEYS)}

    summed, _ = masked.attempt(masked.run(altered=altered))
    assert len(summed.receipts) == 4
