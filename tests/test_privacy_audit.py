"""The audit notices noise that is too small, believes noise that is right, and says what it can."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from budget import budget
from gateway_world import WEIGHTS, World, onnx_of
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import served
from typer.testing import CliRunner

from coop.cli import app
from coop.cli.audit import ClaimRefutedError
from coop.db import Database
from coop.documents.study import Study
from coop.studyfile import load_study
from federated.accounting import epsilon_of_mu, plan, rho_nano_of
from federated.data import SITES, csv_of
from federated.privacy_audit import (
    GUESSES,
    Claim,
    Guessed,
    WrongCanariesError,
    guesses,
    judge,
    one_run_epsilon,
    one_run_mu,
    one_run_p,
    refutes_mu,
)
from federated.shadow import audit, release_of, report
from federated.simulate import SplitRule, load, with_epsilon

BENCHMARK = Path(__file__).parent.parent / "examples" / "heart-disease" / "study.yaml"
DELTA = 1e-5


@pytest.fixture(scope="module")
def training():
    study = Study.model_validate(load_study(BENCHMARK))
    data, _ = load(study, {site: csv_of(site) for site in SITES}, SplitRule.AUTO)
    return study, {site: part.train for site, part in data.items()}


@pytest.mark.parametrize(
    ("canaries", "made", "right", "epsilon", "mu"),
    [
        (1000, 100, 90, 1.626, 0.596),
        (1000, 1000, 1000, 5.782, 2.368),
        (1000, 200, 150, 0.820, 0.337),
    ],
)
def test_the_bounds_are_those_of_the_reference(canaries, made, right, epsilon, mu):
    """privacy.md §6, p = .05, delta = 1e-5."""
    guessed = Guessed(made=made, right=right)
    assert one_run_epsilon(canaries, guessed, DELTA, 0.05) == pytest.approx(epsilon, abs=1e-3)
    assert one_run_mu(canaries, guessed, 0.05) == pytest.approx(mu, abs=1e-3)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_on_an_honest_gaussian_no_bound_is_above_the_truth(mu: float):
    generator = np.random.default_rng(round(10 * mu))
    epsilon = epsilon_of_mu(mu, DELTA)
    bounds = []
    for _ in range(budget(5, 60)):
        members = generator.random(1000) < 0.5
        found = guesses(members * mu + generator.standard_normal(1000), members)
        level = 0.05 / len(GUESSES)
        bounds.append(max(one_run_mu(1000, one, level) for one in found))
        assert bounds[-1] <= mu
        assert max(one_run_epsilon(1000, one, DELTA, level) for one in found) <= epsilon
    assert np.mean(bounds) > mu / 4, "true but empty"


@given(st.integers(1, 100), st.data())
@settings(max_examples=budget(40, 400))
def test_more_right_guesses_never_refute_less(right: int, data):
    """The bisections of the bounds and of the power rest on this."""
    epsilon, mu = data.draw(st.floats(0, 5)), data.draw(st.floats(0, 3))
    more = Guessed(made=100, right=right)
    less = Guessed(made=100, right=data.draw(st.integers(0, right)))
    smaller = data.draw(st.floats(0, 1))
    assert one_run_p(500, more, epsilon, DELTA) <= one_run_p(500, less, epsilon, DELTA) + 1e-9
    assert (
        one_run_p(500, more, epsilon * smaller, DELTA)
        <= one_run_p(500, more, epsilon, DELTA) + 1e-9
    )
    if refutes_mu(mu, 500, less, 0.01):
        assert refutes_mu(mu, 500, more, 0.01)
        assert refutes_mu(mu * smaller, 500, less, 0.01)


def test_guesses_are_the_extremes():
    scores = np.arange(40.0)
    found = guesses(scores, scores >= 20)
    assert found == [Guessed(made=20, right=20)]
    assert guesses(scores, scores < 20) == [Guessed(made=20, right=0)]
    assert one_run_p(40, Guessed(made=20, right=0), 0.0, DELTA) == 1


def run(training, factor: float, *, mode: str = "A", runs: int = 2, canaries: int = 1000):
    """Audit the shipped step with its noise secretly multiplied."""
    study, matrices = training
    honest = 3 if mode == "B" else 1
    recipe = study.recipe.model_copy(update={"mode": mode, "honest": honest})
    study = study.model_copy(update={"recipe": recipe})
    split = plan(study.budget, recipe.schedule)
    sigma = int(split.training_sigma_micro * factor)
    broken = replace(split, training_sigma_micro=sigma, rho_round_nano=rho_nano_of(sigma))
    return study, audit(
        study,
        matrices,
        epsilon=split.training_epsilon,
        canaries=canaries,
        runs=runs,
        generator=np.random.default_rng(),
        release=None if factor == 1 else release_of(study, broken),
    )


def test_the_shipped_training_is_not_refuted_and_the_attack_is_as_good_as_any(training):
    _, done = run(training, 1)
    assert not done.finding.refuted
    assert done.finding.epsilon_min < 1
    # 2000 canaries know an AUC to ±.013; a blunt attack would find nothing and prove nothing.
    assert done.finding.attack_auc == pytest.approx(done.finding.best_auc, abs=0.06)
    assert done.finding.catches in (0.3, 0.4)


@pytest.mark.parametrize("factor", [0.3, 0.1])
def test_noise_that_is_too_small_is_caught(training, factor: float):
    _, done = run(training, factor)
    assert done.finding.refuted
    assert max(done.finding.epsilon_min, epsilon_of_mu(done.finding.mu_min, DELTA)) > 1


def test_shares_of_the_noise_that_are_too_small_are_caught(training):
    study, done = run(training, 0.1, mode="B", runs=1, canaries=400)
    assert done.finding.refuted
    assert sorted(done.patients) == ["budapest", "cleveland", "longbeach"], "the fourth colludes"
    assert report(study, done)["adversary"] == (
        "mode B: holds if 3 hospitals of every sum are honest"
    )


def test_shares_of_the_noise_as_shipped_are_not_refuted(training):
    _, done = run(training, 1, mode="B", runs=1, canaries=budget(100, 2000))
    assert not done.finding.refuted


@pytest.mark.parametrize(("canaries", "runs"), [(19, 1), (4001, 1), (100, 0), (100, 26)])
def test_what_proves_nothing_or_takes_too_much_is_refused(training, canaries: int, runs: int):
    study, matrices = training
    with pytest.raises(WrongCanariesError):
        audit(
            study,
            matrices,
            epsilon=1,
            canaries=canaries,
            runs=runs,
            generator=np.random.default_rng(),
        )


def test_scores_that_say_nothing_are_refused():
    claim = Claim(mu=1, epsilon=4, delta=DELTA)
    members = np.arange(100) < 50
    for scores, coins in (
        (np.full(100, np.nan), members),
        (np.zeros(99), members),
        (np.zeros(100), members | True),
        (np.zeros(10), members[:10]),
    ):
        with pytest.raises(WrongCanariesError):
            judge(claim, scores, coins, np.random.default_rng())


def test_an_audit_that_could_catch_nothing_says_so():
    """Of 20 canaries, all guessed right, not even epsilon 10 is refuted."""
    members = np.arange(20) < 10
    claim = Claim(mu=2, epsilon=epsilon_of_mu(2, DELTA), delta=DELTA)
    found = judge(claim, members * 100.0, members, np.random.default_rng(1))
    assert found.guessed == [Guessed(made=20, right=20)]
    assert found.catches is None
    assert not found.refuted


def cli(*arguments: str):
    return CliRunner().invoke(app, ["audit", "privacy", *arguments])


def test_the_commands_document_holds_every_input_and_recomputes():
    done = cli(str(BENCHMARK), "--runs", "2", "--canaries", "500", "--epsilon", "3", "--json")
    assert done.exit_code == 0, done.output
    said = orjson.loads(done.stdout)
    assert (said["canaries"], said["runs"], said["refuted"]) == (1000, 2, False)
    assert said["claimed_epsilon"] == pytest.approx(3, rel=1e-3)
    assert said["patients"]["cleveland"] == 199
    assert set(said["files"]) == set(SITES)
    assert said["recipe"]["rounds"] == 20
    level = 0.05 / (2 * len(said["guesses"]))
    found = [Guessed(**one) for one in said["guesses"]]
    again = max(one_run_epsilon(1000, one, said["delta"], level) for one in found)
    assert again == pytest.approx(said["epsilon_lower_bound"])
    assert max(one_run_mu(1000, one, level) for one in found) == pytest.approx(
        said["mu_lower_bound"]
    )


def test_the_command_says_in_words_what_it_would_have_caught():
    done = cli(str(BENCHMARK), "--runs", "1")
    assert done.exit_code == 0, done.output
    assert "would have caught noise x 0.3 or less" in done.stdout
    assert "lower bound  epsilon" in done.stdout
    assert "rare code" in done.stdout
    few = cli(str(BENCHMARK), "--runs", "1", "--canaries", "20").stdout
    assert "power        none" in few or "x 0.01 or less" in few


def test_a_model_whose_passport_claims_too_little_is_refuted(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
):
    study = with_epsilon(Study.model_validate(load_study(BENCHMARK)), 3)
    world = World(sqlite_database, study=study)
    world.release(onnx_of(WEIGHTS), model_id="boastful", training_epsilon_micro=200_000)
    with served(world.app()) as port:
        monkeypatch.setenv("COOP_HUB_URL", f"http://127.0.0.1:{port}")
        done = cli("boastful", "--runs", "2", "--json")
        wrong_usage = cli("boastful", "--epsilon", "1")
        unknown = cli("nobody")
    assert isinstance(done.exception, ClaimRefutedError)
    assert done.exit_code == 1
    said = orjson.loads(done.stdout)
    assert (said["model_id"], said["claimed_epsilon"], said["refuted"]) == ("boastful", 0.2, True)
    assert wrong_usage.exit_code == 2
    assert unknown.exit_code == 1
