"""Model families: what a model of each kind consists of, what it predicts, and its ONNX graph.

A family is reviewed code in a release, never code from a job; a study chooses one by name. Hub,
node and gateway use it through `Family` alone; how its per-patient loss is learnt from stands at
the node (`federated.networks`). To add one, see docs/families.md. Pure numpy; onnx loads only where
a graph is built.
"""

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from coop.canonical import Hash, digest
from coop.documents.study import MICRO, Label, Outcome, Recipe, Study, SurvivalLabel
from coop.errors import InvalidInputError
from coop.families.cox import Cox as Cox
from coop.families.logistic import LogisticRegression as LogisticRegression
from coop.families.mlp import Mlp as Mlp

Family = LogisticRegression | Mlp | Cox
"""One kind of model. Every family answers to the same names:

`name`                          in the study file, documents and artefacts
`shapes(columns)`               tensor → shape: all the weights there are, all float32
`initial(columns, seed)`        where every training starts: of public things only, never of data
`check_outcomes(y)`             raises where labels are not what `coop.features.label` makes
`evaluated(y)`                  each patient's yes/no outcome, and whether it is known
`predict(weights, x)`           float64 [n]: the risk, in [0, 1], of that outcome
`reach(weights)`                how far a score can move while every |x| is at most 1
`graph(weights)`                ONNX nodes and initializers from `x` [n, d] to `y` [n, 1]
`words()`                       what `io.json` says of it; `named` reads it back
"""

LOGISTIC_REGRESSION = LogisticRegression()


def family_of(study: Study) -> Family:
    """The study's family."""
    return family_from(study.recipe, study.label)


def family_from(recipe: Recipe, label: Outcome) -> Family:
    """The family that a recipe names, for this outcome."""
    match recipe.family:
        case "logistic-regression":
            return LOGISTIC_REGRESSION
        case "mlp":
            if recipe.hidden is None or recipe.activation is None:
                raise InvalidInputError("recipe: an mlp needs hidden and activation")
            return Mlp(hidden=recipe.hidden, activation=recipe.activation)
        case "cox":
            if isinstance(label, Label):
                raise InvalidInputError("label: cox needs time, event and intervals")
            return _cox(label)
        case _:
            assert_never(recipe.family)


def named(words: Mapping[str, Any], label: Mapping[str, Any]) -> Family:
    """The family that `words` (of a model's `io.json`) and its outcome describe.

    Raises:
        InvalidInputError: They describe none.
    """
    try:
        match words:
            case {"name": "logistic-regression", **rest} if not rest:
                return LOGISTIC_REGRESSION
            case {"name": "mlp", "hidden": int(hidden), "activation": "tanh" | "relu" as how}:
                return Mlp(hidden=hidden, activation="tanh" if how == "tanh" else "relu")
            case {"name": "cox", **rest} if not rest:
                return _cox(SurvivalLabel.model_validate(label))
            case _:
                raise InvalidInputError("family: not one this release knows")
    except ValueError as error:
        raise InvalidInputError("label: not one of this family") from error


def public_seed(study: Study) -> Hash:
    """What a study's initial weights are drawn from: its own text, older than any data read."""
    return digest(b"coop/initial-weights/v1", study.model_dump(mode="json", exclude_none=True))


def size(family: Family, columns: int) -> int:
    """How many numbers a model has."""
    return sum(int(np.prod(shape)) for shape in family.shapes(columns).values())


def initial(study: Study, columns: int) -> dict[str, NDArray[np.float32]]:
    """Where the study's training starts."""
    return family_of(study).initial(columns, public_seed(study))


def _cox(label: SurvivalLabel) -> Cox:
    bounds = tuple(bound / MICRO for bound in label.intervals_micro)
    return Cox(bounds=bounds, horizon=label.intervals_micro.index(label.horizon_micro) + 1)
