"""A model that surely serves a subgroup below the floor the hospitals approved answers nothing."""

import dataclasses

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalogue import a_study, release_in
from test_rounds import commit, weights
from training_world import TrainingWorld, study_of

from coop import catalogue, remediation
from coop.canonical import document_digest
from coop.catalogue import RELEASED, RETIRED, Catalogue
from coop.db import Database
from coop.documents.study import Evaluation
from coop.documents.training import GroupMetric
from coop.economy import Economy
from coop.fairness import fairness
from coop.hub.release import Releases
from coop.model_card import model_card
from federated.run_tables import histograms_bytes

GROUPS = ["female", "male"]


def evaluation(floor: int | None) -> Evaluation:
    return Evaluation(fold_percent=20, bins=5, group_field="sex", groups=GROUPS, floor_micro=floor)


def metric(group: str, auc: int | None, sd: int | None = 10_000) -> GroupMetric:
    return GroupMetric(
        group=group, auc_micro=auc, auc_sd_micro=None if auc is None else sd, count_noised=90
    )


@pytest.mark.parametrize(
    ("female", "male", "verdict", "below"),
    [
        (metric("female", 720_000), metric("male", 720_000), "passed", []),
        (metric("female", 719_999), metric("male", 900_000), "uncertain", []),
        (metric("female", 680_000), metric("male", 900_000), "uncertain", []),
        (metric("female", 679_999), metric("male", 900_000), "below", ["female"]),
        (metric("female", 500_000), metric("male", 500_000), "below", ["female", "male"]),
        (metric("female", None), metric("male", 900_000), "uncertain", []),
        (metric("female", None), metric("male", 500_000), "below", ["male"]),
        (metric("female", 500_000, 100_000), metric("male", 900_000), "uncertain", []),
        (metric("all", 100_000), metric("hospital zurich", 100_000), "uncertain", []),
    ],
)
def test_only_what_noise_cannot_explain_is_below(female, male, verdict, below):
    said = fairness(evaluation(700_000), [female, male])
    assert (said.verdict, said.below, said.floor_micro) == (verdict, below, 700_000)


def test_a_study_without_a_floor_has_no_verdict():
    assert fairness(evaluation(None), [metric("female", 0), metric("male", 0)]) is None


@settings(max_examples=100)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=2), st.integers(0, 200_000))
def test_more_noise_never_turns_a_doubt_into_a_verdict(values, sd):
    groups = [metric(group, value, sd) for group, value in zip(GROUPS, values, strict=True)]
    louder = [metric(g, v, sd + 50_000) for g, v in zip(GROUPS, values, strict=True)]
    before = fairness(evaluation(700_000), groups).verdict
    after = fairness(evaluation(700_000), louder).verdict
    assert after in {before, "uncertain"}


@pytest.mark.parametrize(("auc", "state"), [(600_000, RETIRED), (690_000, RELEASED)])
def test_a_model_below_the_floor_is_out_of_use_and_every_card_says_why(
    sqlite_database: Database, auc: int, state: str
):
    hub = release_in(sqlite_database)
    study = a_study()
    strict = study.evaluation.model_copy(update={"groups": GROUPS, "floor_micro": 700_000})
    study = study.model_copy(update={"evaluation": strict})
    model_id = hub.release(
        order=dataclasses.replace(hub.order, digest="f" * 64),
        study=study,
        metrics=[metric("female", auc), metric("male", 900_000)],
    )
    with sqlite_database.unit_of_work() as connection:
        unfair = remediation.refuse_unfair(connection, hub.models, model_id)
        row = catalogue.model(connection, model_id)
    assert unfair == (state == RETIRED)
    assert row.state == state
    said = hub.bundle()["document"]["credentialSubject"]
    assert said["fairness"]["verdict"] == ("below" if unfair else "uncertain")
    card = {
        "title": study.title, "lay_summary": study.lay_summary, "state": row.state,
        "features": study.schema_.model_dump(mode="json"),
        "passport": {"document": {"credentialSubject": said}},
    }  # fmt: skip
    text = model_card(card)
    assert ("surely below it: female" in text) == unfair
    assert yaml.safe_load(text.split("---\n", 2)[1])["model-index"]


@pytest.mark.parametrize("floor", [None, 400_000, 700_000])
def test_the_hub_releases_no_model_that_is_surely_below_its_floor(
    sqlite_database: Database, floor: int | None
):
    world = TrainingWorld(sqlite_database)
    world.join("east")
    held = study_of().evaluation.model_copy(update={"floor_micro": floor})
    world.ready("east", evaluation=held)
    digest = document_digest(world.rounds.create("heart"))
    for _ in range(2):
        commit(world, digest, weights(1, 2))
    many = 1_000_000  # patients in each bin, far above the noise
    same, apart = [[many] * 10] * 2, [[many] * 5 + [0] * 5, [0] * 5 + [many] * 5]
    counted = np.array([same, apart], dtype=np.int64)  # female: no better than a coin
    commit(world, digest, histograms_bytes({"east": counted}))
    world.rounds.release(digest)
    models = Catalogue(world.journal, world.hub_key, lambda: world.now)
    economy = Economy(sqlite_database, world.journal, world.hub_key, lambda: world.now)
    releases = Releases(
        sqlite_database, world.journal, world.rounds, models, economy, lambda: world.now
    )
    for _ in range(2):  # a crash after it repeats it
        releases.release(digest)
    with sqlite_database.reading() as connection:
        (row,) = catalogue.models(connection)
        said = world.journal.document(connection, row.passport_digest)["credentialSubject"]
    assert row.state == (RETIRED if floor == 700_000 else RELEASED)
    assert said.get("fairness", {}).get("below", []) == (["female"] if floor == 700_000 else [])
    (female,) = [metric for metric in said["metrics"] if metric["group"] == "female"]
    assert female["auc_micro"] == pytest.approx(500_000, abs=1000)
    assert female["calibration_micro"] == pytest.approx(0, abs=1000)
