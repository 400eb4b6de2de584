"""What the hub does with a round's updates: the same arithmetic in production and simulation.

Pure numpy. Sites are summed in the order of their names, so the result depends on no arrival order.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from coop.documents.study import MICRO, Recipe
from coop.errors import InvariantError
from federated.models import Weights
from federated.robust import combined


def apply_round(
    weights: Weights,
    updates: Mapping[str, Weights],
    recipe: Recipe,
    registered: Mapping[str, int] | None = None,
) -> Weights:
    """The weights after one gradient step with the sum of the sites' noised gradient sums.

    The sum, or what the study's rule takes for it, is divided by the study's public population (of
    a sampled round: by how many of it a sample is expected to hold), never by a count of today's
    cohort.

    Args:
        weights: Before the round.
        updates: Site → its noised sum of clipped gradients; checked by the gate before.
        recipe: The study's.
        registered: How many patients of each site permitted the study; for rules but the sum.

    Raises:
        TooFewForRuleError: The study's rule needs more hospitals.
    """
    if not updates:
        raise InvariantError("a round without any update must not be applied")
    expected = recipe.population * (recipe.sampling_micro / MICRO)
    moved: Weights = {}
    for name, value in weights.items():
        parts = {site: update[name].astype(np.float64) for site, update in updates.items()}
        total = combined(recipe.aggregation, parts, registered)
        step = recipe.learning_rate_micro / MICRO * total / expected
        moved[name] = (value.astype(np.float64) - step).astype(np.float32)
    return moved


def average(iterates: Sequence[Weights], last: int) -> Weights:
    """The released weights: the mean of the last `last` iterates (all, if there are fewer).

    Post-processing of what the hub already saw, so it costs no privacy; it evens out the noise.
    """
    if not iterates or last < 1:
        raise InvariantError("nothing to average")
    tail = iterates[-last:]
    return {
        name: np.stack([weights[name].astype(np.float64) for weights in tail])
        .mean(axis=0)
        .astype(np.float32)
        for name in tail[0]
    }
