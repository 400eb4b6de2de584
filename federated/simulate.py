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
from coop.errors import InvalidInputError, Kind
from coop.families import LOGISTIC_REGRESSION, Family, family_of, public_seed
from coop.features import Row, training_matrix
from federated.accounting import Plan, noise_micro_for, plan
from federated.data import is_bundled, split
from federated.importers import Dictionary
from federated.integer_noise import noised_sum, to_numbers
from federated.masked_sum import threshold_allowed
from federated.models import Weights, unflatten
from federated.private_training import (
    clipped_gradients,
    private_gradient,
    unsafe_gradient_without_noise,
)
from federated.record_import import read_patients
from federated.run_figures import Run, WrongFilesError, scored
from federated.step import apply_round, average

RUNS_MAX: Final = 1000
# Without noise, 100 rounds at the recipe's step; the mean of the last half. Fixed before scoring:
# longer training moves towards the unpenalised optimum and overfits 486 patients.
REFERENCE_ROUNDS: Final = 100
_CLIP_OFF: Final = 1e6  # no gradient here is longer than 3
_PERCENT: Final = 100

Matrix = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Design matrix [n, d] and labels, as `coop.features` makes them."""


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


class TooFewHonestError(InvalidInputError):
    """Mode B needs at least three hospitals and relies on more than two thirds of them."""

    code = "simulate.too-few-honest"
    kind = Kind.UNPROCESSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """One site's usable patients, split."""

    train: Matrix
    test: Matrix
    test_groups: list[str | None]
    quarantined: int


def load(
    study: Study, files: Mapping[str, Path], rule: SplitRule, dictionary: Dictionary | None = None
) -> tuple[dict[str, Data], str]:
    """Read, check and split every site's file.

    Args:
        study: On a table, or on records.
        files: By site.
        rule: Who tests.
        dictionary: What a table's columns may hold; the bundled cardiology one by default.

    Returns:
        Data by site, and the split used in words.
    """
    if not files:
        raise WrongFilesError("site: name at least one, as NAME=CSV")
    use_flamby = rule is SplitRule.FLAMBY or (
        rule is SplitRule.AUTO
        and study.index is None
        and all(is_bundled(path, site) for site, path in files.items())
        and any(feature.missing == "refuse" for feature in study.schema_.features)
    )
    fixed = split() if use_flamby else None
    data: dict[str, Data] = {}
    for site, path in sorted(files.items()):
        patients, quarantined = read_patients(study, path, dictionary)
        if fixed is not None:
            train, test = _fixed_parts(fixed, site, patients)
        else:
            train, test = _fold_parts(site, patients, study.evaluation.fold_percent)
        train_x, train_y, _ = training_matrix(train, study.schema_, study.label, site)
        test_x, test_y, kept = training_matrix(test, study.schema_, study.label, site)
        if fixed is not None and (len(train_y) != len(train) or len(test_y) != len(test)):
            raise WrongFilesError(f"{site}: the study refuses patients of the fixed split")
        tested = [row for row, keep in zip(test, kept, strict=True) if keep]
        data[site] = Data(
            train=(train_x, train_y),
            test=(test_x, test_y),
            test_groups=[_group(row, study.evaluation.group_field) for row in tested],
            quarantined=quarantined,
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
    recipe = study.recipe
    if recipe.noise_micro is not None:
        noise = noise_micro_for(budget, recipe.schedule)
        recipe = recipe.model_copy(update={"noise_micro": noise})
    return study.model_copy(update={"budget": budget, "recipe": recipe})


def train(
    matrices: Mapping[str, Matrix],
    recipe: Recipe,
    split: Plan | None,
    honest: int = 1,
    *,
    family: Family = LOGISTIC_REGRESSION,
    seed: bytes = b"",
) -> Weights:
    """The released weights of one training.

    Args:
        matrices: Each site's training patients.
        recipe: The study's.
        split: The study's plan; None trains without noise and without clipping.
        honest: 1: every site adds the whole noise (mode A); h: a share each (mode B).
        family: What is trained.
        seed: Where its weights start from (`coop.families.public_seed`).
    """
    iterates: list[Weights] = []
    registered = {site: len(matrix[1]) for site, matrix in matrices.items()}
    weights = family.initial(next(iter(matrices.values()))[0].shape[1], seed)
    for _ in range(recipe.rounds):
        if split is not None and honest > 1:
            updates = {"sum": _secret_sum(weights, matrices, recipe, split, honest, family)}
        else:
            updates = {
                site: _update(weights, matrix, recipe, split, family)
                for site, matrix in matrices.items()
            }
        weights = apply_round(weights, updates, recipe, registered)
        iterates.append(weights)
    return average(iterates, recipe.average_last)


def _update(
    weights: Weights, matrix: Matrix, recipe: Recipe, split: Plan | None, family: Family
) -> Weights:
    if split is None:
        return unsafe_gradient_without_noise(weights, *matrix, clip=_CLIP_OFF, family=family)
    clip, sigma = recipe.clip_micro / MICRO, split.training_sigma_micro / MICRO
    q = recipe.sampling_micro / MICRO
    return private_gradient(weights, *matrix, clip=clip, sigma=sigma, family=family, sampling=q)


def _secret_sum(
    weights: Weights,
    matrices: Mapping[str, Matrix],
    recipe: Recipe,
    split: Plan,
    honest: int,
    family: Family,
) -> Weights:
    """What the hub sees in mode B: the sum of the sites' integers; the masks would cancel in it."""
    length = sum(value.size for value in weights.values())
    sums = [
        noised_sum(
            clipped_gradients(weights, *matrix, clip=recipe.clip_micro / MICRO, family=family),
            length,
            clip_micro=recipe.clip_micro,
            sigma_micro=split.training_sigma_micro,
            honest=honest,
            rho_nano=split.rho_round_nano,
        )
        for matrix in matrices.values()
    ]
    total = np.asarray(np.sum(sums, axis=0, dtype=np.int64))
    return unflatten(to_numbers(total.view(np.uint64)), weights)


def simulate(
    study: Study,
    data: Mapping[str, Data],
    *,
    mode: Mode,
    runs: int,
    honest: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Run]:
    """`runs` trainings with independent noise, all of them returned.

    Args:
        study: What is trained.
        data: By site.
        mode: Who adds noise.
        runs: How many trainings.
        honest: h of mode B; by default the study's, or else the fewest that may be relied on.
        progress: Called after each.

    Raises:
        TooFewHonestError: Mode B with fewer sites or honest ones than its proof needs.
    """
    if not 1 <= runs <= RUNS_MAX:
        raise InvalidInputError(f"runs: must be 1 to {RUNS_MAX}")
    recipe, split, shares = study.recipe, plan(study.budget, study.recipe.schedule), 1
    match mode:
        case Mode.A:
            pass
        case Mode.NONE:
            recipe = reference_recipe(recipe, sum(len(part.train[1]) for part in data.values()))
        case Mode.B:
            if recipe.aggregation != "sum" or recipe.sampling_micro < MICRO:
                raise InvalidInputError("recipe: in mode B a sum over every patient, no sample")
            shares = honest_of(study, len(data), honest)
    matrices = {site: part.train for site, part in data.items()}
    family, seed = family_of(study), public_seed(study)
    used = None if mode is Mode.NONE else split
    finished: list[Run] = []
    for _ in range(runs):
        weights = train(matrices, recipe, used, shares, family=family, seed=seed)
        finished.append(scored_on(study, dict.fromkeys(data, weights), data))
        progress()
    return finished


def honest_of(study: Study, sites: int, asked: int | None) -> int:
    """The h of mode B: what was asked, the study's own, or the fewest that may be relied on.

    Raises:
        TooFewHonestError: The masked sum's proof does not cover it.
    """
    own = study.recipe.honest if study.recipe.mode == "B" else 2 * sites // 3 + 1
    honest = own if asked is None else asked
    if not threshold_allowed(honest, sites):
        raise TooFewHonestError(
            f"honest: must be more than two thirds of at least 3 sites, and {sites} at most"
        )
    return honest


def reference_recipe(recipe: Recipe, patients: int) -> Recipe:
    """The study's recipe without noise: long enough that a reference has converged."""
    return recipe.model_copy(
        update={
            "sampling_micro": MICRO,
            "aggregation": "sum",
            "rounds": REFERENCE_ROUNDS,
            "average_last": REFERENCE_ROUNDS // 2,
            "population": max(1, patients),
        }
    )


def scored_on(study: Study, weights: Mapping[str, Weights], data: Mapping[str, Data]) -> Run:
    """The scores of each site's test patients under that site's weights."""
    return scored(
        study, weights, {site: (*part.test, part.test_groups) for site, part in data.items()}
    )


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
