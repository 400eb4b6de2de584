"""One patient moves a hospital's answer by at most C, and the noise on it is exactly sigma C."""

import numpy as np
import pytest
import torch
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coop.errors import InvariantError
from coop.families.logistic import WEIGHT
from federated import private_training
from federated.models import WrongWeightsError, initial
from federated.private_training import private_gradient, unsafe_gradient_without_noise

CLIP = 0.5
rng = np.random.default_rng(5)
X = rng.normal(size=(60, 6)).astype(np.float32)
Y = (rng.random(60) > 0.5).astype(np.float32)
W = {WEIGHT: rng.normal(size=6).astype(np.float32)}
EMPTY = (np.zeros((0, 6), np.float32), np.zeros(0, np.float32))


def by_hand(w, x, y, clip: float) -> np.ndarray:
    residual = 1 / (1 + np.exp(-(x.astype(float) @ w[WEIGHT].astype(float)))) - y
    norms = np.abs(residual) * np.linalg.norm(x.astype(float), axis=1)
    return (residual * np.minimum(1, clip / np.maximum(norms, 1e-12))) @ x


def test_the_sum_is_the_clipped_gradient_of_the_log_loss():
    for clip in (0.1, CLIP, 100.0):
        ours = unsafe_gradient_without_noise(W, X, Y, clip=clip)[WEIGHT]
        assert np.allclose(ours, by_hand(W, X, Y, clip), atol=1e-4)


numbers = st.floats(-1e4, 1e4, width=32)


@given(
    st.lists(st.tuples(st.tuples(*[numbers] * 4), st.booleans()), min_size=1, max_size=8),
    st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4),
    st.sampled_from([0.01, 0.5, 3.0]),
    st.data(),
)
@settings(max_examples=budget(60, 500))
def test_removing_one_patient_changes_the_sum_by_at_most_c(patients, weights, clip, data):
    x = np.array([row for row, _ in patients], np.float32)
    y = np.array([outcome for _, outcome in patients], np.float32)
    w = {WEIGHT: np.array(weights, np.float32)}
    gone = data.draw(st.integers(0, len(x) - 1))
    whole = unsafe_gradient_without_noise(w, x, y, clip=clip)[WEIGHT].astype(float)
    without = unsafe_gradient_without_noise(
        w, np.delete(x, gone, axis=0), np.delete(y, gone), clip=clip
    )[WEIGHT].astype(float)
    assert np.linalg.norm(whole - without) <= clip * (1 + 1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    whole = unsafe_gradient_without_noise(W, X, Y, clip=CLIP)[WEIGHT]
    for size in (1, 7, 60):
        monkeypatch.setattr(private_training, "_CHUNK", size)
        assert np.allclose(
            unsafe_gradient_without_noise(W, X, Y, clip=CLIP)[WEIGHT], whole, atol=1e-5
        )


@pytest.mark.parametrize("sigma", [0.7, 16.68])
def test_the_noise_is_sigma_c_in_every_coordinate(sigma: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(private_training, "_CHUNK", 25)  # noise comes once, not once a chunk
    exact = by_hand(W, X, Y, CLIP)
    draws = budget(1000, 5000)
    noise = np.array(
        [private_gradient(W, X, Y, clip=CLIP, sigma=sigma)[WEIGHT] - exact for _ in range(draws)]
    )
    # 1000 draws of 6 numbers: the deviation is known to 0.9 %; 4 of those are allowed.
    assert abs(noise.std() / (sigma * CLIP) - 1) < 4 / np.sqrt(2 * noise.size)
    assert stats.kstest(noise.ravel() / (sigma * CLIP), "norm").pvalue > 1e-4
    correlations = np.corrcoef(noise.T)[~np.eye(6, dtype=bool)]
    assert np.abs(correlations).max() < 5 / np.sqrt(draws)


def test_no_patients_give_pure_noise():
    noise = np.array(
        [private_gradient(W, *EMPTY, clip=CLIP, sigma=4.0)[WEIGHT] for _ in range(200)]
    )
    assert abs(noise.std() / (4.0 * CLIP) - 1) < 0.1
    assert abs(noise.mean()) < 0.25
    assert not unsafe_gradient_without_noise(W, *EMPTY, clip=CLIP)[WEIGHT].any()


def test_the_same_question_twice_gets_different_noise_whatever_the_seed():
    answers = []
    for _ in range(2):
        torch.manual_seed(11)
        answers.append(private_gradient(W, X, Y, clip=CLIP, sigma=10.0)[WEIGHT])
    # Common noise would cancel out and leave nothing but rounding (privacy.md §3).
    assert np.linalg.norm(answers[0] - answers[1]) > 1


def test_the_answer_lies_on_a_public_grid_far_below_the_noise():
    answer = private_gradient(W, X, Y, clip=CLIP, sigma=10.0)[WEIGHT].astype(float)
    grid = 2.0**-8  # sigma C = 5: floor(log2 5) - 10
    assert np.array_equal(np.round(answer / grid) * grid, answer)
    assert grid < 5 / 500


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_without_noise_nothing_is_computed(sigma: float):
    with pytest.raises(InvariantError, match="sigma"):
        private_gradient(W, X, Y, clip=CLIP, sigma=sigma)


def test_a_patient_that_is_no_number_never_reaches_the_sum():
    bad = X.copy()
    bad[3, 2] = np.nan
    for x, y, clip in ((bad, Y, CLIP), (X, Y[:-1], CLIP), (X, Y + 0.5, CLIP), (X, Y, 0.0)):
        with pytest.raises(InvariantError):
            private_gradient(W, x, y, clip=clip, sigma=1.0)


def test_hostile_weights_are_refused_before_any_row_is_read():
    huge = np.full(6, 1e30, np.float32)
    for weights in ({WEIGHT: huge}, {WEIGHT: huge * np.nan}, initial(5), {"other": W[WEIGHT]}, {}):
        with pytest.raises(WrongWeightsError):
            private_gradient(weights, X, Y, clip=CLIP, sigma=1.0)


def test_the_raw_gradient_of_one_patient_does_not_survive_the_noise():
    """Without noise a lone patient's features stand in the answer, up to a factor."""
    lone = (X[:1], Y[:1])
    raw = unsafe_gradient_without_noise(W, *lone, clip=CLIP)[WEIGHT]
    assert abs(_cosine(raw, X[0])) > 0.999
    seen = [
        abs(_cosine(private_gradient(W, *lone, clip=CLIP, sigma=16.68)[WEIGHT], X[0]))
        for _ in range(100)
    ]
    assert np.mean(seen) < 0.5  # a random direction in six dimensions has .34


def _cosine(a, b) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
