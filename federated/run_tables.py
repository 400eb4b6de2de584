"""Tables and types of training runs; `federated.rounds` reads and writes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from numpy.typing import NDArray

from coop.db import metadata
from coop.documents.envelope import Opened
from coop.documents.study import Study
from coop.documents.training import Order
from coop.errors import ConflictError
from federated import models

training_run = sa.Table(
    "training_run",
    metadata,
    sa.Column("order_sha256", sa.String(64), primary_key=True),
    sa.Column("study_sha256", sa.String(64), nullable=False, index=True),
    sa.Column("study_id", sa.String(64), nullable=False, index=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("rounds", sa.BigInteger, nullable=False),
    sa.Column("error", sa.String(80)),
    sa.Column("waiting", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)
"""`phase` and `round` are of the last finished round; round 0 before the first. `waiting`: for whom
an open run waits and why, as JSON {site: code}."""

round_request = sa.Table(
    "round_request",
    metadata,
    sa.Column("order_sha256", sa.ForeignKey("training_run.order_sha256"), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
)
"""The document is in the journal. Written before it is sent, and never replaced."""

round_checkpoint = sa.Table(
    "round_checkpoint",
    metadata,
    sa.Column("order_sha256", sa.ForeignKey("training_run.order_sha256"), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Column("record_sha256", sa.String(64), nullable=False),
)
"""`state`: safetensors of the weights after the round, or of the evaluation histograms by site."""

WAITING: Final = "training.waiting-for-sites"
TRAIN: Final = "train"
EVALUATE: Final = "evaluate"
HISTOGRAM: Final = "histogram"
VECTOR: Final = "masked"
"""Names of an answer's tensor in an evaluation, and in a masked round."""


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    RELEASING = "releasing"
    """Every round is done; the release follows, again after a crash until it is done."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN: Final = (RunState.QUEUED, RunState.RUNNING, RunState.RELEASING)


class RunNotOpenError(ConflictError):
    """The run has ended or was cancelled; nothing more happens to it."""

    code = "training.not-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One training run as it stands."""

    order_sha256: str
    study_sha256: str
    study_id: str
    version: int
    state: RunState
    phase: str
    round: int
    rounds: int
    error: str | None
    waiting: Mapping[str, str]
    """Code by hospital, while the run waits for it."""
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRound:
    """Everything one round needs, read back from what is durable."""

    order: Opened[Order]
    study: Study
    phase: str
    round: int
    weights: models.Weights
    """To send: the last iterate, or for the evaluation the mean of the last ones."""
    previous_sha256: str | None

    @property
    def sigma_micro(self) -> int:
        """The ordered noise of this phase."""
        order = self.order.subject
        return order.training_sigma_micro if self.phase == TRAIN else order.evaluation_sigma_micro

    @property
    def masked(self) -> bool:
        """Whether answers come under masks: a training round in mode B."""
        return self.order.subject.mode == "B" and self.phase == TRAIN

    @property
    def length(self) -> int:
        """How many numbers the model has."""
        return sum(value.size for value in self.weights.values())

    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of an honest answer, by name."""
        if self.masked:
            return {VECTOR: ((self.length,), "uint64")}
        if self.phase == TRAIN:
            return {name: (value.shape, "float32") for name, value in self.weights.items()}
        evaluation = self.study.evaluation
        return {HISTOGRAM: ((len(evaluation.groups), 2, evaluation.bins), "int64")}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run's rounds made."""

    order: Opened[Order]
    study: Study
    weights: models.Weights
    """The released ones: the mean of the last iterates."""
    histograms: dict[str, NDArray[np.int64]]
    """Each hospital's noised histogram [groups, 2, bins]; empty without an evaluation."""
    record_sha256s: list[str]
    """Digests of the round records in order, the evaluation's last."""


def histograms_of(state: bytes) -> dict[str, NDArray[np.int64]]:
    """The hospitals' noised histograms in an evaluation's checkpoint (our own bytes)."""
    loaded = safetensors.numpy.load(state)
    return {site: np.asarray(loaded[site], dtype=np.int64) for site in sorted(loaded)}


def histograms_bytes(by_site: Mapping[str, NDArray[np.int64]]) -> bytes:
    """An evaluation's checkpoint; equal histograms give equal bytes."""
    kept = {site: np.ascontiguousarray(by_site[site]) for site in sorted(by_site)}
    return bytes(safetensors.numpy.save(kept))


def run_row(row: sa.Row[tuple[object, ...]]) -> RunRow:
    """A row of `training_run`."""
    values = dict(row._mapping)  # noqa: SLF001  (SQLAlchemy's public name for it)
    waiting = json.loads(str(values["waiting"] or "{}"))
    return RunRow(**{**values, "state": RunState(values["state"]), "waiting": waiting})
