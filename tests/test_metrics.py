"""AUC, accuracy and Brier score of noised histograms, and how far the noise may have moved them."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from federated.metrics import (
    MEANINGLESS_SD,
    accuracy,
    auc,
    brier,
    calibration,
    estimate,
    measure,
)

GROUPS = ["female", "male"]
counts = arrays(np.float64, (2, 4), elements=st.integers(0, 30)).filter(
    lambda cells: cells.sum(axis=1).all()
)


def rng():
    return np.random.default_rng(7)


def truth(n=4000):
    """[2, 2, 5] counts of a useful score with n patients."""
    shape = np.array([[[0.5, 0.25, 0.13, 0.08, 0.04], [0.05, 0.1, 0.15, 0.3, 0.4]]] * 2)
    return np.round(shape * n / 4)


@given(counts)
def test_auc_equals_the_pairs_counted_one_by_one(cells):
    pairs = [
        (1.0 if high > low else 0.5 if high == low else 0.0, cells[1][high] * cells[0][low])
        for high, low in itertools.product(range(4), repeat=2)
    ]
    expected = sum(value * weight for value, weight in pairs) / (cells[0].sum() * cells[1].sum())
    assert auc(cells) == pytest.approx(expected)
    assert auc(cells) + auc(cells[::-1]) == pytest.approx(1)


def test_accuracy_and_brier_of_a_known_table():
    cells = np.array([[6.0, 2.0], [1.0, 3.0]])  # bins [0, .5) and [.5, 1]
    assert accuracy(cells) == pytest.approx(9 / 12)
    assert brier(cells) == pytest.approx((9 * 0.25**2 + 3 * 0.75**2) / 12)
    assert calibration(cells) == pytest.approx((7 * 0.25 + 5 * 0.75 - 4) / 12)
    assert calibration(np.array([[3.0, 0.0], [1.0, 0.0]])) == pytest.approx(0)  # a quarter each
    assert accuracy(np.array([[0.0, 4.0, 0.0], [0.0, 4.0, 0.0]])) == pytest.approx(0.5)


def test_without_noise_the_metrics_are_exact():
    pooled, *groups = measure(truth(), GROUPS, noise_sd=0, generator=rng())
    assert pooled.group == "all"
    assert [row.group for row in groups] == GROUPS
    assert pooled.auc_micro == round(auc(truth().sum(axis=0)) * 1e6)
    assert (pooled.auc_sd_micro, pooled.count_noised) == (0, 4000)


@pytest.mark.parametrize(("patients", "noise_sd"), [(4000, 2), (4000, 20), (276, 8), (276, 12)])
def test_noise_moves_the_metrics_by_about_the_stated_spread(patients, noise_sd):
    exact, misses = truth(patients)[0] * 2, defaultdict(list)
    for seed in range(budget(25, 400)):
        noise = np.random.default_rng(seed)
        cells = exact + noise.normal(0, noise_sd, (2, 5))
        for metric in (auc, accuracy, brier, calibration):
            found = estimate(cells, metric, noise_sd, noise, least=-1.0)
            if found is not None:
                misses[metric.__name__].append((found[0] - metric(exact)) / found[1])
    assert len(misses["auc"] + misses["accuracy"]) > budget(45, 700)
    for name, each in misses.items():
        assert 0.4 < np.std(each) < 1.5, name
        assert abs(np.mean(each)) < 0.8, name


def test_figures_that_noise_drowns_are_left_out():
    noise = rng()
    drowned = truth(40) + noise.normal(0, 200, (2, 2, 5))
    for row in measure(drowned, GROUPS, noise_sd=200, generator=noise):
        assert row.auc_micro is None or (row.auc_sd_micro or 0) < MEANINGLESS_SD * 1e6
        assert row.count_noised >= 0
    nobody = measure(np.zeros((2, 2, 5)), GROUPS, noise_sd=5, generator=noise)
    figures = ("auc_micro", "accuracy_micro", "brier_micro", "calibration_micro")
    assert all(getattr(row, name) is None for row in nobody for name in figures)


@settings(max_examples=budget(25, 300))
@given(arrays(np.float64, (2, 2, 5), elements=st.floats(-500, 500)), st.floats(0, 100))
def test_any_noised_histogram_gives_figures_within_zero_and_one(cells, noise_sd):
    for row in measure(cells, GROUPS, noise_sd=noise_sd, generator=rng()):
        for value in (row.auc_micro, row.accuracy_micro, row.brier_micro):
            assert value is None or 0 <= value <= 10**6
        assert row.calibration_micro is None or abs(row.calibration_micro) <= 10**6


def test_the_same_public_seed_gives_the_same_figures():
    cells = truth() + rng().normal(0, 10, (2, 2, 5))
    once = measure(cells, GROUPS, noise_sd=10, generator=rng())
    assert once == measure(cells, GROUPS, noise_sd=10, generator=rng())
