"""How much attackers get: of who was trained on, and with hospitals of their own, of the model.

Everything runs through the shipped code: `private_gradient` at the hospital, the gate, the rule of
aggregation and `apply_round` at the hub.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from rows import Rows
from sklearn.datasets import load_breast_cancer

from coop.documents.study import Study
from coop.studyfile import load_study
from federated.accounting import plan
from federated.membership import Success, likelihood_ratios, success
from federated.models import predict
from federated.simulate import Matrix, train, with_epsilon

ROOT = Path(__file__).parent.parent
SHADOWS = 256
MISLABELLED = 30
REFERENCE_ROUNDS = 100
FPR_TARGET = 0.005
WORKING_AUC = 0.6


def main() -> None:
    """Run everything and write `.coop/bench/attacks.json`."""
    rows = Rows("attacks")
    membership(rows)
    rows.finish()


def membership(rows: Rows, shadows: int = SHADOWS) -> None:
    """Rows of the likelihood-ratio attack on shadows of one training at several epsilons."""
    base = f"breast-cancer set of scikit-learn, 569 x 30, {MISLABELLED} mislabelled, {shadows} "
    base += "shadows of random halves, each attacked with the others; "
    unprotected = attacked(None, shadows)
    # An attack that finds nobody where nothing hides them would prove nothing elsewhere.
    works = unprotected.odd.auc > WORKING_AUC
    for epsilon, one in ((None, unprotected), (8, attacked(8, shadows)), (1, attacked(1, shadows))):
        tag = "no privacy" if epsilon is None else f"ε={epsilon:g}"
        note = f"{base}ε={epsilon}, δ=1e-5, full batch, 20 rounds"
        if epsilon is None:
            note = f"{base}no noise, {REFERENCE_ROUNDS} rounds"
        for who, found in (("all", one.everybody), ("mislabelled", one.odd)):
            rows.add(
                f"LiRA true positives at 0.1 % false, {who}, {tag}",
                found.at_one_per_mille,
                "share",
                input=note,
                target=FPR_TARGET if epsilon == 1 and who == "all" else None,
                better="lower",
                checked=works,
            )
            rows.add(f"LiRA AUC, {who}, {tag}", found.auc, "AUC", input=note, better="lower")
        rows.add(f"accuracy on who was left out, {tag}", one.accuracy, "share", input=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """How an attack on every shadow went, and what the shadows were worth."""

    everybody: Success
    odd: Success
    """On the mislabelled alone."""
    accuracy: float


def attacked(epsilon: float | None, shadows: int) -> Attacked:
    """The attack on shadows trained at `epsilon`; None: without any privacy."""
    x, y, odd = patients()
    study = Study.model_validate(load_study(ROOT / "examples" / "heart-disease" / "study.yaml"))
    recipe = study.recipe.model_copy(update={"population": len(y) // 2})
    split = plan(with_epsilon(study, epsilon or 1).budget, recipe.schedule)
    if epsilon is None:
        long = {"rounds": REFERENCE_ROUNDS, "average_last": 1}
        recipe = recipe.model_copy(update=long)
    generator = np.random.default_rng(2)
    members = generator.integers(0, 2, (shadows, len(y))) == 1
    confidences = np.empty(members.shape)
    for shadow in track(range(shadows), f"shadows, ε={epsilon or float('inf'):g}"):
        matrix: Matrix = (x[members[shadow]], y[members[shadow]])
        weights = train({"site": matrix}, recipe, None if epsilon is None else split)
        probabilities = predict(weights, x).clip(1e-12, 1 - 1e-12)
        confidences[shadow] = np.log(probabilities / (1 - probabilities)) * (2 * y - 1)
    ratios = likelihood_ratios(confidences, members)
    usual = np.setdiff1d(np.arange(len(y)), odd)
    return Attacked(
        everybody=success(ratios, members),
        odd=success(ratios[:, odd], members[:, odd]),
        accuracy=float((confidences[:, usual] > 0)[~members[:, usual]].mean()),
    )


def patients() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int_]]:
    """The set as the study's model reads one: scaled, a constant column; and who is mislabelled.

    The scale is the whole set's own, taken as public.
    """
    values, outcomes = load_breast_cancer(return_X_y=True)
    scaled = np.clip((values - values.mean(axis=0)) / values.std(axis=0), -2.5, 2.5) / 4
    x = np.column_stack([scaled, np.ones(len(scaled))]).astype(np.float32)
    y = outcomes.astype(np.float32)
    odd = np.random.default_rng(1).choice(len(y), MISLABELLED, replace=False)
    y[odd] = 1 - y[odd]
    return x, y, odd


if __name__ == "__main__":
    main()
