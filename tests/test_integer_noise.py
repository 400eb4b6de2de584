"""Mode B's numbers: what one patient can change, and how much noise the sum has."""

import numpy as np
import pytest
from budget import budget
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coop.documents.study import MICRO
from coop.errors import InvariantError
from federated.accounting import rho_nano_of
from federated.integer_noise import (
    FRACTION_BITS,
    fits,
    noised_sum,
    sensitivity,
    share_sigma_micro,
    to_numbers,
)
from federated.private_training import clipped_gradients, unsafe_gradient_without_noise

CLIP = 500_000
SIGMA = 16_680_000


def summed(lines, **changes):
    said = {"clip_micro": CLIP, "sigma_micro": SIGMA, "honest": 3, "rho_nano": rho_nano_of(SIGMA)}
    return noised_sum(lines, lines[0].shape[1], **{**said, **changes})


@given(sigma=st.integers(1, 10**10), honest=st.integers(1, 50))
def test_the_shares_of_the_honest_add_up_to_the_whole_noise_and_no_less(sigma, honest):
    share = share_sigma_micro(sigma, honest)
    assert share * share * honest >= sigma * sigma > (share - 1) ** 2 * honest


@pytest.mark.parametrize("honest", [3, 4, 7])
def test_the_noise_of_h_hospitals_has_the_ordered_deviation(honest):
    """Within 1 % in the full budget, and normal by Kolmogorov and Smirnov."""
    draws, length = budget(40, 1200), 50
    nothing = [np.zeros((0, length))]
    found = np.concatenate(
        [
            np.sum([summed(nothing, honest=honest) for _ in range(honest)], axis=0)
            for _ in range(draws)
        ]
    )
    wanted = SIGMA / MICRO * sensitivity(CLIP, length)
    tolerance = 4 / np.sqrt(2 * len(found))
    assert abs(found.std() / wanted - 1) < tolerance
    assert stats.kstest(found / wanted, "norm").pvalue > 1e-6


def test_the_integers_are_the_clipped_gradients_of_the_training_code():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 6)).astype(np.float32)
    y = generator.integers(0, 2, 200).astype(np.float32)
    weights = {"weight": generator.normal(size=6).astype(np.float32)}
    exact = unsafe_gradient_without_noise(weights, x, y, clip=CLIP / MICRO)["weight"]
    lines = list(clipped_gradients(weights, x, y, clip=CLIP / MICRO))
    assert np.allclose(np.concatenate(lines).sum(axis=0), exact, atol=1e-4)
    assert np.linalg.norm(np.concatenate(lines), axis=1).max() <= CLIP / MICRO * (1 + 1e-12)
    sums = [to_numbers(summed(lines).view(np.uint64)) for _ in range(budget(50, 400))]
    deviation = SIGMA / MICRO * CLIP / MICRO / np.sqrt(3 * len(sums))
    assert np.abs(np.mean(sums, axis=0) - exact).max() < 6 * deviation


def test_no_patients_at_all_give_pure_noise():
    weights = {"weight": np.zeros(4, dtype=np.float32)}
    none = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.float32)
    lines = list(clipped_gradients(weights, *none, clip=0.5))
    assert [line.shape for line in lines] == [(0, 4)]
    assert np.any(summed(lines) != 0)


@given(data=st.data(), length=st.integers(1, 40))
def test_one_patient_changes_the_integers_by_at_most_the_sensitivity(data, length):
    direction = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=length, max_size=length)))
    norm = np.linalg.norm(direction)
    line = direction * (CLIP / MICRO / norm if norm > 0 else 0)
    integers = np.rint(line * 2**FRACTION_BITS)
    assert np.linalg.norm(integers) <= sensitivity(CLIP, length)


def test_an_unclipped_line_is_refused_and_so_is_noise_beyond_the_debit():
    with pytest.raises(InvariantError, match="clipping"):
        summed([np.full((1, 4), 0.3)])
    with pytest.raises(InvariantError, match="debited"):
        summed([np.zeros((1, 4))], rho_nano=rho_nano_of(SIGMA) * 9 // 10)
    with pytest.raises(InvariantError, match="proof"):
        summed([np.zeros((1, 4))], sigma_micro=1, rho_nano=10**15)


def test_a_sum_that_could_wrap_round_is_refused_beforehand():
    said = {"clip_micro": CLIP, "length": 20, "sigma_micro": SIGMA, "parties": 4}
    assert fits(**said, population=10**7)
    assert not fits(**said, population=10**12)


def test_negative_sums_come_back_as_they_were():
    assert to_numbers(np.array([-3 * 2**24, 5], dtype=np.int64).view(np.uint64)).tolist() == [
        -3.0,
        5 / 2**24,
    ]
