"""Evaluation at the hospital: a noised histogram of scores by subgroup and outcome.

Every patient of the evaluation fold is in exactly one cell, so adding or removing one changes the
histogram by 1 in one place (L2 sensitivity 1). The hub adds the hospitals' histograms and reads AUC
and accuracy from the sum (`federated.metrics`).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Not its prelude, which loads pandas for features nobody uses here: 56 MiB in every node.
from opendp.domains import atom_domain, vector_domain
from opendp.measurements import then_gaussian
from opendp.metrics import l2_distance
from opendp.mod import enable_features

from coop.documents.study import MICRO, NANO
from coop.errors import InvariantError

Histogram = NDArray[np.int64]
"""int64 [groups, 2, bins]: subgroup, outcome (0 or 1), score bin."""

_SLACK: Final = 1e-9  # relative; OpenDP rounds its own privacy map upwards by less than this


def histogram(
    probabilities: NDArray[np.float64],
    outcomes: NDArray[np.float32],
    known: NDArray[np.bool_],
    *,
    groups_of: Sequence[str | None],
    groups: Sequence[str],
    bins: int,
) -> Histogram:
    """The exact histogram; it must not leave without `noised`.

    A patient whose subgroup the study does not list, or whose outcome is not known (she was lost
    before a survival model's horizon), is in no cell.

    Args:
        probabilities: [n], in [0, 1].
        outcomes: [n], 0 or 1.
        known: [n], whether the outcome is; see `coop.families`.
        groups_of: [n], each patient's subgroup.
        groups: The study's subgroups; the first axis.
        bins: Equal bins of [0, 1]; the last one holds 1.0 too.
    """
    cells = np.zeros((len(groups), 2, bins), dtype=np.int64)
    place = {group: index for index, group in enumerate(groups)}
    for probability, outcome, is_known, group in zip(
        probabilities, outcomes, known, groups_of, strict=True
    ):
        if is_known and group in place:
            bin_ = min(int(probability * bins), bins - 1)
            cells[place[group], int(outcome > 0), bin_] += 1
    return cells


def noised(exact: Histogram, *, sigma_micro: int, rho_nano: int) -> Histogram:
    """`exact` plus discrete Gaussian noise in every cell, zeros and all.

    Args:
        exact: One patient changes one cell by one.
        sigma_micro: Standard deviation of the noise in 10⁻⁶.
        rho_nano: What the ledger was debited; a second lock on the mechanism's own privacy map.
    """
    values = gaussian(exact.ravel().tolist(), sigma_micro, rho_nano)
    return np.array(values, dtype=np.int64).reshape(exact.shape)


def gaussian(
    values: list[int], sigma_micro: int, rho_nano: int, *, sensitivity: int = 1
) -> list[int]:
    """Integers with OpenDP's exact discrete Gaussian noise; no floating-point holes, no seed.

    Args:
        values: One patient changes them by at most `sensitivity` in L2.
        sigma_micro: Standard deviation in 10⁻⁶ of `sensitivity`.
        rho_nano: The zCDP cost that was debited.
        sensitivity: In units of the values.

    Raises:
        InvariantError: The mechanism costs more than was debited.
    """
    enable_features("contrib")
    space = vector_domain(atom_domain(T=int)), l2_distance(T=float)
    mechanism = space >> then_gaussian(scale=sigma_micro * sensitivity / MICRO)
    if mechanism.map(float(sensitivity)) > rho_nano / NANO * (1 + _SLACK):
        raise InvariantError("noise: the mechanism costs more than was debited for it")
    return [int(value) for value in mechanism(values)]
