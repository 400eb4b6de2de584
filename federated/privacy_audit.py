"""What an attacker's guesses say about a claimed epsilon: statistics of the one-run audit.

Canaries are patients made for the audit, each trained on or not by the toss of a coin. The attacker
guesses the coins from what left the hospitals. If she is right too often, the claim is false; how
often she is right bounds the true epsilon from below. Steinke, Nasr, Jagielski 2023 for (epsilon,
delta); Mahloujifar, Melis, Chaudhuri 2024 for the trade-off curve of a Gaussian mechanism. Pure:
its generator is an argument. Several runs with canaries of their own count as one with all of them,
since a coin moves one run only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, ndtr, ndtri
from scipy.stats import binom

from coop.errors import InvalidInputError, Kind
from federated.scores import auc

CONFIDENCE: Final = 0.95
"""Both bounds hold together with this probability, whichever count of guesses was the best."""
GUESSES: Final = (20, 50, 100, 200, 400, 800, 1000)
CANARIES_MIN: Final = GUESSES[0]
CANARIES_MAX: Final = 100_000
NOISE_FACTORS: Final = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.01)
RELIABLE: Final = 0.9  # a fault is called caught if so many of such audits catch it
_TRIALS: Final = 200
_MU_MAX: Final = 30.0
_EPSILON_MAX: Final = 60.0
_HALVINGS: Final = 25  # of 60: a millionth


class WrongCanariesError(InvalidInputError):
    """Too few or too many canaries, or scores that are none."""

    code = "audit.wrong-canaries"
    kind = Kind.UNPROCESSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one patient is said to lose: epsilon at delta, and the mu of just that Gaussian."""

    mu: float
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessed:
    """How the attacker did who guessed so many coins: the highest scores in, the lowest out."""

    made: int
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """How likely the audit catches noise that is the claimed one times a factor."""

    noise_factor: float
    caught: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an audit found."""

    canaries: int
    guessed: list[Guessed]
    epsilon_min: float
    """The training is not (epsilon, delta)-DP for any smaller epsilon; assumes no mechanism."""
    mu_min: float
    """The training is not mu-Gaussian-DP for any smaller mu."""
    attack_auc: float
    best_auc: float
    """Of the best attack there is, if the claim is exact."""
    power: list[Chance]
    refuted: bool

    @property
    def catches(self) -> float | None:
        """The mildest fault of the noise that such an audit catches reliably, if it does any."""
        found = [chance.noise_factor for chance in self.power if chance.caught >= RELIABLE]
        return max(found, default=None)


def judge(
    claim: Claim,
    scores: NDArray[np.float64],
    members: NDArray[np.bool_],
    generator: np.random.Generator,
) -> Finding:
    """What these scores say about the claim.

    Args:
        claim: To be tested; every figure finite and positive.
        scores: One per canary; higher says "was trained on".
        members: Which canaries were.
        generator: For the figure of the audit's power only.

    Raises:
        WrongCanariesError: Not 20 to 100,000 of them, or a score is no number.
    """
    if scores.shape != members.shape or not CANARIES_MIN <= len(scores) <= CANARIES_MAX:
        raise WrongCanariesError(f"canaries: must be {CANARIES_MIN} to {CANARIES_MAX}")
    if not np.isfinite(scores).all() or len(np.unique(members)) != 2:  # noqa: PLR2004  (in and out)
        raise WrongCanariesError("canaries: some must be in, some out, all scored")
    canaries = len(scores)
    guessed = guesses(scores, members)
    limits = _limits(claim, canaries)
    level = _level(canaries)
    return Finding(
        canaries=canaries,
        guessed=guessed,
        epsilon_min=max(one_run_epsilon(canaries, g, claim.delta, level) for g in guessed),
        mu_min=max(one_run_mu(canaries, g, level) for g in guessed),
        attack_auc=auc(scores, members.astype(np.float32)) or 0.0,
        best_auc=float(ndtr(claim.mu / math.sqrt(2))),
        power=[
            Chance(noise_factor=factor, caught=_caught(claim, factor, canaries, limits, generator))
            for factor in NOISE_FACTORS
        ],
        refuted=_refuted(guessed, limits),
    )


def guesses(scores: NDArray[np.float64], members: NDArray[np.bool_]) -> list[Guessed]:
    """How many guesses are right, for each count that is tried."""
    ordered = members[np.argsort(scores, kind="stable")]
    found = []
    for made in _counts(len(scores)):
        half = made // 2
        right = int(ordered[-half:].sum()) + int((~ordered[:half]).sum())
        found.append(Guessed(made=made, right=right))
    return found


def one_run_p(canaries: int, guessed: Guessed, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are at most, if the training is (epsilon, delta)-DP."""
    right = guessed.right
    chance = 1 / (1 + math.exp(-epsilon))
    if right == 0:
        return 1.0
    # Delta may add to the chance of being this good, the more the closer below it much mass lies.
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guessed.made, chance))
    slope = float(np.max(below / np.arange(1, right + 1)))
    tail = float(bdtrc(right - 1, guessed.made, chance))
    return min(1.0, tail + 2 * canaries * delta * slope)


def refutes_mu(mu: float, canaries: int, guessed: Guessed, level: float) -> bool:
    """Whether a mu-Gaussian-DP training gives so many right guesses with less than `level`."""
    made, right = guessed.made, guessed.right
    wrongly, rightly = level * (made - right) / canaries, level * right / canaries
    for fewer in range(right - 1, -1, -1):
        # The trade-off curve: how little must be guessed wrongly where so much is guessed rightly.
        grown = max(wrongly, float(ndtr(ndtri(min(rightly, 1 - 1e-16)) - mu)))
        rightly += fewer / (made - fewer) * (grown - wrongly)
        wrongly = grown
        if wrongly + rightly > 1:  # both only grow
            return True
    return False


def one_run_epsilon(canaries: int, guessed: Guessed, delta: float, level: float) -> float:
    """The largest epsilon that the guesses refute at `level`; 0 if none."""
    return _largest(lambda e: one_run_p(canaries, guessed, e, delta) <= level, _EPSILON_MAX)


def one_run_mu(canaries: int, guessed: Guessed, level: float) -> float:
    """The largest mu that the guesses refute at `level`; 0 if none."""
    return _largest(lambda mu: refutes_mu(mu, canaries, guessed, level), _MU_MAX)


def _largest(refuted: Callable[[float], bool], highest: float) -> float:
    """The largest value below `highest` that is refuted; what refutes one refutes all smaller."""
    low, high = 0.0, highest
    if not refuted(low):
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _counts(canaries: int) -> list[int]:
    return [count for count in GUESSES if count <= canaries]


def _level(canaries: int) -> float:
    """Of each single test: two bounds, each at the best of several counts of guesses."""
    return (1 - CONFIDENCE) / (2 * len(_counts(canaries)))


def _limits(claim: Claim, canaries: int) -> list[Guessed]:
    """For each count of guesses the fewest right ones that refute the claim; more than made: none.

    That the more are right the less is believed makes a bisection enough.
    """
    level = _level(canaries)
    limits = []
    for made in _counts(canaries):
        low, high = 0, made + 1
        while high - low > 1:
            right = (low + high) // 2
            asked = Guessed(made=made, right=right)
            caught = (
                refutes_mu(claim.mu, canaries, asked, level)
                or one_run_p(canaries, asked, claim.epsilon, claim.delta) <= level
            )
            low, high = (low, right) if caught else (right, high)
        limits.append(Guessed(made=made, right=high))
    return limits


def _refuted(guessed: Sequence[Guessed], limits: Sequence[Guessed]) -> bool:
    return any(g.right >= limit.right for g, limit in zip(guessed, limits, strict=True))


def _caught(
    claim: Claim,
    factor: float,
    canaries: int,
    limits: Sequence[Guessed],
    generator: np.random.Generator,
) -> float:
    """How often the best attack on noise wrong by `factor` would refute the claim."""
    caught = 0
    for _ in range(_TRIALS):
        members = generator.random(canaries) < 0.5  # noqa: PLR2004  (a coin)
        scores = members * (claim.mu / factor) + generator.standard_normal(canaries)
        caught += _refuted(guesses(scores, members), limits)
    return caught / _TRIALS
