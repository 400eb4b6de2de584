"""What a study costs one patient in privacy: exact arithmetic of full-batch Gaussian releases.

A release with sensitivity 1 and noise sigma is (1/sigma)-Gaussian-DP; releases compose as
mu² = Σ 1/sigma², and rho = mu²/2 is the zCDP cost. The curve delta(epsilon) is exact (Balle & Wang
2018, theorem 8), not the central-limit bound. Relation: add or remove one patient. Pure.

A round on a Poisson sample is no Gaussian release: its epsilon is composed by privacy loss
distributions (`coop.privacy_loss`). What the ledger debits for it is the rho of the whole-batch
release with the same Rényi divergence at the lifetime filter's order, and nothing else is ever
read from that figure.

Stored figures are integers (`rho_nano`, `sigma_micro`), always rounded to the side that charges
the patient's budget more or adds more noise, so sums never drift in anybody's favour.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from coop.documents.study import MICRO, NANO, PICO, Budget, Schedule
from coop.documents.training import Order
from coop.errors import InvalidInputError, Kind
from coop.privacy_loss import Releases, epsilon_of_releases, renyi_of_sample

LIFETIME_ALPHA: Final = 4  # fixed at enrolment, privacy.md §4
LIFETIME_EPSILON: Final = 10.0
LIFETIME_DELTA: Final = 1e-6

_MU_MIN: Final = 1e-8
_MU_MAX: Final = 1e3
_EPSILON_MAX: Final = 1e6  # a line without any noise costs "infinitely" much; integers do not
_PERCENT: Final = 100
_NOISE_MAX: Final = 1e5


class ImpossiblePlanError(InvalidInputError):
    """The budget cannot be split so; the message names the field."""

    code = "budget.impossible-plan"
    kind = Kind.UNPROCESSABLE


def gdp_delta(epsilon: float, mu: float) -> float:
    """The smallest delta for which a mu-Gaussian-DP mechanism is (epsilon, delta)-DP."""
    # Second term in logarithms: e^epsilon alone overflows where the product is tiny.
    second = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
    return max(0.0, float(ndtr(-epsilon / mu + mu / 2)) - second)


def mu_for(epsilon: float, delta: float) -> float:
    """The largest mu that is (epsilon, delta)-DP; rounding errs below it."""
    if not (epsilon > 0 and 0 < delta < 1):
        raise ImpossiblePlanError("epsilon must be positive and delta between 0 and 1")
    mu = float(brentq(lambda m: gdp_delta(epsilon, m) - delta, _MU_MIN, _MU_MAX, xtol=1e-12))
    return mu * (1 - 1e-9)


def sigma_for(epsilon: float, delta: float, rounds: int) -> float:
    """The noise multiplier at which `rounds` full-batch rounds together cost (epsilon, delta)."""
    return math.sqrt(rounds) / mu_for(epsilon, delta)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The epsilon, at `delta`, of a mu-Gaussian-DP mechanism; infinite without noise."""
    if mu <= 0:
        return 0.0
    if not math.isfinite(mu) or gdp_delta(_EPSILON_MAX, mu) > delta:
        return math.inf
    if gdp_delta(0.0, mu) <= delta:
        return 0.0
    root = brentq(lambda e: gdp_delta(e, mu) - delta, 0.0, _EPSILON_MAX, xtol=1e-12)
    return float(root)


def epsilon_of(lines: Iterable[tuple[int, int]], delta: float) -> float:
    """The epsilon, at `delta`, of everything released.

    Args:
        lines: (sigma_micro, how many times) of each release; sigma counts sensitivities.
        delta: Failure allowance.
    """
    squared = 0.0
    for sigma_micro, times in lines:
        if times and sigma_micro <= 0:
            return math.inf
        squared += times * (MICRO / sigma_micro) ** 2 if times else 0.0
    return epsilon_of_mu(math.sqrt(squared), delta)


def epsilon_after(order: Order, number: int) -> float:
    """What an order's first `number` rounds cost a patient; one beyond the last: evaluation."""
    delta, trained = order.delta_pico / PICO, min(number, order.rounds)
    evaluated = rho_nano_of(order.evaluation_sigma_micro) if number > order.rounds else 0
    if order.sampling_micro == MICRO:
        sigmas = [(order.training_sigma_micro, trained)]
        sigmas += [(order.evaluation_sigma_micro, 1)] if evaluated else []
        return epsilon_of(sigmas, delta)
    q = order.sampling_micro / MICRO
    samples = [Releases(order.training_sigma_micro / MICRO, trained, q)]
    return epsilon_of_rho(evaluated, delta, samples)


def epsilon_of_rho(rho_nano: int, delta: float, samples: Sequence[Releases] = ()) -> float:
    """The epsilon, at `delta`, of Gaussian releases that cost `rho_nano`, and of `samples`.

    Exact without samples; with them at most a hundredth above the truth.
    """
    mu = math.sqrt(2 * rho_nano / NANO)
    if not samples:
        return epsilon_of_mu(mu, delta)
    return epsilon_of_releases([*samples, *([Releases(1 / mu)] if mu else [])], delta)


def sigma_micro_for(rho_nano: int) -> int:
    """The noise multiplier (rounded up) at which one release costs at most `rho_nano`."""
    if rho_nano <= 0:
        raise ImpossiblePlanError("rho: a release needs a positive share of the budget")
    # ceil(MICRO / sqrt(2 rho)), in integers: the smallest s with s² · 2 rho >= MICRO² · NANO.
    squared = -(-MICRO * MICRO * NANO // (2 * rho_nano))
    root = math.isqrt(squared)
    return root if root * root == squared else root + 1


def rho_nano_of(sigma_micro: int, sampling_micro: int = MICRO) -> int:
    """What one release at this noise costs, rounded up; of a sample: at the lifetime's order."""
    if sigma_micro <= 0:
        raise ImpossiblePlanError("sigma: a release without noise has no finite cost")
    if sampling_micro < MICRO:
        sigma, q = sigma_micro / MICRO, sampling_micro / MICRO
        return max(1, math.ceil(renyi_of_sample(sigma, q, LIFETIME_ALPHA) / LIFETIME_ALPHA * NANO))
    return -(-MICRO * MICRO * NANO // (2 * sigma_micro * sigma_micro))


def rdp_nano(rho_nano: int) -> int:
    """The lifetime ledger's cost of `rho_nano`: Rényi DP at the fixed order, alpha · rho."""
    return LIFETIME_ALPHA * rho_nano


def lifetime_cap_nano(epsilon: float = LIFETIME_EPSILON, delta: float = LIFETIME_DELTA) -> int:
    """How much Rényi DP at the fixed order a patient may spend in her life, rounded down.

    The improved conversion of privacy.md §4: 6.144 for (10, 1e-6).
    """
    alpha = LIFETIME_ALPHA
    cap = epsilon - math.log((alpha - 1) / alpha) + math.log(delta * alpha) / (alpha - 1)
    return max(0, math.floor(cap * NANO))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A study's budget split over its releases; what every hospital approves and debits."""

    rho_total_nano: int
    """Of the Gaussian that is (epsilon, delta)-DP: what the shares are percent of."""
    rounds: int
    rho_round_nano: int
    """Debited for one training round."""
    training_sigma_micro: int
    rho_evaluation_nano: int
    """Debited for the evaluation; 0: the study releases no evaluation."""
    evaluation_sigma_micro: int
    """0 where there is no evaluation."""
    rho_reserve_nano: int
    """For rounds that must be asked again."""
    delta: float
    sampling_micro: int = MICRO

    @property
    def epsilon(self) -> float:
        """What all lines of the plan together cost one patient, the reserve included."""
        return self.epsilon_with(0)

    def epsilon_with(self, rho_nano: int) -> float:
        """The same together with Gaussian releases that cost `rho_nano`."""
        if self.sampling_micro == MICRO:
            return epsilon_of_rho(self.rho_total_nano + rho_nano, self.delta)
        # The reserve may pay rounds or evaluations: here it pays both.
        again = self.rho_reserve_nano // self.rho_round_nano
        others = self.rho_evaluation_nano + self.rho_reserve_nano + rho_nano
        return epsilon_of_rho(others, self.delta, [self._sampled(self.rounds + again)])

    @property
    def training_epsilon(self) -> float:
        """What the planned training rounds alone cost one patient."""
        if self.sampling_micro < MICRO:
            return epsilon_of_rho(0, self.delta, [self._sampled(self.rounds)])
        return epsilon_of([(self.training_sigma_micro, self.rounds)], self.delta)

    def _sampled(self, times: int) -> Releases:
        return Releases(self.training_sigma_micro / MICRO, times, self.sampling_micro / MICRO)


def plan(budget: Budget, schedule: Schedule) -> Plan:
    """Split `budget` over training rounds, evaluation and reserve.

    Guarantees: all debits of the plan together stay within the budget's (epsilon, delta).

    Raises:
        ImpossiblePlanError: The percentages do not sum to 100, a share is too small to use, or
            the stated noise of a sampled training is too little for the budget.
    """
    shares = (budget.training_percent, budget.evaluation_percent, budget.reserve_percent)
    if sum(shares) != _PERCENT:
        raise ImpossiblePlanError(
            "budget: training, evaluation and reserve percent must sum to 100"
        )
    delta, rounds = budget.delta_pico / PICO, schedule.rounds
    total = math.floor(mu_for(budget.epsilon_micro / MICRO, delta) ** 2 / 2 * NANO)
    training, evaluation, reserve = (total * share // _PERCENT for share in shares)
    sampled = schedule.noise_micro is not None
    if schedule.noise_micro is not None:
        sigma_micro = schedule.noise_micro
        per_round = rho_nano_of(sigma_micro, schedule.sampling_micro)
    else:
        per_round = training // rounds
        if per_round == 0:
            raise ImpossiblePlanError("budget: too small for so many rounds")
        sigma_micro = sigma_micro_for(per_round)
    split = Plan(
        rho_total_nano=total,
        rounds=rounds,
        rho_round_nano=per_round,
        training_sigma_micro=sigma_micro,
        rho_evaluation_nano=evaluation,
        evaluation_sigma_micro=sigma_micro_for(evaluation) if evaluation else 0,
        rho_reserve_nano=reserve if sampled else total - rounds * per_round - evaluation,
        delta=delta,
        sampling_micro=schedule.sampling_micro,
    )
    if sampled and split.epsilon * MICRO > budget.epsilon_micro:
        raise ImpossiblePlanError(
            f"recipe.noise: {sigma_micro / MICRO:g} costs epsilon {split.epsilon:.3f} with "
            f"evaluation and reserve, above the budget's {budget.epsilon_micro / MICRO:g}; "
            "more noise, fewer rounds or a smaller sample"
        )
    return split


def noise_micro_for(budget: Budget, schedule: Schedule) -> int:
    """The least noise (to a thousandth) at which a sampled training keeps `budget`.

    Raises:
        ImpossiblePlanError: No noise does.
    """

    def keeps(sigma: float) -> bool:
        try:
            plan(budget, replace(schedule, noise_micro=math.ceil(sigma * MICRO)))
        except ImpossiblePlanError:
            return False
        return True

    # From what whole batches need, up until it keeps the budget, then down until it does not.
    high = sigma_for(budget.epsilon_micro / MICRO, budget.delta_pico / PICO, schedule.rounds)
    while not keeps(high):
        if high > _NOISE_MAX:
            raise ImpossiblePlanError("budget: no noise is enough for this schedule")
        high *= 2
    low = high / 2
    while keeps(low):
        low, high = low / 2, low
    while high / low > 1 + 1e-3:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return math.ceil(high * MICRO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one study version costs a patient at most: epsilon at the study's delta, rounded up."""

    plan_micro: int
    """Training, evaluation and reserve."""
    cohort_micro: int
    """The line of cohort questions by itself."""
    together_micro: int
    """Both composed: what a patient loses who takes part in all of it. Every cap holds this."""


def price_of(budget: Budget, schedule: Schedule) -> Price:
    """What `budget` costs a patient, its plan and its line of cohort questions composed.

    Raises:
        ImpossiblePlanError: The budget cannot be split.
    """
    split = plan(budget, schedule)
    return Price(
        plan_micro=_micro(split.epsilon),
        cohort_micro=_micro(epsilon_of_rho(budget.cohort_rho_nano, split.delta)),
        together_micro=_micro(split.epsilon_with(budget.cohort_rho_nano)),
    )


def _micro(epsilon: float) -> int:
    return math.ceil(min(epsilon, _EPSILON_MAX) * MICRO)
