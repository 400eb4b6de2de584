"""How the hospitals' updates become one: their sum, or a rule that a few bad hospitals cannot move.

Pure numpy. In mode A every update is noised before it leaves, so looking at single ones costs no
further privacy, and whatever is done with them is post-processing. A rule reads each update as the
mean over the hospital's registered consents (never over a number the hospital sends) and answers on
the scale of the sum over everybody registered: where all hospitals agree, both give the same.

What the rules promise: with so many hospitals that fewer than a `TRIM` of them are bad, every
coordinate of the answer lies between honest hospitals' values (Yin et al. 2018). What they do not:
with a few unequal hospitals they protect nothing worth the name (privacy.md §7), so a study must
ask for `HOSPITALS_MIN`; and a bad hospital may still bend what the honest ones disagree about.
"""

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import ROBUST_MIN
from coop.errors import CoopError, Kind

Rule = Literal["sum", "trimmed-mean", "median"]
Total = NDArray[np.float64]

TRIM: Final = 0.3
"""Of the hospitals, cut off at either end of every coordinate."""


class TooFewForRuleError(CoopError):
    """Too few hospitals answered for a rule that some of them must not be able to move."""

    code = "round.too-few-for-rule"
    kind = Kind.CONFLICT


def combined(
    rule: Rule, updates: Mapping[str, Total], registered: Mapping[str, int] | None = None
) -> Total:
    """One array out of every hospital's, on the scale of their sum.

    Args:
        rule: The study's.
        updates: Site → its noised sum of clipped gradients, one array; all of one shape, finite.
        registered: Site → how many of its patients permitted the study, by the consent registry;
            needed by every rule but the sum. A site with none is left out: its update is noise.

    Raises:
        TooFewForRuleError: Fewer than `ROBUST_MIN` hospitals with registered consents.
    """
    if rule == "sum":
        # In the order of names, so that the result depends on no arrival order.
        total = np.zeros_like(next(iter(updates.values())))
        for site in sorted(updates):
            total += updates[site]
        return total
    counted = registered or {}
    sites = [site for site in sorted(updates) if counted.get(site, 0) > 0]
    if len(sites) < ROBUST_MIN:
        raise TooFewForRuleError(f"aggregation: {rule} needs {ROBUST_MIN} hospitals that answer")
    weights = np.array([counted[site] for site in sites], dtype=np.float64)
    shape = (len(sites), *np.ones(updates[sites[0]].ndim, dtype=int))
    means = np.stack([updates[site] for site in sites]) / weights.reshape(shape)
    if rule == "median":
        return np.asarray(np.median(means, axis=0) * weights.sum())
    cut = max(1, int(TRIM * len(sites)))
    order = np.argsort(means, axis=0, kind="stable")[cut : len(sites) - cut]
    kept = np.take_along_axis(means, order, axis=0)
    shares = weights[order]
    return np.asarray((kept * shares).sum(axis=0) / shares.sum(axis=0) * weights.sum())
