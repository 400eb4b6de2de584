"""The evaluation histogram: one cell per patient, integer noise of exactly the debited cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coop.errors import InvariantError
from federated.accounting import rho_nano_of
from federated.evaluation import gaussian, histogram, noised

SIGMA = 10_000_000
GROUPS = ["female", "male"]


def test_every_patient_is_in_exactly_one_cell_and_the_last_bin_holds_certainty():
    cells = histogram(
        np.array([0.0, 0.19, 0.2, 1.0]),
        np.array([0, 1, 1, 1], dtype=np.float32),
        np.ones(4, dtype=bool),
        groups_of=["female", "male", "male", "male"],
        groups=GROUPS,
        bins=5,
    )
    assert cells.shape == (2, 2, 5)
    assert cells[0, 0].tolist() == [1, 0, 0, 0, 0]
    assert cells[1, 1].tolist() == [1, 1, 0, 0, 1]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.booleans(),
            st.sampled_from([*GROUPS, "other", None]),
            st.booleans(),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(2, 10),
)
def test_leaving_one_patient_out_changes_one_cell_by_at_most_one(patients, bins):
    def of(rows):
        return histogram(
            np.array([row[0] for row in rows]),
            np.array([row[1] for row in rows], dtype=np.float32),
            np.array([row[3] for row in rows], dtype=bool),
            groups_of=[row[2] for row in rows],
            groups=GROUPS,
            bins=bins,
        )

    difference = of(patients) - of(patients[1:])
    assert np.abs(difference).sum() == (patients[0][3] and patients[0][2] in GROUPS)


def test_the_noise_has_the_debited_spread_in_every_cell_even_the_empty_ones():
    exact = np.zeros((2, 2, 500), dtype=np.int64)
    noise = noised(exact, sigma_micro=SIGMA, rho_nano=rho_nano_of(SIGMA))
    assert noise.dtype == np.int64
    assert abs(noise.mean()) < 1.2  # 2000 draws of sd 10: 5 sd of the mean
    assert 9 < noise.std() < 11
    assert (noise != noised(exact, sigma_micro=SIGMA, rho_nano=rho_nano_of(SIGMA))).any()


def test_noise_that_costs_more_than_was_debited_is_never_drawn():
    with pytest.raises(InvariantError):
        gaussian([0], SIGMA, rho_nano_of(SIGMA) // 2)
    with pytest.raises(InvariantError):
        gaussian([0], SIGMA // 10, rho_nano_of(SIGMA), sensitivity=10**6)


def test_noise_scales_with_the_sensitivity():
    draws = gaussian([0] * 2000, SIGMA, rho_nano_of(SIGMA), sensitivity=10**6)
    assert 9e6 < np.std(draws) < 11e6
