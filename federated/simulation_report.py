"""What `coop simulate` says: figures over all runs, beside what nobody could have in production."""

from collections.abc import Mapping
from typing import Final

from coop.documents.study import MICRO, Study
from coop.documents.training import ADVERSARY_A, accountant, adversary_b
from coop.families import family_of, public_seed
from coop.features import columns
from federated.accounting import Plan, plan
from federated.models import Weights
from federated.run_figures import Run, by_name, figures_of, summary
from federated.simulate import (
    Data,
    Mode,
    honest_of,
    reference_recipe,
    scored_on,
    simulate,
    train,
)

TOGETHER: Final = "together"
"""Where the model of all hospitals was trained, in a matrix of hospitals."""


def report(
    study: Study,
    data: Mapping[str, Data],
    runs: list[Run],
    *,
    mode: Mode,
    split_rule: str,
    honest: int | None = None,
) -> dict[str, object]:
    """The document of `coop simulate --json`."""
    shares = honest_of(study, len(data), honest) if mode is Mode.B else 1
    budget = plan(study.budget, study.recipe.schedule)
    private = mode is not Mode.NONE
    local = local_models(study, data)
    return {
        "study_id": study.study_id,
        "runs": len(runs),
        "epsilon": study.budget.epsilon_micro / MICRO if private else None,
        "delta": budget.delta if private else None,
        "mode": mode.value,
        "privacy": _privacy(budget, shares) if private else None,
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
        "references": references(study, data, local),
        "cross_site": cross_site(study, data, local, runs),
        "sites": by_name([run.sites for run in runs]),
        "groups": by_name([run.groups for run in runs]),
        "each_run": [figures_of(run) for run in runs],
    }


def _privacy(budget: Plan, honest: int) -> dict[str, object]:
    adversary = ADVERSARY_A if honest == 1 else adversary_b(honest)
    return {
        "unit": "patient",
        "relation": "add or remove one patient",
        "accountant": accountant(budget.sampling_micro),
        "adversary": adversary,
        "honest": honest,
        "training_epsilon": budget.training_epsilon,
        "training_sigma": budget.training_sigma_micro / MICRO,
        "rounds": budget.rounds,
        "not_counted": "choosing the recipe; reading test figures",
    }


def local_models(study: Study, data: Mapping[str, Data]) -> dict[str, Weights]:
    """What each hospital would train on its own patients alone, without noise."""
    local: dict[str, Weights] = {}
    for site, part in data.items():
        recipe = reference_recipe(study.recipe, len(part.train[1]))
        local[site] = train(
            {site: part.train}, recipe, None, family=family_of(study), seed=public_seed(study)
        )
    return local


def cross_site(
    study: Study, data: Mapping[str, Data], local: Mapping[str, Weights], runs: list[Run]
) -> dict[str, dict[str, dict[str, object]]]:
    """Whose model serves whose patients: each hospital's own, and the one trained together.

    Returns:
        By where it was trained (`together` over all runs), by whose patients test it:
        {"auc": {"mean", "sd"}, "accuracy": {"mean", "sd"}, …} as in "sites" of the report.
    """
    rows = {
        site: by_name([scored_on(study, dict.fromkeys(data, weights), data).sites])
        for site, weights in local.items()
    }
    return {**rows, TOGETHER: by_name([run.sites for run in runs])}


def references(
    study: Study, data: Mapping[str, Data], local: Mapping[str, Weights]
) -> dict[str, object]:
    """What one could reach with the rows in one place, and each hospital alone. Without noise.

    Both read whole records: not possible in production.
    """
    pooled = simulate(study, data, mode=Mode.NONE, runs=1)[0]
    return {
        "note": "not possible in production: reads whole records, adds no noise",
        "local_only": summary([scored_on(study, local, data)]),
        "pooled_non_private": summary([pooled]),
    }
