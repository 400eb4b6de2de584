"""Figures over simulated trainings: mean and spread over all runs, none of them left out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import Study
from coop.errors import ConflictError, Kind
from coop.families import Cox, family_of
from federated.models import Weights
from federated.scores import GROUP_MIN, Scores, c_index, calibration_error, scores

Tested = tuple[NDArray[np.float32], NDArray[np.float32], list[str | None]]
"""One site's test patients: design matrix, labels, subgroups."""


class WrongFilesError(ConflictError):
    """The files do not fit the study or the split."""

    code = "simulate.wrong-files"
    kind = Kind.UNPROCESSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training and its scores on the test patients."""

    weights: Weights
    pooled: Scores
    calibration_error: float
    c_index: float | None
    """Harrell's; of a yes/no outcome it is the area under the ROC curve."""
    sites: dict[str, Scores]
    groups: dict[str, Scores]


def scored(study: Study, weights: Mapping[str, Weights], tests: Mapping[str, Tested]) -> Run:
    """Score each site's test patients under that site's weights.

    Of a time to an event, every figure but the c-index is of the event within the horizon, over
    those of whom that is known.

    Raises:
        WrongFilesError: There is no such patient at any site.
    """
    family = family_of(study)
    risks = {site: family.predict(weights[site], x) for site, (x, _, _) in tests.items()}
    seen = {site: family.evaluated(y) for site, (_, y, _) in tests.items()}
    probabilities = {site: risks[site][known] for site, (_, known) in seen.items()}
    outcomes = {site: outcome[known] for site, (outcome, known) in seen.items()}
    everything = np.concatenate([probabilities[site] for site in tests])
    truth = np.concatenate([outcomes[site] for site in tests])
    of_group = np.array([group for _, _, groups in tests.values() for group in groups], object)
    of_group = of_group[np.concatenate([known for _, known in seen.values()])]
    pooled = scores(everything, truth)
    if pooled is None:
        raise WrongFilesError("no site has a usable test patient")
    sites = {site: scores(probabilities[site], outcomes[site]) for site in tests}
    groups = {
        group: scores(everything[of_group == group], truth[of_group == group])
        for group in study.evaluation.groups
    }
    return Run(
        weights=next(iter(weights.values())),
        pooled=pooled,
        calibration_error=calibration_error(everything, truth),
        c_index=_concordance(risks, tests) if isinstance(family, Cox) else pooled.auc,
        sites={site: found for site, found in sites.items() if found is not None},
        groups={name: found for name, found in groups.items() if found and found.n >= GROUP_MIN},
    )


def _concordance(
    risks: Mapping[str, NDArray[np.float64]], tests: Mapping[str, Tested]
) -> float | None:
    """Harrell's c over all test patients."""
    times = np.concatenate([y for _, y, _ in tests.values()])
    return c_index(np.concatenate([risks[site] for site in tests]), times)


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
        "c_index": run.c_index,
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
