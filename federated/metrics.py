"""AUC, accuracy, Brier and calibration from the sum of noised histograms, with the noise's spread.

Runs at the hub and in `coop simulate`: post-processing of DP outputs, so it costs no privacy. Pure
numpy; randomness is an argument and no secret (it only spreads known noise, so that anyone with the
same seed gets the same figures).
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import MICRO
from coop.documents.training import GroupMetric

Cells = NDArray[np.float64]
"""float64 [2, bins]: noised counts by outcome and score bin."""

POOLED: Final = "all"
DRAWS: Final = 400  # the spread of the spread is then 3.5 %
TOTALS: Final = 60  # steps from no patient to more than the noise allows
SMALL_NOISE: Final = 0.05  # of the smaller outcome's total
MEANINGLESS_SD: Final = 0.2  # a uniform guess in [0, 1] has .289


def measure(
    histogram: NDArray[np.int64] | NDArray[np.float64],
    groups: Sequence[str],
    *,
    noise_sd: float,
    generator: np.random.Generator,
) -> list[GroupMetric]:
    """One metric for all patients, then one per subgroup, in the study's order.

    A figure is None where the noise leaves it without meaning: a spread of .2 or more.

    Args:
        histogram: [groups, 2, bins], summed over the hospitals.
        groups: Names of the first axis.
        noise_sd: Of one cell of the sum: sigma * sqrt(number of hospitals that answered).
        generator: For spreading the noise; seed it from a public digest to be recomputable.
    """
    cells = np.asarray(histogram, dtype=np.float64)
    pooled_sd = noise_sd * np.sqrt(len(groups))
    rows = [_metric(POOLED, cells.sum(axis=0), float(pooled_sd), generator)]
    rows += [
        _metric(group, cells[index], noise_sd, generator) for index, group in enumerate(groups)
    ]
    return rows


def auc(cells: Cells) -> float:
    """Area under the ROC curve of exact or post-processed counts; ties within a bin count half."""
    negative, positive = cells
    below = np.concatenate(([0.0], np.cumsum(negative)[:-1]))
    return float(positive @ (below + negative / 2) / (positive.sum() * negative.sum()))


def accuracy(cells: Cells) -> float:
    """Share on the right side of probability one half; a bin across it counts half."""
    bins = cells.shape[1]
    above = np.clip(np.arange(1, bins + 1) - bins / 2, 0.0, 1.0)
    return float((cells[0] @ (1 - above) + cells[1] @ above) / cells.sum())


def brier(cells: Cells) -> float:
    """Mean squared error of the probability, every score taken at the middle of its bin."""
    bins = cells.shape[1]
    middle = (np.arange(bins) + 0.5) / bins
    return float((cells[0] @ middle**2 + cells[1] @ (1 - middle) ** 2) / cells.sum())


def calibration(cells: Cells) -> float:
    """Mean predicted risk minus the share with the outcome, scores at the middle of their bin."""
    bins = cells.shape[1]
    middle = (np.arange(bins) + 0.5) / bins
    return float((cells.sum(axis=0) @ middle - cells[1].sum()) / cells.sum())


def estimate(
    cells: Cells,
    metric: Callable[[Cells], float],
    noise_sd: float,
    generator: np.random.Generator,
    *,
    least: float = 0.0,
) -> tuple[float, float] | None:
    """A metric of noised counts and its standard deviation from the noise, or None.

    Where the noise is small beside the counts, they speak for themselves: the nearest possible
    counts are measured, and again with the known noise drawn on them. Elsewhere the scores of each
    outcome are taken to be bell-shaped on the log-odds scale, of any place, width and number, all
    equally likely before; the answer is the mean and spread of what the noised counts leave
    plausible. Both keep the noise's error inside the stated spread (measured in test_metrics).
    """
    smallest = float(cells.sum(axis=1).min())
    if smallest >= 1 and noise_sd * np.sqrt(cells.shape[1]) <= SMALL_NOISE * smallest:
        plausible = _plausible(cells)
        value = metric(plausible)
        again = (
            _plausible(plausible + generator.normal(0.0, noise_sd, cells.shape))
            for _ in range(DRAWS if noise_sd > 0 else 0)
        )
        errors = [metric(drawn) - value for drawn in again]
        sd = float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
    elif noise_sd >= 1:
        draws = [metric(drawn) for drawn in _posterior(cells, noise_sd, generator)]
        value, sd = float(np.mean(draws)), float(np.std(draws))
    else:
        return None  # hardly any noise, and still no patient with or without the outcome
    if sd >= MEANINGLESS_SD:
        return None
    return min(max(value, least), 1.0), sd


def _metric(
    group: str, cells: Cells, noise_sd: float, generator: np.random.Generator
) -> GroupMetric:
    area = estimate(cells, auc, noise_sd, generator)
    right = estimate(cells, accuracy, noise_sd, generator)
    error = off = None
    if area is not None and right is not None:
        # What noise drowns, it drowns for all: these two vary too little by nature to tell alone.
        error = estimate(cells, brier, noise_sd, generator)
        off = estimate(cells, calibration, noise_sd, generator, least=-1.0)
    return GroupMetric(
        group=group,
        auc_micro=None if area is None else round(area[0] * MICRO),
        auc_sd_micro=None if area is None else round(area[1] * MICRO),
        accuracy_micro=None if right is None else round(right[0] * MICRO),
        accuracy_sd_micro=None if right is None else round(right[1] * MICRO),
        brier_micro=None if error is None else round(error[0] * MICRO),
        brier_sd_micro=None if error is None else round(error[1] * MICRO),
        calibration_micro=None if off is None else round(off[0] * MICRO),
        calibration_sd_micro=None if off is None else round(off[1] * MICRO),
        count_noised=max(round(float(cells.sum())), 0),
    )


def _posterior(cells: Cells, noise_sd: float, generator: np.random.Generator) -> list[Cells]:
    """Draws of what the true counts may be, given the noised ones and bell-shaped scores."""
    shapes = _shapes(cells.shape[1])
    sides = [_drawn(row, shapes, noise_sd, generator) for row in cells]
    return [np.stack(pair) for pair in zip(*sides, strict=True)]


def _drawn(
    row: NDArray[np.float64],
    shapes: NDArray[np.float64],
    noise_sd: float,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """[DRAWS, bins] plausible counts of one outcome."""
    most = max(float(row.sum()), 0.0) + 4 * noise_sd * np.sqrt(len(row))
    totals = np.linspace(most / TOTALS, most, TOTALS)
    # |row - total * shape|^2 for every shape and total, without the constant |row|^2.
    fit = shapes @ row
    size = np.square(shapes).sum(axis=1)
    distance = np.square(totals)[None, :] * size[:, None] - 2 * totals[None, :] * fit[:, None]
    logs = -distance / (2 * noise_sd**2)
    chances = np.exp(logs - logs.max()).ravel()
    chosen = generator.choice(chances.size, size=DRAWS, p=chances / chances.sum())
    which, total = np.unravel_index(chosen, logs.shape)
    return np.asarray(shapes[which] * totals[total][:, None], dtype=np.float64)


def _shapes(bins: int) -> NDArray[np.float64]:
    """[shapes, bins]: how bell-shaped log-odds of every place and width fall into the bins."""
    inner = np.arange(1, bins) / bins
    edges = np.log(inner / (1 - inner))
    rows = []
    for middle in np.linspace(-4, 4, 33):
        for width in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0):
            below = [
                0.5 * (1 + math.erf((edge - middle) / (width * math.sqrt(2)))) for edge in edges
            ]
            rows.append(np.diff([0.0, *below, 1.0]))
    return np.array(rows)


def _plausible(cells: Cells) -> Cells:
    """The nearest non-negative counts with the same total for each outcome."""
    return np.stack([_to_simplex(row) for row in cells])


def _to_simplex(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean projection on {x >= 0, sum x = sum row} (Duchi et al. 2008, figure 1)."""
    total = float(row.sum())
    falling = np.sort(row)[::-1]
    excess = np.cumsum(falling) - total
    kept = np.flatnonzero(falling * np.arange(1, len(row) + 1) > excess)[-1]
    return np.asarray(np.maximum(row - excess[kept] / (kept + 1), 0.0), dtype=np.float64)
