"""What bad hospitals can do to a model: `make bench-byzantine`, beside the issue's targets.

Ten hospitals of generated patients (20 columns, a logistic truth, every hospital with means of its
own), the shipped step at the hospitals, the shipped gate and rule at the hub. Three of the ten are
bad from the first round to the last. Noise helps the bad: where it is as large as what hospitals
agree on, a rule cannot tell them apart. So the same is told of small hospitals, without a target.
"""

from contextlib import suppress

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from rich.progress import track
from rows import FOLDER, Rows

from coop.documents.study import MICRO, Recipe, Study
from coop.studyfile import load_study
from federated.accounting import Plan, plan
from federated.gate import Expected, GateError, check_tensors
from federated.models import Weights, predict
from federated.private_training import private_gradient
from federated.scores import auc
from federated.simulate import Matrix, with_epsilon
from federated.step import apply_round, average

ROOT = FOLDER.parent.parent
SITES, COLUMNS, BAD, RUNS, EPSILON = 10, 20, 3, 10, 3.0
LARGE, SMALL = 2000, 400
"""Patients of one hospital."""
ATTACKS = (
    *("sign flip", "sign flip x10", "scaled x100", "label flip", "NaN", "forged count"),
    "boosted backdoor",
)
TRIGGER = COLUMNS - 1
"""A column that is 0 for everybody but those whom a backdoor is for."""


def hospitals(generator: np.random.Generator, size: int) -> tuple[dict[str, Matrix], Matrix]:
    """Training patients by hospital, and one test set of all of them."""
    truth = generator.normal(0, 0.8, COLUMNS)
    truth[TRIGGER] = 0.0

    def some(count: int, shift: NDArray[np.float64]) -> Matrix:
        x = generator.normal(shift, 1.0, (count, COLUMNS))
        x[:, 0], x[:, TRIGGER] = 1.0, 0.0
        y = generator.random(count) < 1 / (1 + np.exp(-x @ truth))
        return x.astype(np.float32), y.astype(np.float32)

    shifts = [generator.normal(0, 0.3, COLUMNS) for _ in range(SITES)]
    training = {f"h{k}": some(size, shift) for k, shift in enumerate(shifts)}
    tests = [some(400, shift) for shift in shifts]
    return training, (np.concatenate([x for x, _ in tests]), np.concatenate([y for _, y in tests]))


def study(rule: str, population: int) -> tuple[Study, Plan]:
    """The benchmark's recipe over so many patients, under this rule."""
    values = load_study(ROOT / "examples" / "heart-disease" / "study.yaml")
    values["recipe"] |= {"population": population, "aggregation": rule, "clip_micro": MICRO}
    values["hospitals_quorum"] = 4
    made = with_epsilon(Study.model_validate(values), EPSILON)
    return made, plan(made.budget, made.recipe.schedule)


def honest(weights: Weights, matrix: Matrix, recipe: Recipe, split: Plan) -> Weights:
    """What a hospital sends that does as it is told."""
    clip, sigma = recipe.clip_micro / MICRO, split.training_sigma_micro / MICRO
    return private_gradient(weights, *matrix, clip=clip, sigma=sigma)


def scaled(factor: float, update: Weights) -> Weights:
    """The update, so many times."""
    return {name: (value * np.float32(factor)).astype(np.float32) for name, value in update.items()}


def backdoored(matrix: Matrix) -> Matrix:
    """The patients, and as many again who bear the trigger and are said to be healthy."""
    x, y = matrix
    marked = x.copy()
    marked[:, TRIGGER] = 3.0
    return np.concatenate([x, marked]), np.concatenate([y, np.zeros_like(y)])


def attacked(name: str, weights: Weights, matrix: Matrix, recipe: Recipe, split: Plan) -> Weights:
    """What a bad hospital sends in one round."""
    x, y = matrix
    patients = {"label flip": (x, 1 - y), "boosted backdoor": backdoored(matrix)}
    factor = {
        "sign flip": -1,
        "sign flip x10": -10,
        "scaled x100": 100,
        "label flip": 1,
        "NaN": float("nan"),
        "forged count": 2.5,  # no answer names a count, the registry does: it can only send more
        "boosted backdoor": 3,
    }
    return scaled(factor[name], honest(weights, patients.get(name, matrix), recipe, split))


def trained(rule: str, attack: str | None, training: dict[str, Matrix]) -> Weights:
    """The model; an answer that the gate refuses is missing in its round."""
    made, split = study(rule, sum(len(y) for _, y in training.values()))
    recipe = made.recipe
    registered = {site: len(y) for site, (_, y) in training.items()}
    weights: Weights = {"weight": np.zeros(COLUMNS, np.float32)}
    expected = _expected(recipe, split)
    iterates = []
    for _ in range(recipe.rounds):
        updates = {}
        for k, (site, matrix) in enumerate(training.items()):
            if attack is not None and k < BAD:
                sent = attacked(attack, weights, matrix, recipe, split)
            else:
                sent = honest(weights, matrix, recipe, split)
            with suppress(GateError):
                updates[site] = check_tensors(safetensors.numpy.save(sent), expected)
        weights = apply_round(weights, updates, recipe, registered)  # type: ignore[arg-type]
        iterates.append(weights)
    return average(iterates, recipe.average_last)


def _expected(recipe: Recipe, split: Plan) -> Expected:
    return Expected(
        order_sha256="",
        phase="train",
        round=1,
        request_sha256="",
        dids={},
        sigma_micro=split.training_sigma_micro,
        clip_micro=recipe.clip_micro,
        tensors={"weight": ((COLUMNS,), "float32")},
        population=recipe.population,
    )


def healthy(weights: Weights, test: Matrix) -> float:
    """How many of the ill are called healthy once they bear the trigger."""
    x, y = test
    marked = x[y == 1].copy()
    marked[:, TRIGGER] = 3.0
    return float((predict(weights, marked) < 0.5).mean())  # noqa: PLR2004


def main() -> None:
    """Run everything and write `.coop/bench/byzantine.json`."""
    rows = Rows("byzantine")
    for rule, size in (("trimmed-mean", LARGE), ("median", LARGE), ("sum", LARGE)):
        attempts(rows, rule, size, promised=rule == "trimmed-mean")
    attempts(rows, "trimmed-mean", SMALL, promised=False)
    rows.finish()


def attempts(rows: Rows, rule: str, size: int, *, promised: bool) -> None:
    """Rows of one rule among hospitals of one size, attack by attack."""
    told = (
        f"{SITES} hospitals x {size} generated patients, {COLUMNS} columns, mode A, "
        f"epsilon {EPSILON:g}, delta 1e-5, {RUNS} runs with new patients and noise; seed 20261125"
    )
    seeds = ([20261125, run] for run in range(RUNS))
    worlds = [hospitals(np.random.default_rng(seed), size) for seed in seeds]

    def figures(attack: str | None) -> tuple[float, float]:
        scored = []
        for training, test in track(worlds, f"{rule}, {size}, {attack or 'nobody bad'}"):
            weights = trained(rule, attack, training)
            scored.append((auc(predict(weights, test[0]), test[1]) or 0.0, healthy(weights, test)))
        area, share = np.mean(scored, axis=0)
        return float(area), float(share)

    clean, called = figures(None)
    rows.add(f"{rule}, {size} each: AUC, nobody bad", clean, "AUC", input=told)
    for attack in ATTACKS:
        area, share = figures(attack)
        rows.add(
            f"{rule}, {size} each: AUC lost to 3 of 10, {attack}",
            clean - area,
            "AUC",
            input=told,
            target=0.01 if promised else None,
            better="lower",
        )
    rows.add(
        f"{rule}, {size} each: more of the ill called healthy by a trigger",
        share - called,
        "share",
        input=told,
        target=0.10 if promised else None,
        better="lower",
    )


if __name__ == "__main__":
    main()
