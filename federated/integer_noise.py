"""Mode B's numbers: every patient's clipped gradient as integers, and a share of the sum's noise.

A sum modulo 2^64 is exact, so its privacy is arithmetic on integers. Each hospital adds discrete
Gaussian noise of variance (sigma·D)²/h, where D bounds what one patient can change and h hospitals
are honest and left in the sum: together they add at least (sigma·D)². A sum of h discrete Gaussians
differs from one of the whole variance by less than 10·h·exp(-π²·s²) in log-density (Kairouz, Liu,
Steinke 2021), and a share's s is above 10⁴ units here: nothing that a number could show.
"""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import MICRO
from coop.errors import InvariantError
from federated.masked_sum import Vector

FRACTION_BITS: Final = 24
_UNIT: Final = 2**FRACTION_BITS
_SPREAD: Final = 16  # in standard deviations: beyond it no draw ever lies
_ROOM: Final = 2**62
_SHARE_MIN: Final = 10_000  # of the noise, in units: the bound above needs it large


def sensitivity(clip_micro: int, length: int) -> int:
    """D: the most one patient's integers can weigh in L2, rounding included."""
    # Half a unit in every place, and the float64 clipping's own last bits.
    return math.ceil(clip_micro / MICRO * _UNIT * (1 + 2**-40) + math.sqrt(length) / 2) + 1


def share_sigma_micro(sigma_micro: int, honest: int) -> int:
    """One hospital's multiplier, so that `honest` of them have `sigma_micro`; rounded up."""
    root = math.isqrt(sigma_micro * sigma_micro // honest)
    while root * root * honest < sigma_micro * sigma_micro:
        root += 1
    return root


def noised_sum(
    gradients: Iterable[NDArray[np.float64]],
    length: int,
    *,
    clip_micro: int,
    sigma_micro: int,
    honest: int,
    rho_nano: int,
) -> NDArray[np.int64]:
    """Σ of the patients' clipped gradients in units of 2^-24, plus this hospital's share of noise.

    Args:
        gradients: [n, length] each, from `clipped_gradients`; none at all give pure noise.
        length: How many numbers a patient has.
        clip_micro: What they were clipped to.
        sigma_micro: Of the whole sum.
        honest: h.
        rho_nano: What the ledger was debited for the whole sum.
    """
    from federated.evaluation import gaussian  # noqa: PLC0415  (opendp; the hub draws nothing)

    bound = sensitivity(clip_micro, length)
    share = share_sigma_micro(sigma_micro, honest)
    if share * bound // MICRO < _SHARE_MIN:
        raise InvariantError("noise: too few units for its proof")
    total = np.zeros(length, dtype=np.int64)
    for lines in gradients:
        integers = np.rint(lines * _UNIT).astype(np.int64)
        # A second lock: a line that is too long would cost its patient more than was debited.
        norms = np.sqrt(np.square(integers.astype(np.float64)).sum(axis=1))
        if not bool((norms <= bound).all()):
            raise InvariantError("gradients: one is longer than its clipping")
        total += integers.sum(axis=0)
    noisy = gaussian(total.tolist(), share, rho_nano * honest, sensitivity=bound)
    return np.array(noisy, dtype=np.int64)


def fits(*, clip_micro: int, length: int, sigma_micro: int, population: int, parties: int) -> bool:
    """Whether no honest sum of so many hospitals can leave the range of the integers."""
    bound = sensitivity(clip_micro, length)
    each = population * bound + _SPREAD * (sigma_micro * bound // MICRO + 1)
    return parties * each < _ROOM


def to_numbers(total: Vector) -> NDArray[np.float64]:
    """The unmasked sum as numbers again."""
    return np.asarray(total.view(np.int64) / _UNIT, dtype=np.float64)


def norm_max(
    *, clip_micro: int, length: int, sigma_micro: int, population: int, parties: int
) -> float:
    """The longest an honest sum can be: every patient at her clipping, and the noise's far tail."""
    noise = sigma_micro / MICRO * sensitivity(clip_micro, length) / _UNIT
    return parties * (population * clip_micro / MICRO + noise * (math.sqrt(length) + _SPREAD))
