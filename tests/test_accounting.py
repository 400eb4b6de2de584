"""What we charge is what an independent accountant says, rounded against nobody's privacy."""

import itertools
import math

import dp_accounting as dpa
import numpy as np
import pytest
from budget import FULL
from dp_accounting import rdp
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given
from hypothesis import strategies as st

from coop.documents.study import MICRO, NANO, Budget, Schedule
from federated import accounting
from federated.accounting import (
    ImpossiblePlanError,
    epsilon_of,
    epsilon_of_mu,
    epsilon_of_rho,
    gdp_delta,
    lifetime_cap_nano,
    mu_for,
    plan,
    rdp_nano,
    rho_nano_of,
    sigma_for,
    sigma_micro_for,
)


def budget_of(epsilon: float = 1, delta: float = 1e-6, split=(80, 15, 5)) -> Budget:
    return Budget(
        epsilon_micro=round(epsilon * MICRO),
        delta_pico=round(delta * 1e12),
        training_percent=split[0],
        evaluation_percent=split[1],
        reserve_percent=split[2],
        cohort_rho_nano=0,
    )


def independent(lines: list[tuple[float, int]], delta: float) -> float:
    """The epsilon by dp-accounting's privacy loss distributions, composed numerically.

    Round by round on a grid of losses, so that nothing of the closed form under test is used.
    """
    total = None
    for sigma, times in lines:
        one = from_gaussian_mechanism(sigma, value_discretization_interval=1e-3)
        many = one.self_compose(times)
        total = many if total is None else total.compose(many)
    return float(total.get_epsilon_for_delta(delta))


def agrees(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= max(0.02, 0.015 * theirs)


GRID = [
    (sigma, times, delta)
    for sigma in ((0.8, 5.0, 16.68, 60.0) if not FULL else (0.5, 0.8, 2.0, 5.0, 16.68, 60.0, 200.0))
    for times in ((1, 20, 100) if not FULL else (1, 5, 20, 100, 1000))
    for delta in (1e-5, 1e-6)
    if math.sqrt(times) / sigma < 8
]


@pytest.mark.parametrize(("sigma", "times", "delta"), GRID)
def test_the_printed_epsilon_is_the_independent_accountants(sigma, times, delta):
    ours = epsilon_of([(round(sigma * MICRO), times)], delta)
    assert agrees(ours, independent([(sigma, times)], delta))
    accountant = rdp.RdpAccountant()
    accountant.compose(dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(sigma), times))
    assert ours <= accountant.get_epsilon(delta) + 1e-9, "RDP is an upper bound of the truth"


@pytest.mark.parametrize("epsilon", [0.5, 1, 3])
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
@pytest.mark.parametrize("rounds", [1, 20, 200])
def test_a_whole_plan_costs_what_it_says_by_the_independent_accountant(epsilon, delta, rounds):
    planned = plan(budget_of(epsilon, delta), Schedule(rounds))
    lines = [
        (planned.training_sigma_micro / MICRO, rounds),
        (planned.evaluation_sigma_micro / MICRO, 1),
    ]
    spent = epsilon_of([(round(s * MICRO), n) for s, n in lines], delta)
    assert agrees(spent, independent(lines, delta))
    assert spent < planned.epsilon <= epsilon
    assert planned.epsilon == pytest.approx(epsilon, rel=1e-4)
    assert agrees(planned.training_epsilon, independent(lines[:1], delta))


def test_known_answers_of_the_reference():
    assert [round(mu_for(e, 1e-5), 4) for e in (0.5, 1, 3)] == [0.1422, 0.2681, 0.7191]
    assert mu_for(8, 1e-5) == pytest.approx(1.6660, abs=1e-4)
    assert sigma_for(1, 1e-5, 20) == pytest.approx(16.68, abs=0.01)
    assert epsilon_of([(5 * MICRO, 20)], 1e-5) == pytest.approx(3.849, abs=2e-3)
    assert lifetime_cap_nano() / NANO == pytest.approx(6.144, abs=1e-3)


def test_flambys_nominal_epsilon_of_one_is_not_one():
    """Its sigma was chosen for 15 steps' worth of epochs; training takes 1,500 (privacy.md)."""
    true = {}
    for site, q, sigma in (
        ("cleveland", 0.02, 2.11), ("budapest", 0.023, 2.27),
        ("longbeach", 0.045, 3.09), ("zurich", 0.125, 5.0),
    ):  # fmt: skip
        accountant = rdp.RdpAccountant()
        accountant.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(sigma)), 1500)
        true[site] = accountant.get_epsilon(1e-4)
    published = {"cleveland": 1.45, "budapest": 1.57, "longbeach": 2.29, "zurich": 4.10}
    for site, epsilon in published.items():
        assert true[site] == pytest.approx(epsilon, rel=0.05), site


def test_the_mu_of_a_budget_is_the_largest_that_keeps_it():
    for epsilon in (0.1, 1, 3, 10):
        for delta in (1e-9, 1e-6, 1e-5):
            mu = mu_for(epsilon, delta)
            assert gdp_delta(epsilon, mu) <= delta < gdp_delta(epsilon, mu * 1.0001)
            assert epsilon_of_mu(mu, delta) == pytest.approx(epsilon, rel=1e-6)


def test_no_noise_is_infinite_and_no_release_is_free():
    assert epsilon_of([(0, 1)], 1e-6) == math.inf
    assert epsilon_of_mu(math.inf, 1e-6) == math.inf
    assert epsilon_of([], 1e-6) == 0
    assert epsilon_of([(0, 0)], 1e-6) == 0
    assert epsilon_of([(10**14, 1)], 1e-6) == 0
    with pytest.raises(ImpossiblePlanError):
        rho_nano_of(0)
    with pytest.raises(ImpossiblePlanError):
        sigma_micro_for(0)


@given(st.integers(1, 10 * NANO))
def test_a_debit_always_covers_its_release(rho_nano: int):
    sigma = sigma_micro_for(rho_nano)
    assert rho_nano_of(sigma) <= rho_nano
    # The noise is the least that does: one millionth less would cost more than the debit.
    assert 2 * rho_nano * (sigma - 1) ** 2 < MICRO**2 * NANO


@given(
    st.integers(10_000, 3 * MICRO),
    st.integers(1000, 10_000_000),
    st.integers(1, 1000),
    st.integers(1, 100).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, 100 - t))),
)
def test_all_debits_of_a_plan_stay_within_the_budget(epsilon_micro, delta_pico, rounds, split):
    split = (*split, 100 - sum(split))
    try:
        planned = plan(budget_of(epsilon_micro / MICRO, delta_pico / 1e12, split), Schedule(rounds))
    except ImpossiblePlanError:
        return
    debits = (
        rounds * planned.rho_round_nano + planned.rho_evaluation_nano + planned.rho_reserve_nano
    )
    assert debits == planned.rho_total_nano
    assert planned.rho_reserve_nano >= planned.rho_total_nano * split[2] // 100
    assert epsilon_of_rho(debits, planned.delta) <= epsilon_micro / MICRO * (1 + 1e-9)
    assert rho_nano_of(planned.training_sigma_micro) <= planned.rho_round_nano
    if planned.evaluation_sigma_micro:
        assert rho_nano_of(planned.evaluation_sigma_micro) <= planned.rho_evaluation_nano
    else:
        assert planned.rho_evaluation_nano == 0


def test_more_rounds_or_less_budget_mean_more_noise():
    sigmas = [
        plan(budget_of(), Schedule(rounds)).training_sigma_micro for rounds in (1, 10, 20, 100)
    ]
    assert sigmas == sorted(sigmas)
    sigmas = [
        plan(budget_of(epsilon), Schedule(20)).training_sigma_micro for epsilon in (3, 1, 0.5)
    ]
    assert sigmas == sorted(sigmas)


def test_an_impossible_plan_names_the_field():
    with pytest.raises(ImpossiblePlanError, match="sum to 100"):
        plan(budget_of(split=(80, 15, 6)), Schedule(20))
    with pytest.raises(ImpossiblePlanError, match="too small"):
        plan(budget_of(epsilon=0.000001, split=(1, 94, 5)), Schedule(1000))
    with pytest.raises(ImpossiblePlanError):
        mu_for(0, 1e-6)


def test_sixty_sampled_like_studies_fill_a_life_and_no_more():
    """The lifetime line: full-batch studies of epsilon 1 until the Rényi cap at order 4."""
    rho = plan(budget_of(1, 1e-6), Schedule(20)).rho_total_nano
    studies = lifetime_cap_nano() // rdp_nano(rho)
    assert 50 <= studies <= 60
    together = epsilon_of_rho(studies * rho, accounting.LIFETIME_DELTA)
    assert together <= accounting.LIFETIME_EPSILON, "the cap promises epsilon 10"
    assert together > 0.85 * accounting.LIFETIME_EPSILON, "and is not needlessly narrow"


def test_the_curve_is_stable_far_out():
    values = [gdp_delta(epsilon, 1.0) for epsilon in np.linspace(0, 60, 61)]
    assert all(0 <= b <= a for a, b in itertools.pairwise(values))
    assert gdp_delta(700, 0.3) == 0
