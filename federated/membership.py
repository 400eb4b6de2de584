"""How well an attacker tells who trained a model: the likelihood-ratio attack, LiRA.

Carlini et al. 2022: shadow models are trained on random halves of the patients; for every patient
the model's confidence in her true outcome is compared with what it is when she is in and when she
is out. Here every shadow is attacked with all the others, so each is a target once. Pure.

What comes out is the success of an attack over people, no bound on epsilon.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.errors import InvariantError
from federated.scores import auc

_SHADOWS_MIN: Final = 8
_VARIANCE_MIN: Final = 1e-12  # models that all agree say nothing; never a division by zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """Of the attack on all shadows and patients together."""

    auc: float
    at_one_percent: float
    """True positives where 1 % of the others are accused falsely."""
    at_one_per_mille: float


def likelihood_ratios(
    confidences: NDArray[np.float64], members: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Log-likelihood ratio of "was in" for each shadow and patient, from the other shadows.

    Args:
        confidences: [shadows, patients]: log odds that the model gives the true outcome.
        members: [shadows, patients]: who trained which.
    """
    if confidences.shape != members.shape or len(confidences) < _SHADOWS_MIN:
        raise InvariantError(f"shadows: at least {_SHADOWS_MIN}, a confidence and a coin for each")
    mean_in, squares_in, count_in = _others(confidences, members)
    mean_out, squares_out, count_out = _others(confidences, ~members)
    # One variance for both: with a few hundred shadows two of them cost the attack its best hits.
    variance = (squares_in + squares_out) / np.maximum(count_in + count_out - 2, 1)
    middle = (mean_in + mean_out) / 2
    ratios = (mean_in - mean_out) * (confidences - middle) / np.maximum(variance, _VARIANCE_MIN)
    return np.asarray(ratios)


def success(ratios: NDArray[np.float64], members: NDArray[np.bool_]) -> Success:
    """How much the ratios reveal; equal ratios accuse nobody."""
    inside, outside = ratios[members], ratios[~members]
    everything = np.concatenate([inside, outside])
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))]).astype(np.float32)
    return Success(
        auc=auc(everything, truth) or 0.0,
        at_one_percent=_true_positives(inside, outside, 0.01),
        at_one_per_mille=_true_positives(inside, outside, 0.001),
    )


def _true_positives(
    inside: NDArray[np.float64], outside: NDArray[np.float64], rate: float
) -> float:
    allowed = int(rate * len(outside))
    threshold = np.sort(outside)[len(outside) - 1 - allowed]
    return float((inside > threshold).mean())


def _others(
    confidences: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int_]]:
    """By patient, over the chosen among the other shadows: mean, squared deviations, count.

    Leave one out: what a shadow says of itself never enters its own fit.
    """
    values = np.where(chosen, confidences, 0.0)
    count = chosen.sum(axis=0) - chosen
    total = values.sum(axis=0) - values
    squares = np.square(values).sum(axis=0) - np.square(values)
    mean = total / np.maximum(count, 1)
    return mean, np.maximum(squares - total * mean, 0.0), count
