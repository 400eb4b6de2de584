"""The same training code in one process: what a study would reach on files one may see whole.

Uses the node's `private_gradient` and the hub's `apply_round`; only consent, signatures and
transport are left out. The test figures and references here are exact, which production could
never release: they are for public files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import MICRO, Recipe, Study
from coop.errors import ConflictError, InvalidInputError, Kind
from coop.features import Row, columns, training_matrix
from federated.accounting import Plan, plan
from federated.data import is_bundled, split
from federated.importers import Dictionary, read_csv
from federated.models import Weights, initial, predict
from federated.private_training import private_gradient, unsafe_gradient_without_noise
from federated.scores import GROUP_MIN, Scores, calibration_error, scores
from federated.step import apply_round, average

RUNS_MAX: Final = 1000
# Without noise, 100 rounds at the recipe's step; the mean of the last half. Fixed before scoring:
# longer training moves towards the unpenalised optimum and overfits 486 patients.
REFERENCE_ROUNDS: Final = 100
_CLIP_OFF: Final = 1e6  # no gradient here is longer than 3
_PERCENT: Final = 100

Matrix = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Design matrix [n, d] and labels [n]."""


class Mode(StrEnum):
    """Who adds noise."""

    A = "A"
    """Every hospital its full noise: holds whatever the others do."""
    B = "B"
    """Shares of one noise under a secure sum."""
    NONE = "none"
    """Nobody: not private."""


class SplitRule(StrEnum):
    """Which patients test."""

    AUTO = "auto"
    """FLamby's for the bundled files and a study that refuses incomplete records, else the fold."""
    FLAMBY = "flamby"
    FOLD = "fold"


class ModeNotAvailableError(InvalidInputError):
    """The study format knows mode A only."""

    code = "simulate.mode-not-available"
    kind = Kind.UNPROCESSABLE


class WrongFilesError(ConflictError):
    """The files do not fit the study or the split."""

    code = "simulate.wrong-files"
    kind = Kind.UNPROCESSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """One site's usable patients, split."""

    train: Matrix
    test: Matrix
    test_groups: list[str | None]
    quarantined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training and its scores on the test patients."""

    weights: Weights
    pooled: Scores
    calibration_error: float
    sites: dict[str, Scores]
    groups: dict[str, Scores]


def load(study: Study, files: Mapping[str, Path], rule: SplitRule) -> tuple[dict[str, Data], str]:
    """Read, check and split every site's file.

    Returns:
        Data by site, and the split used in words.
    """
    if not files:
        raise WrongFilesError("site: name at least one, as NAME=CSV")
    use_flamby = rule is SplitRule.FLAMBY or (
        rule is SplitRule.AUTO
        and all(is_bundled(path, site) for site, path in files.items())
        and any(feature.missing == "refuse" for feature in study.schema_.features)
    )
    fixed = split() if use_flamby else None
    dictionary = Dictionary.load()
    data: dict[str, Data] = {}
    for site, path in sorted(files.items()):
        extract = read_csv(path, dictionary)
        if fixed is not None:
            train, test = _fixed_parts(fixed, site, extract.patients)
        else:
            train, test = _fold_parts(site, extract.patients, study.evaluation.fold_percent)
        train_x, train_y, _ = training_matrix(train, study.schema_, study.label, site)
        test_x, test_y, kept = training_matrix(test, study.schema_, study.label, site)
        if fixed is not None and (len(train_y) != len(train) or len(test_y) != len(test)):
            raise WrongFilesError(f"{site}: the study refuses patients of the fixed split")
        tested = [row for row, keep in zip(test, kept, strict=True) if keep]
        data[site] = Data(
            train=(train_x, train_y),
            test=(test_x, test_y),
            test_groups=[_group(row, study.evaluation.group_field) for row in tested],
            quarantined=len(extract.quarantined),
        )
    words = (
        "federated/data/split.json (FLamby, seed 43)"
        if fixed is not None
        else f"{study.evaluation.fold_percent} % of patients by a hash of site and record key"
    )
    return data, words


def with_epsilon(study: Study, epsilon: float | None) -> Study:
    """The study with another epsilon; a simulation may ask what no hospital would approve."""
    if epsilon is None:
        return study
    if not 0 < epsilon <= 1000:  # noqa: PLR2004  (beyond it the noise is below float32)
        raise InvalidInputError("epsilon: must be above 0 and at most 1000")
    budget = study.budget.model_copy(update={"epsilon_micro": round(epsilon * MICRO)})
    return study.model_copy(update={"budget": budget})


def train(matrices: Mapping[str, Matrix], recipe: Recipe, sigma: float | None) -> Weights:
    """The released weights of one training.

    Args:
        matrices: Each site's training patients.
        recipe: The study's.
        sigma: Every site's noise multiplier; None trains without noise and without clipping.
    """
    iterates: list[Weights] = []
    weights = initial(next(iter(matrices.values()))[0].shape[1])
    clip = recipe.clip_micro / MICRO
    for _ in range(recipe.rounds):
        updates = {
            site: unsafe_gradient_without_noise(weights, x, y, clip=_CLIP_OFF)
            if sigma is None
            else private_gradient(weights, x, y, clip=clip, sigma=sigma)
            for site, (x, y) in matrices.items()
        }
        weights = apply_round(weights, updates, recipe)
        iterates.append(weights)
    return average(iterates, recipe.average_last)


def simulate(
    study: Study,
    data: Mapping[str, Data],
    *,
    mode: Mode,
    runs: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Run]:
    """`runs` trainings with independent noise, all of them returned.

    Raises:
        ModeNotAvailableError: Mode B.
    """
    if not 1 <= runs <= RUNS_MAX:
        raise InvalidInputError(f"runs: must be 1 to {RUNS_MAX}")
    recipe, sigma = study.recipe, None
    match mode:
        case Mode.A:
            sigma = plan(study.budget, recipe.rounds).training_sigma_micro / MICRO
        case Mode.NONE:
            recipe = _reference_recipe(recipe, sum(len(part.train[1]) for part in data.values()))
        case Mode.B:
            raise ModeNotAvailableError(
                "mode: B (secure sums) is not in the study format of this version; use A or none"
            )
    matrices = {site: part.train for site, part in data.items()}
    finished: list[Run] = []
    for _ in range(runs):
        finished.append(_scored(study, train(matrices, recipe, sigma), data))
        progress()
    return finished


def references(study: Study, data: Mapping[str, Data]) -> dict[str, object]:
    """What one could reach with the rows in one place, and each hospital alone. Without noise.

    Both read whole records: not possible in production.
    """
    pooled = simulate(study, data, mode=Mode.NONE, runs=1)[0]
    local: dict[str, Weights] = {}
    for site, part in data.items():
        recipe = _reference_recipe(study.recipe, len(part.train[1]))
        local[site] = train({site: part.train}, recipe, None)
    return {
        "note": "not possible in production: reads whole records, adds no noise",
        "local_only": summary([_locally_scored(study, local, data)]),
        "pooled_non_private": summary([pooled]),
    }


def report(
    study: Study, data: Mapping[str, Data], runs: list[Run], *, mode: Mode, split_rule: str
) -> dict[str, object]:
    """The document of `coop simulate --json`."""
    budget = plan(study.budget, study.recipe.rounds)
    private = mode is Mode.A
    return {
        "study_id": study.study_id,
        "runs": len(runs),
        "epsilon": study.budget.epsilon_micro / MICRO if private else None,
        "delta": budget.delta if private else None,
        "mode": mode.value,
        "privacy": _privacy(budget) if private else None,
        "split": split_rule,
        "patients": {
            site: {
                "train": len(part.train[1]),
                "test": len(part.test[1]),
                "quarantined": part.quarantined,
            }
            for site, part in data.items()
        },
        "columns": len(columns(study.schema_)),
        "metrics": summary(runs),
        "references": references(study, data),
        "sites": _by_name([run.sites for run in runs]),
        "groups": _by_name([run.groups for run in runs]),
        "each_run": [_figures(run) for run in runs],
    }


def summary(runs: list[Run]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation over the runs of each headline figure."""
    figures = [_figures(run) for run in runs]
    return {name: _spread([figure[name] for figure in figures]) for name in figures[0]}


def _figures(run: Run) -> dict[str, float | None]:
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


def _privacy(budget: Plan) -> dict[str, object]:
    return {
        "unit": "patient",
        "relation": "add or remove one patient",
        "accountant": "exact Gaussian, full batch",
        "adversary": "mode A: holds against the coordinator and all other hospitals",
        "training_epsilon": budget.training_epsilon,
        "training_sigma": budget.training_sigma_micro / MICRO,
        "rounds": budget.rounds,
        "not_counted": "choosing the recipe; reading test figures",
    }


def _reference_recipe(recipe: Recipe, patients: int) -> Recipe:
    return recipe.model_copy(
        update={
            "rounds": REFERENCE_ROUNDS,
            "average_last": REFERENCE_ROUNDS // 2,
            "population": max(1, patients),
        }
    )


def _scored(study: Study, weights: Weights, data: Mapping[str, Data]) -> Run:
    return _locally_scored(study, dict.fromkeys(data, weights), data)


def _locally_scored(study: Study, weights: Mapping[str, Weights], data: Mapping[str, Data]) -> Run:
    """Score each site's test patients under that site's weights."""
    probabilities = {site: predict(weights[site], part.test[0]) for site, part in data.items()}
    outcomes = {site: part.test[1] for site, part in data.items()}
    everything = np.concatenate([probabilities[site] for site in data])
    truth = np.concatenate([outcomes[site] for site in data])
    of_group = np.array([group for part in data.values() for group in part.test_groups], object)
    pooled = scores(everything, truth)
    if pooled is None:
        raise WrongFilesError("no site has a usable test patient")
    sites = {site: scores(probabilities[site], outcomes[site]) for site in data}
    groups = {
        group: scores(everything[of_group == group], truth[of_group == group])
        for group in study.evaluation.groups
    }
    return Run(
        weights=next(iter(weights.values())),
        pooled=pooled,
        calibration_error=calibration_error(everything, truth),
        sites={site: found for site, found in sites.items() if found is not None},
        groups={name: found for name, found in groups.items() if found and found.n >= GROUP_MIN},
    )


def _by_name(runs: list[dict[str, Scores]]) -> dict[str, dict[str, object]]:
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


def _group(row: Row, name: str) -> str | None:
    value = row.get(name)
    return value if isinstance(value, str) else None


def _fixed_parts(
    fixed: Mapping[str, Mapping[str, list[str]]], site: str, patients: Mapping[str, Row]
) -> tuple[list[Row], list[Row]]:
    if site not in fixed:
        raise WrongFilesError(f"{site}: not in the fixed split, which has {', '.join(fixed)}")
    try:
        train, test = ([patients[key] for key in fixed[site][part]] for part in ("train", "test"))
    except KeyError as error:
        raise WrongFilesError(f"{site}: the file lacks a patient of the fixed split") from error
    return train, test


def _fold_parts(
    site: str, patients: Mapping[str, Row], percent: int
) -> tuple[list[Row], list[Row]]:
    """A public hash in place of the node's secret fold key, so that a simulation repeats."""
    train: list[Row] = []
    test: list[Row] = []
    for key, row in patients.items():
        digest = sha256(f"coop/simulate/fold\0{site}\0{key}".encode()).digest()
        tests = int.from_bytes(digest[:8]) % _PERCENT < percent
        (test if tests else train).append(row)
    return train, test
