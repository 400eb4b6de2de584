"""Who was trained on cannot be told, by the strongest published attack on the shipped training."""

import sys
from pathlib import Path

import numpy as np
import pytest
from budget import FULL, budget

from coop.errors import InvariantError
from federated.membership import likelihood_ratios, success

generator = np.random.default_rng(7)


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch):
    """The benchmark's own attack, with as many shadows as a test may spend."""
    folder = Path(__file__).parent.parent / "benchmarks"
    path = [*sys.path]
    monkeypatch.setattr(sys, "path", [str(folder), *path])
    import attacks

    yield attacks
    for name in ("attacks", "rows"):
        sys.modules.pop(name, None)


def test_an_attack_on_models_that_remember_finds_who_was_in():
    members = generator.random((64, 200)) < 0.5
    confidences = generator.standard_normal((64, 200)) + 4.0 * members
    found = success(likelihood_ratios(confidences, members), members)
    assert found.auc > 0.99
    assert found.at_one_per_mille > 0.7


def test_an_attack_on_models_that_forget_is_a_coin():
    members = generator.random((64, 400)) < 0.5
    confidences = generator.standard_normal((64, 400))
    found = success(likelihood_ratios(confidences, members), members)
    assert found.auc == pytest.approx(0.5, abs=0.02)
    assert found.at_one_percent == pytest.approx(0.01, abs=0.006)


def test_a_shadow_never_testifies_about_itself():
    """One shadow with a wild confidence: its own fit must not have seen it."""
    members = np.tile(np.arange(16)[:, None] % 2 == 0, (1, 3))
    confidences = members + generator.standard_normal((16, 3)) / 10
    before = likelihood_ratios(confidences, members)
    wild = confidences.copy()
    wild[0] += 5.0
    after = likelihood_ratios(wild, members)
    slope = (after[0] - before[0]) / 5.0
    step = likelihood_ratios(np.vstack([confidences[:1] + 1.0, confidences[1:]]), members)
    assert np.allclose(step[0] - before[0], slope), "linear in its own confidence"


def test_models_that_all_agree_accuse_nobody():
    members = generator.random((16, 20)) < 0.5
    found = success(likelihood_ratios(np.ones((16, 20)), members), members)
    assert (found.auc, found.at_one_per_mille) == (0.5, 0.0)
    with pytest.raises(InvariantError, match="shadows"):
        likelihood_ratios(np.ones((4, 20)), members[:4])


def test_at_epsilon_one_the_attack_on_the_shipped_training_finds_hardly_anybody(attacks):
    """256 shadows know the rate to ±.0002; sixteen to ±.001."""
    found = attacks.attacked(1, budget(16, 256))
    assert found.everybody.at_one_per_mille <= (0.005 if FULL else 0.008)
    assert found.everybody.auc < 0.56
    assert found.odd.auc < 0.62
    assert found.accuracy > 0.85, "a useless model keeps every secret"
