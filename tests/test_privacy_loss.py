"""Sampled training is accounted: never below the truth, hardly above it, debited like the rest."""

from functools import cache

import dp_accounting as dpa
import numpy as np
import pytest
from budget import FULL, budget
from coop_world import now, world
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.documents.study import MICRO, NANO, Budget, Schedule
from coop.errors import InvariantError
from coop.privacy_loss import ERROR, Releases, epsilon_of_releases, renyi_of_sample
from coop.verify.rounds import keeps_budget
from federated import pace
from federated.accounting import (
    ImpossiblePlanError,
    epsilon_of_mu,
    epsilon_of_rho,
    noise_micro_for,
    plan,
    price_of,
    rho_nano_of,
    sigma_for,
)
from federated.budget import debit
from federated.mandate import PlanMismatchError
from federated.odometer import patient_budget
from federated.round import answer_round
from federated.uses import statement

# privacy.md §2: q, sigma, rounds, delta, and the epsilon of dp-accounting's PLD.
KNOWN = [
    (0.01, 1.0, 1000, 1e-5, 1.828),
    (0.05, 1.0, 300, 1e-5, 5.795),
    (0.1, 1.2, 100, 1e-5, 5.075),
    (0.2, 2.0, 60, 1e-5, 3.832),
    (1.0, 5.0, 20, 1e-5, 3.849),
    (0.05, 0.5, 100, 1e-5, 18.19),
    (0.02, 4.0, 500, 1e-6, 0.466),
    (0.25, 0.6, 40, 1e-5, 28.61),
]
GRID = [
    (q, sigma, times, delta)
    for q in ((0.005, 0.02, 0.1, 0.2, 0.5, 0.9) if FULL else (0.02, 0.2, 0.5))
    for sigma in (0.8, 2.0, 6.0)
    for times in ((1, 30, 300) if FULL else (1, 30))
    for delta in (1e-5, 1e-6)
]


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(pace, "BEAT_S", 0.001)


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("sampled")) as made:
        yield made


def independent(releases: list[Releases], delta: float) -> float:
    accountant = pld.PLDAccountant()
    for each in releases:
        event = dpa.PoissonSampledDpEvent(each.sampling, dpa.GaussianDpEvent(each.sigma))
        accountant.compose(dpa.SelfComposedDpEvent(event, each.times))
    return float(accountant.get_epsilon(delta))


def close_above(ours: float, theirs: float) -> bool:
    """Both round up on grids of their own: ours by a hundredth at most, theirs by 1e-4 a round."""
    return theirs - 2e-3 <= ours <= theirs + ERROR + 1e-3


@pytest.mark.parametrize(("q", "sigma", "times", "delta", "epsilon"), KNOWN)
def test_known_answers_of_the_reference(q, sigma, times, delta, epsilon):
    assert close_above(epsilon_of_releases([Releases(sigma, times, q)], delta), epsilon)


@pytest.mark.parametrize(("q", "sigma", "times", "delta"), GRID)
def test_epsilon_is_the_independent_accountants(q, sigma, times, delta):
    releases = [Releases(sigma, times, q)]
    assert close_above(epsilon_of_releases(releases, delta), independent(releases, delta))


def test_samples_and_whole_batches_compose():
    releases = [Releases(1.5, 40, 0.1), Releases(0.9, 5, 0.02), Releases(8.0)]
    ours = epsilon_of_releases(releases, 1e-6)
    assert close_above(ours, independent(releases, 1e-6))
    assert ours == epsilon_of_releases(list(reversed(releases)), 1e-6)
    parts = [epsilon_of_releases([each], 1e-6) for each in releases]
    assert max(parts) < ours < sum(parts)


def test_ten_runs_cost_what_their_joined_history_costs_and_not_what_the_last_one_says():
    one = Releases(1.1, 10, 0.2)
    last = epsilon_of_releases([one], 1e-5)
    together = epsilon_of_releases([one] * 10, 1e-5)
    assert together == pytest.approx(
        epsilon_of_releases([Releases(1.1, 100, 0.2)], 1e-5), abs=ERROR
    )
    assert together > 2 * last


@given(st.floats(0.5, 20), st.integers(1, 200))
@settings(max_examples=budget(15, 200))
def test_a_sample_of_everybody_is_the_exact_gaussian(sigma, times):
    exact = epsilon_of_mu(np.sqrt(times) / sigma, 1e-6)
    assert exact - 1e-6 <= epsilon_of_releases([Releases(sigma, times)], 1e-6) <= exact + ERROR


@given(st.floats(0.4, 10), st.floats(1e-3, 1))
@settings(max_examples=budget(30, 1000))
def test_the_lifetime_orders_divergence_is_the_independent_accountants(sigma, q):
    accountant = rdp.RdpAccountant(orders=[4])
    accountant.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(sigma)))
    theirs = float(accountant._rdp[0])  # it tells epsilons only; this is the figure under them
    assert renyi_of_sample(sigma, q, 4) == pytest.approx(theirs, rel=1e-6)
    paid = rho_nano_of(round(sigma * MICRO), round(q * MICRO)) / NANO
    assert paid >= theirs / 4 * (1 - 1e-3)


def test_less_noise_a_larger_sample_or_more_rounds_never_cost_less():
    base = epsilon_of_releases([Releases(2.0, 50, 0.1)], 1e-6)
    for dearer in (Releases(1.8, 50, 0.1), Releases(2.0, 50, 0.12), Releases(2.0, 60, 0.1)):
        assert epsilon_of_releases([dearer], 1e-6) > base


def test_nothing_costs_nothing_and_nonsense_is_refused():
    assert epsilon_of_releases([], 1e-6) == 0
    assert epsilon_of_releases([Releases(1.0, 0, 0.1)], 1e-6) == 0
    assert epsilon_of_releases([Releases(1e6, 1, 0.01)], 1e-6) <= ERROR
    for sigma, times, q in ((0.0, 1, 0.1), (1.0, -1, 0.1), (1.0, 1, 0.0), (1.0, 1, 1.1)):
        with pytest.raises(InvariantError):
            Releases(sigma, times, q)


# -- the plan --------------------------------------------------------------------------------------

LINES = Budget(
    epsilon_micro=MICRO,
    delta_pico=1_000_000,
    training_percent=85,
    evaluation_percent=10,
    reserve_percent=5,
    cohort_rho_nano=1_000_000,
)
NOISE = cache(lambda: noise_micro_for(LINES, Schedule(40, 100_000, 1)))


def test_the_least_noise_that_keeps_the_budget_is_found_and_less_is_refused():
    noise = NOISE()
    split = plan(LINES, Schedule(40, 100_000, noise))
    assert 0.95 < split.epsilon <= 1
    assert split.training_epsilon < split.epsilon
    with pytest.raises(ImpossiblePlanError, match=r"recipe\.noise"):
        plan(LINES, Schedule(40, 100_000, noise * 99 // 100))
    whole = sigma_for(1.0, 1e-6, 40)
    assert noise / MICRO < whole / 3, "a sample of a tenth needs far less noise than everybody"


def test_every_draw_the_lines_can_pay_stays_within_the_price_by_the_independent_accountant():
    noise = NOISE()
    split = plan(LINES, Schedule(40, 100_000, noise))
    again = split.rho_reserve_nano // split.rho_round_nano
    spent = independent(
        [
            Releases(noise / MICRO, 40 + again, 0.1),
            Releases(split.evaluation_sigma_micro / MICRO),
        ],
        1e-6,
    )
    assert spent <= split.epsilon <= 1
    price = price_of(LINES, Schedule(40, 100_000, noise))
    assert price.plan_micro <= MICRO < price.together_micro


def test_an_auditor_recomputes_the_noise_of_a_sampled_order():
    noise = NOISE()
    split = plan(LINES, Schedule(40, 100_000, noise))
    said = (40, noise, split.evaluation_sigma_micro)
    assert keeps_budget(LINES, *said, sampling_micro=100_000)
    assert not keeps_budget(LINES, *said, sampling_micro=200_000)
    assert not keeps_budget(LINES, *said)
    assert not keeps_budget(LINES, 40, noise * 8 // 10, said[2], sampling_micro=100_000)


# -- at a hospital ---------------------------------------------------------------------------------


def newcomer(coop):
    """Somebody new whom models train on: her odometer is at zero."""
    while True:
        (patient,) = coop.newcomers(1)
        if not coop.site.is_evaluation(patient.pid, 40):
            return patient


def test_a_sampled_round_is_debited_and_her_odometer_composes_it(coop):
    sampled = {"recipe__sampling_micro": 250_000, "recipe__noise_micro": 9 * MICRO}
    run, patient = coop.ready("sampled", **sampled), newcomer(coop)
    for round_ in (1, 2, 3):
        answer_round(coop.site, coop.mirror, run.input(round_))
    with coop.site.database.reading() as connection:
        rows = connection.execute(debit.select().where(debit.c.study_id == "sampled")).all()
        hers = patient_budget(connection, patient.pid)
    assert {(row.sampling_micro, row.sigma_micro) for row in rows} == {(250_000, 9 * MICRO)}
    assert hers.samples == (Releases(9.0, 3, 0.25),)
    assert hers.rdp_nano >= 3 * renyi_of_sample(9.0, 0.25, 4) * NANO
    assert hers.sampled_nano == hers.rho_nano, "nothing else used her record"
    assert close_above(hers.epsilon, independent([Releases(9.0, 3, 0.25)], 1e-6))
    said = statement(coop.site, patient.pid, now())["credentialSubject"]["privacy"]
    assert said["epsilon_micro"] == pytest.approx(hers.epsilon * MICRO, abs=1)
    # An order of the same noise without the sample would be far dearer than approved.
    whole = coop.order(run.study, run.document, run.approval, sampling_micro=MICRO)
    run.order = whole
    with pytest.raises(PlanMismatchError, match="sampling"):
        answer_round(coop.site, coop.mirror, run.input(1))


def test_whoever_took_part_in_both_kinds_pays_for_both(coop):
    exact, patient = coop.ready("whole"), newcomer(coop)
    answer_round(coop.site, coop.mirror, exact.input(1))
    sampled = {"recipe__sampling_micro": 500_000, "recipe__noise_micro": 20 * MICRO}
    answer_round(coop.site, coop.mirror, coop.ready("half", **sampled).input(1))
    with coop.site.database.reading() as connection:
        hers = patient_budget(connection, patient.pid)
    whole = hers.rho_nano - hers.sampled_nano
    assert whole > 0
    assert hers.epsilon == epsilon_of_rho(whole, 1e-6, hers.samples)
    assert hers.epsilon > epsilon_of_rho(whole, 1e-6)
    assert hers.epsilon > epsilon_of_rho(0, 1e-6, hers.samples)
