"""A study among a thousand hospitals on one machine: Flower's own simulation, our own step.

Every virtual hospital is a Flower node in a Ray actor that runs `private_gradient`, and the hub's
side is `apply_round`; only consent, signatures and transport are left out, as in
`federated.simulate`. It answers one question: does a round stay quick with so many.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from coop.documents.study import MICRO, Study
from coop.errors import CoopError, InvalidInputError, Kind
from coop.families import family_of, public_seed
from coop.features import columns
from federated.accounting import plan
from federated.models import Weights
from federated.private_training import private_gradient
from federated.simulate import Matrix
from federated.step import apply_round, average

if TYPE_CHECKING:
    from federated.flower_simulation import Context, Grid, Message

HOSPITALS_MAX: Final = 5000
PATIENTS_MIN: Final = 20
"""Of one virtual hospital: fewer, and a round would measure nothing but transport."""
_ROUND_S: Final = 600.0
_JOIN_S: Final = 120.0
_POLL_S: Final = 0.25
_RECORD: Final = "coop"


class NoRayError(CoopError):
    """Simulating many hospitals needs Ray, which is an extra of its own."""

    code = "simulate.no-ray"
    kind = Kind.UNAVAILABLE


class HospitalMissingError(CoopError):
    """Not every virtual hospital joined or answered in time."""

    code = "simulate.hospital-missing"
    kind = Kind.UNAVAILABLE


@dataclass(slots=True, kw_only=True)
class Scaled:
    """What a run among many hospitals took, and the model it made."""

    hospitals: int
    patients: int
    drawn_again: bool
    """There were too few patients for so many hospitals: some stand for several."""
    start_seconds: float = 0.0
    """Until every hospital had joined."""
    round_seconds: list[float] = field(default_factory=list)
    took_part: list[int] = field(default_factory=list)
    """Hospitals whose answers a round is made of."""
    weights: Weights = field(default_factory=dict)


def scattered(
    matrices: Mapping[str, Matrix], hospitals: int, generator: np.random.Generator
) -> tuple[list[Matrix], bool]:
    """Every site's patients dealt to virtual hospitals; with too few, drawn again and said so.

    Guarantees: if none is drawn again, every patient is at exactly one hospital; hospitals differ
    in size by one patient at most.

    Args:
        matrices: By real site.
        hospitals: How many to make.
        generator: Deals the patients.
    """
    if not 1 <= hospitals <= HOSPITALS_MAX:
        raise InvalidInputError(f"hospitals: must be 1 to {HOSPITALS_MAX}")
    x = np.concatenate([part for part, _ in matrices.values()])
    y = np.concatenate([part for _, part in matrices.values()])
    again = len(y) < hospitals * PATIENTS_MIN
    count = hospitals * PATIENTS_MIN if again else len(y)
    dealt = generator.integers(0, len(y), count) if again else generator.permutation(count)
    parts = np.array_split(dealt, hospitals)
    return [(x[part], y[part]) for part in parts], again


def simulate_many(
    study: Study,
    hospitals: list[Matrix],
    *,
    rounds: int,
    drawn_again: bool,
    progress: Callable[[int, int], None] = lambda _round, _answers: None,
) -> Scaled:
    """Train `rounds` rounds of the study, all hospitals in each.

    Args:
        study: What is trained; its population becomes what the hospitals hold.
        hospitals: Each one's patients.
        rounds: How many; the noise is that of so many of the study's.
        drawn_again: As `scattered` said.
        progress: Called with the round and how many have answered.

    Raises:
        NoRayError: Ray is not installed.
        HospitalMissingError: Not all joined or answered in time.
    """
    if find_spec("ray") is None:
        raise NoRayError("hospitals: needs Ray; pip install 'health-data-coop[simulation]'")
    from federated import flower_simulation as flower  # noqa: PLC0415  (loads Flower's simulation)

    patients = sum(len(y) for _, y in hospitals)
    recipe = study.recipe.model_copy(update={"population": patients, "rounds": rounds})
    study = study.model_copy(update={"recipe": recipe})
    done = Scaled(hospitals=len(hospitals), patients=patients, drawn_again=drawn_again)
    with tempfile.TemporaryDirectory(prefix="coop-scale-") as folder:
        path = _saved(Path(folder), hospitals)
        hub = _Hub(
            study, done, {f"h{k:04}": len(y) for k, (_, y) in enumerate(hospitals)}, progress
        )
        flower.run(
            hub.main,
            _hospital(study, path),
            hospitals=len(hospitals),
            processors=os.cpu_count() or 1,
        )
    if len(done.took_part) != rounds:
        raise HospitalMissingError(
            f"hospitals: only {len(done.took_part)} of {rounds} rounds were answered by all"
        )
    return done


def _saved(folder: Path, hospitals: list[Matrix]) -> Path:
    """All patients in one file that every actor maps; where each hospital's begin."""
    ends = np.cumsum([len(y) for _, y in hospitals])
    np.savez(
        folder / "patients.npz",
        x=np.concatenate([x for x, _ in hospitals]),
        y=np.concatenate([y for _, y in hospitals]),
        ends=ends,
    )
    return folder / "patients.npz"


def _hospital(study: Study, path: Path) -> Callable[["Message", "Context"], "Message"]:
    """The app of every virtual hospital; it knows which it is from its node's configuration."""
    recipe, split = study.recipe, plan(study.budget, study.recipe.schedule)
    clip, sigma = recipe.clip_micro / MICRO, split.training_sigma_micro / MICRO
    sampling = recipe.sampling_micro / MICRO
    family = family_of(study)
    kept: dict[str, NDArray[Any]] = {}

    def app(message: "Message", context: "Context") -> "Message":
        from federated import flower_simulation as flower  # noqa: PLC0415  (in the actor)

        if not kept:  # once in each actor, not once in each hospital
            with np.load(path) as found:
                kept.update({name: found[name] for name in ("x", "y", "ends")})
        number = int(context.node_config["partition-id"])
        start = int(kept["ends"][number - 1]) if number else 0
        rows = slice(start, int(kept["ends"][number]))
        weights = safetensors.numpy.load(flower.content(message, _RECORD)["weights"])
        update = private_gradient(
            weights,
            kept["x"][rows],
            kept["y"][rows],
            clip=clip,
            sigma=sigma,
            family=family,
            sampling=sampling,
        )
        body = {"site": f"h{number:04}".encode(), "update": bytes(safetensors.numpy.save(update))}
        return flower.reply(message, _RECORD, body)

    return app


class _Hub:
    """The hub's side: asks everybody, waits for everybody, takes the step."""

    def __init__(
        self,
        study: Study,
        done: Scaled,
        registered: Mapping[str, int],
        progress: Callable[[int, int], None],
    ) -> None:
        self._study = study
        self._done = done
        self._registered = registered
        self._progress = progress
        self._begun = time.monotonic()

    def main(self, grid: "Grid", context: Any) -> None:  # noqa: ANN401  (Flower's, not used)
        """Every round, once all hospitals have joined."""
        del context
        nodes = self._joined(grid)
        self._done.start_seconds = time.monotonic() - self._begun
        width = len(columns(self._study.schema_))
        weights = family_of(self._study).initial(width, public_seed(self._study))
        iterates = []
        for number in range(1, self._study.recipe.rounds + 1):
            begun = time.monotonic()
            updates = self._asked(grid, nodes, weights, number)
            weights = apply_round(weights, updates, self._study.recipe, self._registered)
            self._done.round_seconds.append(time.monotonic() - begun)
            self._done.took_part.append(len(updates))
            iterates.append(weights)
        self._done.weights = average(iterates, self._study.recipe.average_last)

    def _joined(self, grid: "Grid") -> list[int]:
        deadline = time.monotonic() + _JOIN_S
        while len(nodes := list(grid.get_node_ids())) < self._done.hospitals:
            if time.monotonic() > deadline:
                raise HospitalMissingError(f"hospitals: only {len(nodes)} joined")
            time.sleep(_POLL_S)
        return nodes

    def _asked(
        self, grid: "Grid", nodes: list[int], weights: Weights, number: int
    ) -> dict[str, Weights]:
        from federated import flower_simulation as flower  # noqa: PLC0415  (an extra)

        body = {"weights": bytes(safetensors.numpy.save(dict(weights)))}
        waiting = flower.send(grid, nodes, _RECORD, body)
        updates: dict[str, Weights] = {}
        deadline = time.monotonic() + _ROUND_S
        while waiting:
            for said in flower.collect(grid, waiting, _RECORD):
                updates[said["site"].decode()] = safetensors.numpy.load(said["update"])
            self._progress(number, len(updates))
            if waiting and time.monotonic() > deadline:
                raise HospitalMissingError(f"round {number}: {len(waiting)} hospitals are silent")
            time.sleep(_POLL_S)
        return updates
