"""Exact quality figures on records that may be seen whole: simulations on public data only.

A hospital never releases these; what leaves it is the noised histogram of `federated.evaluation`.
Pure numpy.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DECISION: Final = 0.5  # predicted positive from here on
GROUP_MIN: Final = 10  # smaller groups are not shown
_CALIBRATION_BINS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One site's or group's test patients. A figure is None where it has no meaning."""

    n: int
    positive: float
    """Share with the outcome."""
    accuracy: float
    auc: float | None
    """None where only one outcome occurs."""
    brier: float
    calibration: float
    """Mean predicted risk minus observed share: 0 is calibrated in the large."""
    sensitivity: float | None
    specificity: float | None


def scores(probabilities: Floats, outcomes: NDArray[np.float32]) -> Scores | None:
    """Every figure at once; None for no patients."""
    if len(outcomes) == 0:
        return None
    positive = outcomes > 0
    predicted = probabilities >= DECISION
    return Scores(
        n=len(outcomes),
        positive=float(positive.mean()),
        accuracy=float((predicted == positive).mean()),
        auc=auc(probabilities, outcomes),
        brier=float(((probabilities - outcomes) ** 2).mean()),
        calibration=float(probabilities.mean() - positive.mean()),
        sensitivity=float(predicted[positive].mean()) if positive.any() else None,
        specificity=float(1 - predicted[~positive].mean()) if not positive.all() else None,
    )


def auc(probabilities: Floats, outcomes: NDArray[np.float32]) -> float | None:
    """Chance that a patient with the outcome scores above one without; equal scores count half."""
    positive = outcomes > 0
    many = int(positive.sum()) * int((~positive).sum())
    if many == 0:
        return None
    values, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    del values
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / many)


def c_index(risks: Floats, times: NDArray[np.float32]) -> float | None:
    """Harrell's c: how often, of two, she who had the event first was at more risk.

    Pairs of which nobody knows who was first are left out; equal risks count half.

    Args:
        risks: [n].
        times: [n, 2]: time, and whether the event happened then.
    """
    right, pairs = 0.0, 0
    for risk, (time, happened) in zip(risks, times, strict=True):
        if happened > 0:
            # Later than hers, or at the same time but without the event: had it after her.
            after = (times[:, 0] > time) | ((times[:, 0] == time) & (times[:, 1] == 0))
            pairs += int(after.sum())
            right += float((risks[after] < risk).sum() + (risks[after] == risk).sum() / 2)
    return right / pairs if pairs else None


def calibration_error(probabilities: Floats, outcomes: NDArray[np.float32]) -> float:
    """Expected calibration error over ten equal bins of predicted risk."""
    bins = np.minimum((probabilities * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = [
        abs(float(probabilities[bins == b].sum() - outcomes[bins == b].sum()))
        for b in range(_CALIBRATION_BINS)
    ]
    return float(np.sum(gaps) / max(len(outcomes), 1))
