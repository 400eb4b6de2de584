"""Real processes, killed in the middle: nothing is lost, nothing is charged twice, it goes on."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
import safetensors.numpy
import sqlalchemy as sa
from budget import budget
from real_house import Faulty, accepted, open_faulty, wait_for

from coop.client import Client, RemoteError
from coop.demo.identity import Persona
from coop.documents.study import Study
from coop.features import columns
from coop.journal.store import signed_document
from federated.answers import answer as answer_table
from federated.budget import cohort_of, debit, debit_pid
from federated.integer_noise import to_numbers
from federated.models import from_safetensors, initial, to_safetensors
from federated.run_tables import round_checkpoint
from federated.step import apply_round

pytestmark = [pytest.mark.flow, pytest.mark.timeout(900)]
QUORUM = 3


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    opened = open_faulty(tmp_path_factory.mktemp("faults") / "house")
    try:
        yield opened
    finally:
        opened.house.close()


MODE_B = {"mode": "B", "honest": 3}


@pytest.mark.parametrize("recipe", budget([MODE_B], [{}, MODE_B]), ids=str)
def test_a_hospital_killed_in_a_round_is_done_without_and_rejoins(faulty: Faulty, recipe: dict):
    order = faulty.train(rounds=8, **recipe)
    faulty.await_round(order, 2)
    faulty.kill_node("zurich")
    run = faulty.finish(order)
    assert run["state"] == "finished"
    took = accepted(run)
    assert took[0] == {"budapest", "cleveland", "longbeach", "zurich"}
    assert all(len(sites) >= QUORUM for sites in took)
    assert "zurich" not in took[-1]
    faulty.start_node("zurich")
    _model_is_the_sum_of_what_the_hospitals_stored(faulty, order, run)
    again = faulty.train(rounds=2, **recipe)
    after = faulty.finish(again)
    assert after["state"] == "finished"
    assert "zurich" in accepted(after)[-1]
    charged = faulty.debits("zurich", order)
    assert len(charged) == len(set(charged))
    assert faulty.debits("zurich", again) == [1, 2, 3]


@pytest.mark.parametrize("recipe", budget([{}], [{}, MODE_B]), ids=str)
def test_a_hub_killed_in_a_round_resumes_and_nothing_is_debited_twice(faulty: Faulty, recipe: dict):
    kills = budget(1, 10)
    rounds = kills + 5
    order = faulty.train(rounds=rounds, **recipe)
    for kill in range(kills):
        faulty.await_round(order, kill + 1)
        # Anywhere in the next round: asked, answered, summed or recorded.
        time.sleep(secrets.randbelow(1000) / 1000)
        faulty.kill_hub()
        faulty.house.start_hub()
    run = faulty.finish(order, 300)
    assert run["state"] == "finished"
    assert len(run["records"]) == rounds + 1
    _every_answer_was_charged_once(faulty, order, run)
    _model_is_the_sum_of_what_the_hospitals_stored(faulty, order, run)


def test_a_superlink_killed_in_a_round_is_started_again_and_nothing_is_debited_twice(
    faulty: Faulty,
):
    order = faulty.train(rounds=6)
    faulty.await_round(order, 2)
    faulty.kill_superlink()
    run = faulty.finish(order)
    assert run["state"] == "finished"
    assert len(run["records"]) == 7
    _every_answer_was_charged_once(faulty, order, run)
    assert faulty.house.hub is not None
    assert faulty.house.hub.process.poll() is None
    _model_is_the_sum_of_what_the_hospitals_stored(faulty, order, run)


def _every_answer_was_charged_once(faulty: Faulty, order: str, run: dict) -> None:
    """No round twice; a hospital whose answer came too late has paid, and is not in the sum.

    Whose Flower beat lapses while the hub is away may miss rounds: the quorum does not wait.
    """
    took = accepted(run)
    assert all(len(sites) >= QUORUM for sites in took)
    for name in faulty.house.hospitals:
        charged = faulty.debits(name, order)
        assert len(charged) == len(set(charged)), name
        assert {number for number, sites in enumerate(took, start=1) if name in sites} <= {*charged}


def test_a_withdrawal_while_a_hospital_computes_discards_what_it_computed(faulty: Faulty):
    order = faulty.train(rounds=20)
    paid, round_, leaving = _withdraw_while_it_computes(faulty, "cleveland", order)
    faulty.await_round(order, round_)
    record = faulty.run(order)["records"][round_ - 1]["credentialSubject"]
    faulty.house.researcher_client.delete(f"/v1/rounds/{order}")
    site = faulty.site("cleveland")
    with site.database.reading() as connection:
        lost = connection.execute(
            sa.select(answer_table).where(answer_table.c.debit_sequence == paid)
        ).one()
        debits = connection.execute(
            sa.select(debit.c.sequence)
            .where(debit.c.order_sha256 == order, debit.c.round == round_)
            .order_by(debit.c.sequence)
        ).scalars()
        (first, again) = list(debits)
        hers = set(
            connection.execute(
                sa.select(debit_pid.c.sequence).where(debit_pid.c.pid == leaving)
            ).scalars()
        )
    site.close()
    # The draw is charged, its answer is gone, and the round was drawn again without her.
    assert first == paid == max(hers)
    assert (lost.state, lost.body, lost.document) == ("discarded", None, None)
    (receipt,) = (e["receipt_sha256"] for e in record["accepted"] if e["site"] == "cleveland")
    receipts = _receipts_of(faulty, "cleveland")
    assert receipts[receipt]["debit_sequence"] == again
    assert paid not in {said["debit_sequence"] for said in receipts.values()}


def _withdraw_while_it_computes(faulty: Faulty, name: str, order: str) -> tuple[int, int, str]:
    """Hold a hospital's database between a debit and its answer, and withdraw meanwhile.

    The hospital computes and waits to store what it computed: no hook in it, only a slow disk.
    Returns the debit, its round and a patient of its cohort, who has withdrawn.
    """
    granted = (
        sa.select(debit.c.sequence, debit.c.round)
        .join(answer_table, answer_table.c.debit_sequence == debit.c.sequence)
        .where(debit.c.order_sha256 == order, answer_table.c.state == "granted")
    )
    site = faulty.site(name)
    try:
        with faulty.house.signed_in("rui") as staff:  # of this hospital
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with site.database.unit_of_work() as connection:
                    drawn = connection.execute(granted).one_or_none()
                    if drawn is not None:
                        leaving = min(cohort_of(connection, drawn.sequence))
                        staff.post(f"/v1/consents/{leaving}/revoke")
                        return drawn.sequence, drawn.round, leaving
                time.sleep(0.002)
    finally:
        site.close()
    pytest.fail("the hospital was never seen between a debit and its answer")


def _receipts_of(faulty: Faulty, name: str) -> dict[str, dict]:
    """Every round receipt of one hospital that the hub ever took, by digest."""
    database = faulty.hub_database()
    with database.reading() as connection:
        query = sa.select(signed_document.c.digest, signed_document.c.body).where(
            signed_document.c.kind == "round-receipt"
        )
        rows = connection.execute(query).all()
    database.close()
    said = {row.digest: orjson.loads(row.body)["credentialSubject"] for row in rows}
    return {digest: receipt for digest, receipt in said.items() if receipt["site"] == name}


def _model_is_the_sum_of_what_the_hospitals_stored(faulty: Faulty, order: str, run: dict) -> None:
    """Every checkpoint recomputed from the nodes' own stored answers, bit for bit."""
    database = faulty.hub_database()
    with database.reading() as connection:
        states = connection.execute(
            sa.select(round_checkpoint.c.state)
            .where(round_checkpoint.c.order_sha256 == order, round_checkpoint.c.phase == "train")
            .order_by(round_checkpoint.c.round)
        ).scalars()
        kept = [bytes(state) for state in states]
        query = sa.select(signed_document.c.body).where(
            signed_document.c.digest == run["order"]["credentialSubject"]["study_sha256"]
        )
        document = connection.execute(query).scalar_one()
    database.close()
    study = Study.model_validate(orjson.loads(document)["credentialSubject"])
    size = len(columns(study.schema_))
    weights = initial(size)
    sites = {name: faulty.site(name) for name in faulty.house.hospitals}
    registered = {}
    if study.recipe.aggregation != "sum":
        with faulty.house.public() as client:
            made = client.get("/v1/models")["models"]
            (model,) = [m["model_id"] for m in made if m["order_sha256"] == order]
            passport = client.get(f"/v1/models/{model}")["passport"]["document"]
        registered = passport["credentialSubject"]["hospital_weights"]
    for number, (state, took) in enumerate(zip(kept, accepted(run)[:-1], strict=True), start=1):
        updates = {}
        for name in took:
            with sites[name].database.reading() as connection:
                body = connection.execute(
                    sa.select(answer_table.c.body).where(
                        answer_table.c.key.like(f"round:{order}:train:{number}:%"),
                        answer_table.c.state == "stored",
                    )
                ).scalar_one()
            if study.recipe.mode == "A":
                updates[name] = from_safetensors(bytes(body), size)
            else:
                updates[name] = safetensors.numpy.load(bytes(body))["integers"]
        if study.recipe.mode == "B":
            total = np.sum(list(updates.values()), axis=0, dtype=np.int64)
            numbers = to_numbers(total.view(np.uint64)).astype(np.float32)
            updates = {"sum": {"weight": numbers}}
        weights = apply_round(weights, updates, study.recipe, registered)
        assert to_safetensors(weights) == state, f"round {number}"
    for site in sites.values():
        site.close()


def test_a_node_that_restarts_while_the_hub_is_down_comes_back_by_itself(faulty: Faulty):
    faulty.kill_hub()
    faulty.kill_node("budapest")
    faulty.start_node("budapest")
    faulty.house.start_hub()
    # It may miss the first run, which goes on with the quorum, while its SuperNode reconnects.
    for _ in range(3):
        run = faulty.finish(faulty.train(rounds=2))
        assert run["state"] == "finished"
        if "budapest" in accepted(run)[-1]:
            break
    assert "budapest" in accepted(run)[-1]


def test_without_credits_the_answer_is_402_and_says_what_is_missing(faulty: Faulty):
    run = faulty.finish(faulty.train(rounds=2))
    with faulty.house.public() as client:
        models = client.get("/v1/models")["models"]
        model = next(m for m in models if m["order_sha256"] == run["order_sha256"])
        purpose = client.get(f"/v1/models/{model['model_id']}")["purpose"]
    provider = faulty.house.provider
    provider.personas["nia"] = Persona(
        name="nia", subject=secrets.token_hex(8), passphrase="x", roles=("researcher",)
    )
    with faulty.house.signed_in("nia") as session:
        key = session.post("/v1/api-keys", {"label": "no credits"})["key"]
    body = {"inputs": [{"name": "age_years", "datatype": "FP64", "shape": [1], "data": [50.0]}]}
    headers = {"Coop-Study": model["study_id"], "Coop-Purpose": purpose}
    path = f"/v2/models/{model['model_id']}/infer"
    with (
        Client(faulty.house.hub_url, faulty.house.ca_file, token=key) as poor,
        pytest.raises(RemoteError) as refusal,
    ):
        poor.respond("POST", path, body, headers)
    assert refusal.value.status == 402
    assert refusal.value.code == "ledger.insufficient-credits"
    assert refusal.value.problem["missing_nano"] == 50_000_000


def test_a_run_waits_for_hospitals_that_train_at_other_hours_and_its_follower_reads_so(
    faulty: Faulty,
):
    closed = {"hours": [_other_hours(time.time())], "zone": "UTC"}
    for name in ("zurich", "budapest"):
        faulty.house.hospitals[name].node.put("/local/v1/windows", closed)
    study = faulty.ready(rounds=2, aggregation="trimmed-mean")
    researcher = {**faulty.house.environment(), "COOP_API_KEY": faulty.house.session("mei")}
    shown = _coop(researcher, "study", "show", study).communicate(timeout=60)[0]
    assert "approval missing: nobody" in shown
    following = _coop(researcher, "study", "train", study, "--version", str(faulty.versions))
    with faulty.house.public() as client:

        def newest() -> dict:
            runs = client.get("/v1/rounds", study_id=study)["runs"]
            return max(runs, key=lambda run: run["version"], default={})

        wait_for(lambda: newest().get("version") == faulty.versions and newest()["waiting"], 90)
        run = newest()
    order = run["order_sha256"]
    assert run["waiting"] == dict.fromkeys(("budapest", "zurich"), "node.outside-hours")
    assert (run["state"], run["error"]) == ("running", "training.waiting-for-sites")
    assert faulty.debits("zurich", order) == []
    for name in ("zurich", "budapest"):
        faulty.house.hospitals[name].node.put("/local/v1/windows", {"hours": [], "zone": "UTC"})
    said, _ = following.communicate(timeout=120)
    assert following.returncode == 0, said
    lines = said.splitlines()
    closed_line = "budapest (trains at other hours), zurich (trains at other hours)"
    assert f"waiting for {closed_line}" in lines
    rounds = [line for line in lines if "4 of 4 hospitals" in line]
    assert [line.split("   ")[0].strip() for line in rounds] == [
        "round 1 of 2",
        "round 2 of 2",
        "evaluation",
    ]
    spent = [float(line.split("epsilon ")[1].split()[0]) for line in rounds]
    assert 0 < spent[0] < spent[1] < spent[2] <= 1
    assert any(line.startswith("model ") for line in lines)
    run = faulty.run(order)
    assert (run["state"], run["waiting"]) == ("finished", {})
    assert all(faulty.debits(name, order) == [1, 2, 3] for name in faulty.house.hospitals)
    # The rule over all four, weighed by registered consents, bit for bit.
    _model_is_the_sum_of_what_the_hospitals_stored(faulty, order, run)


def _coop(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    program = Path(sys.executable).parent / "coop"
    inherited = {"PATH": os.defpath, **environment}
    return subprocess.Popen(
        [program, *command],
        env=inherited,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _other_hours(now: float) -> str:
    """A window of an hour, half a day from now."""
    hour = (time.gmtime(now).tm_hour + 12) % 24
    return f"{hour:02}:00-{(hour + 1) % 24:02}:00"
