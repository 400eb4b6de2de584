"""What Poisson-sampled Gaussian releases cost one patient together, by privacy loss distributions.

One release takes each patient with chance q and adds noise sigma (in sensitivities). Its privacy
loss is put on a grid, always rounded up, and releases are composed by adding their losses: a
product of Fourier transforms (Koskela et al. 2020; Gopi et al. 2021, "PRV"). What is told is never
below the truth, and above it by a hundredth at most. No central-limit ("GDP") approximation: for
samples that is no bound. Relation: add or remove one patient, both ways computed. Pure.

Whole batches (q = 1) have an exact curve and need nothing of this: `federated.accounting`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.errors import InvariantError

ERROR: Final = 0.01
"""The most that rounding losses up to the grid adds to an epsilon."""
_TAIL: Final = 1e-6  # of delta: what is cut off at both ends counts as a certain breach
_REACH: Final = 10.0  # deviations; beyond them lies 1e-23, far below any tail
_CELLS_MAX: Final = 2**23
_POINTS: Final = 20_000  # where Chernoff's bound reads the distribution
_EPSILON_MAX: Final = 1e4
_HALVINGS: Final = 60
_MOMENTS: Final = np.geomspace(0.01, 400, 160)  # Chernoff's lambda


@dataclass(frozen=True, slots=True)
class Releases:
    """`times` releases, each of a Poisson sample of rate `sampling` under noise `sigma`."""

    sigma: float
    """In sensitivities; > 0."""
    times: int = 1
    sampling: float = 1.0
    """q in (0, 1]."""

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and 0 < self.sampling <= 1 and self.times >= 0):
            raise InvariantError("releases: sigma above 0, sampling in (0, 1], times from 0")


def epsilon_of_releases(releases: Sequence[Releases], delta: float) -> float:
    """The epsilon, at `delta`, of all of them together; at most `ERROR` above the truth.

    Infinite where it is above 10,000 or the grid would not fit into memory.
    """
    return _epsilon(tuple(releases), delta)


def renyi_of_sample(sigma: float, sampling: float, alpha: int) -> float:
    """Rényi divergence of whole order `alpha` of one release, the larger of both ways; exact.

    Source: Mironov, Talwar & Zhang 2019, section 3.3.
    """
    q = sampling
    if q == 1:
        return alpha / (2 * sigma * sigma)
    moments = (
        math.comb(alpha, k) * (1 - q) ** (alpha - k) * q**k * math.exp((k * k - k) / (2 * sigma**2))
        for k in range(alpha + 1)
    )
    return math.log(math.fsum(moments)) / (alpha - 1)


@lru_cache(maxsize=256)
def _epsilon(releases: tuple[Releases, ...], delta: float) -> float:
    used = [each for each in releases if each.times]
    if not used:
        return 0.0
    # Added or removed: whichever tells more, over all releases alike.
    return max(_one_way(used, delta, removed=removed) for removed in (True, False))


def _one_way(releases: list[Releases], delta: float, *, removed: bool) -> float:
    cell = ERROR / sum(each.times for each in releases)
    tail = delta * _TAIL
    spans = [_span(each, tail / len(releases), removed=removed) for each in releases]
    low = sum(a for a, _ in spans)
    high = sum(b for _, b in spans)
    cells = 2 ** math.ceil(math.log2((high - low) / cell + 2))
    if cells > _CELLS_MAX:
        # Coarser, still rounded up: a very costly plan is told as dearer than it is, not refused.
        cell, cells = (high - low) / (_CELLS_MAX - 2), _CELLS_MAX
    start = math.floor(low / cell)
    spectrum: NDArray[np.complex128] = np.ones(cells // 2 + 1, dtype=np.complex128)
    for each in releases:
        spectrum *= np.fft.rfft(_losses(each, cell, cells, removed=removed)) ** each.times
    # The sum of the losses, cyclic: cell j stands for the one loss = j (mod cells) in the window.
    masses = np.maximum(np.fft.irfft(spectrum, cells), 0.0)
    losses = np.arange(start, start + cells)
    masses = masses[losses % cells]
    return _solve(np.asarray(losses * cell, dtype=np.float64), masses, delta - tail)


def _solve(losses: NDArray[np.float64], masses: NDArray[np.float64], delta: float) -> float:
    """The smallest epsilon >= 0 with E[(1 - e^(epsilon - loss))+] <= delta."""

    def told(epsilon: float) -> float:
        above = losses > epsilon
        return float(np.sum(masses[above] * -np.expm1(epsilon - losses[above])))

    low, high = 0.0, float(losses[-1])
    if high > _EPSILON_MAX:
        return math.inf
    if high <= 0 or told(0.0) <= delta:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if told(middle) <= delta else (middle, high)
        if high - low < ERROR * 1e-6:
            break
    return high


def _losses(each: Releases, cell: float, cells: int, *, removed: bool) -> NDArray[np.float64]:
    """Chances of one release's loss, rounded up to the grid; index = loss / cell modulo cells."""
    edges = _window(each, removed=removed)
    low, high = math.floor(edges[0] / cell), math.ceil(edges[1] / cell)
    grid = np.arange(low, high + 1)
    below = _chance_below(each, np.asarray(grid * cell, dtype=np.float64), removed=removed)
    mass = np.diff(below, prepend=0.0)
    mass[-1] += 1.0 - below[-1]
    chances = np.zeros(cells)
    np.add.at(chances, grid % cells, mass)
    return chances


def _window(each: Releases, *, removed: bool) -> tuple[float, float]:
    """Between what losses one release's lie, but for a chance of 1e-23."""
    q, sigma = each.sampling, each.sigma
    reach = _REACH * sigma
    ends = [_loss(-reach, q, sigma), _loss(1 + reach, q, sigma)]
    low, high = ends if removed else (-ends[1], -ends[0])
    return low, high


def _loss(x: float, q: float, sigma: float) -> float:
    """How much likelier the outcome x is with the patient: ln(1 - q + q e^gain)."""
    gain = (2 * x - 1) / (2 * sigma * sigma)
    if q == 1:
        return gain
    return float(np.logaddexp(math.log1p(-q), math.log(q) + gain))


def _chance_below(
    each: Releases, losses: NDArray[np.float64], *, removed: bool
) -> NDArray[np.float64]:
    """P(loss <= each of `losses`) of one release."""
    q, sigma = each.sampling, each.sigma
    if removed:
        # Outcomes are drawn with the patient; the loss rises with the outcome.
        x = _outcome_of(losses, q, sigma)
        return (1 - q) * _normal_below(x / sigma) + q * _normal_below((x - 1) / sigma)
    # Outcomes are drawn without her; the loss is the other sign and falls with the outcome.
    return _normal_below(-_outcome_of(-losses, q, sigma) / sigma)


def _outcome_of(losses: NDArray[np.float64], q: float, sigma: float) -> NDArray[np.float64]:
    """The outcome whose loss, with the patient against without, is each of these."""
    if q == 1:
        return sigma * sigma * losses + 0.5
    floor = math.log1p(-q)
    excess = losses > floor
    x = np.full(losses.shape, -np.inf)  # no outcome has so small a loss
    # ln(e^l - (1-q)) without cancellation.
    gain = losses[excess] + np.log(-np.expm1(floor - losses[excess])) - math.log(q)
    x[excess] = sigma * sigma * gain + 0.5
    return x


def _normal_below(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(_half_erfc(-z / math.sqrt(2)), dtype=np.float64)


_half_erfc: Final = np.vectorize(lambda x: math.erfc(x) / 2, otypes=[np.float64])


def _span(each: Releases, tail: float, *, removed: bool) -> tuple[float, float]:
    """Where the sum of `times` losses lies but for `tail` at each end: Chernoff's bound."""
    low, high = _window(each, removed=removed)
    grid = np.asarray(np.linspace(low, high, _POINTS + 1), dtype=np.float64)
    mass = np.diff(_chance_below(each, grid, removed=removed), prepend=0.0)
    held = mass > 0
    grid, mass = grid[held], np.log(mass[held])
    step = (high - low) / _POINTS

    def log_moment(power: float) -> float:
        terms = mass + power * grid
        top = float(terms.max())
        return top + math.log(float(np.exp(terms - top).sum()))

    times, log_tail = each.times, math.log(tail)
    above = min((times * log_moment(p) - log_tail) / p for p in _MOMENTS)
    # The grid's points lie up to one step above the losses they stand for.
    below = max(-(times * (log_moment(-p) + p * step) - log_tail) / p for p in _MOMENTS)
    return max(below, times * (low - step)), min(above, times * high) + ERROR
