"""Figures over simulated trainings: mean and spread over all runs, none of them left out."""

from dataclasses import dataclass

import numpy as np

from federated.models import Weights
from federated.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training and its scores on the test patients."""

    weights: Weights
    pooled: Scores
    calibration_error: float
    sites: dict[str, Scores]
    groups: dict[str, Scores]


def summary(runs: list[Run]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation over the runs of each headline figure."""
    each = [figures_of(run) for run in runs]
    return {name: _spread([one[name] for one in each]) for name in each[0]}


def figures_of(run: Run) -> dict[str, float | None]:
    """The headline figures of one training."""
    return {
        "auc_pooled": run.pooled.auc,
        "accuracy_mean_of_sites": float(np.mean([s.accuracy for s in run.sites.values()])),
        "accuracy_pooled": run.pooled.accuracy,
        "auc_mean_of_sites": _mean([s.auc for s in run.sites.values()]),
        "brier": run.pooled.brier,
        "calibration_error": run.calibration_error,
        # For a yes/no outcome Harrell's c is the area under the ROC curve.
        "c_index": run.pooled.auc,
    }


def by_name(runs: list[dict[str, Scores]]) -> dict[str, dict[str, object]]:
    """The same for each hospital or subgroup that could be scored."""
    fields = ("accuracy", "auc", "brier", "calibration", "sensitivity", "specificity")
    return {
        name: {
            "n": first.n,
            "positive": first.positive,
            **{field: _spread([getattr(run[name], field) for run in runs]) for field in fields},
        }
        for name, first in runs[0].items()
    }


def _spread(values: list[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "sd": None}
    return {
        "mean": float(np.mean(known)),
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else 0.0,
    }


def _mean(values: list[float | None]) -> float | None:
    return _spread(values)["mean"]
