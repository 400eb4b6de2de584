"""Released models: their files, their signed passports, their state.

A release is one unit of work: files, card, passport and the passport's entry in the log become
durable together or not at all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from coop.artefacts import (
    IO_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    check_parity,
    io_file,
    onnx_file,
    weights_file,
)
from coop.canonical import Json, document_digest, jcs, parse_object, sha256
from coop.db import metadata
from coop.documents.envelope import Opened, issue
from coop.documents.study import MICRO, Study
from coop.documents.training import (
    ADVERSARY_A,
    Artefact,
    GroupMetric,
    ModelState,
    Order,
    Passport,
    accountant,
    adversary_b,
)
from coop.errors import ConflictError, InvalidInputError, NotFoundError
from coop.fairness import fairness
from coop.families import family_of
from coop.features import columns
from coop.journal.store import Journal
from coop.keys import SigningKey

RELEASED: Final = "released"
RETIRED: Final = "retired"
RETRAIN_DUE: Final = "retrain-due"
"""It answers until a new version of its study has a model."""
MODELS_MAX: Final = 1_000  # listed in one answer
INTENDED_USE: Final = (
    "Research within the purpose named here, by members of the cooperative. Not a medical device: "
    "not validated for, and not to be used in, the care of any patient."
)

model_table = sa.Table(
    "model",
    metadata,
    sa.Column("model_id", sa.Text, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("order_sha256", sa.Text, nullable=False, unique=True),
    sa.Column("passport_digest", sa.Text, nullable=False),
    sa.Column("card", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
)
artefact_table = sa.Table(
    "artefact",
    metadata,
    sa.Column("model_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the model cost one patient in privacy at most, each rounded up."""

    epsilon_micro: int
    """Training, evaluation and reserve composed: every line of the study's plan."""
    training_epsilon_micro: int
    cohort_epsilon_micro: int
    together_epsilon_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A model as it stands."""

    model_id: str
    study_id: str
    version: int
    order_sha256: str
    passport_digest: str
    card: dict[str, Json]
    state: str


class Catalogue:
    """Releases models into the catalogue.

    Args:
        journal: Where passports are logged.
        hub_key: Signs passports.
        now: UTC seconds.
    """

    def __init__(self, journal: Journal, hub_key: SigningKey, now: Callable[[], int]) -> None:
        self.journal = journal
        self._key = hub_key
        self._now = now

    def release(  # noqa: PLR0913  (everything a passport states, each by its name)
        self,
        connection: sa.Connection,
        *,
        order: Opened[Order],
        study: Study,
        record_sha256s: Sequence[str],
        weights: Mapping[str, NDArray[np.float32]],
        metrics: Sequence[GroupMetric],
        hospital_weights: Mapping[str, int],
        cost: Cost,
    ) -> str:
        """Build the model's files, sign and log its passport; returns the model's id.

        Steps: (1) the files are built and checked against each other; (2) the passport names them
        and the whole chain; (3) files, card and passport are stored, the passport's log entry last.
        Releasing the same order again changes nothing.

        Args:
            connection: The unit of work.
            order: The finished run's signed order.
            study: What it trained.
            record_sha256s: Digests of its round records, in order.
            weights: As released, of the study's family.
            metrics: Its evaluation.
            hospital_weights: Registered consents at the first round, by site: who earns.
            cost: Its price in privacy.

        Raises:
            InvalidInputError: The weights are not those of the study's columns, or no round was
                recorded.
        """
        model_id = model_id_of(order)
        if exists(connection, model_id):
            return model_id
        if not record_sha256s:
            raise InvalidInputError("records: a model comes from at least one round")
        # (1)
        files = _files(model_id, study, weights)
        # (2)
        passport = Passport(
            model_id=model_id,
            study_sha256=order.subject.study_sha256,
            order_sha256=order.digest,
            study_id=study.study_id,
            version=study.version,
            record_sha256=record_sha256s[-1],
            training_root=training_root(record_sha256s),
            purpose=study.purpose,
            commercial=study.commercial,
            epsilon_micro=cost.epsilon_micro,
            training_epsilon_micro=cost.training_epsilon_micro,
            cohort_epsilon_micro=cost.cohort_epsilon_micro,
            together_epsilon_micro=cost.together_epsilon_micro,
            delta_pico=order.subject.delta_pico,
            relation="add/remove one patient",
            accountant=accountant(order.subject.sampling_micro),
            adversary=_adversary(order.subject),
            mechanism=_mechanism(order.subject, evaluated=bool(metrics)),
            metrics=list(metrics),
            fairness=fairness(study.evaluation, metrics),
            artefacts=[_named(name, body) for name, body in files.items()],
            hospital_weights=dict(hospital_weights),
            intended_use=INTENDED_USE,
        )
        document = issue(passport, self._key, self._now())
        # (3)
        row = {
            "model_id": model_id,
            "study_id": study.study_id,
            "version": study.version,
            "order_sha256": order.digest,
            "passport_digest": document_digest(document),
            "card": jcs({**_card(study), "record_sha256s": list(record_sha256s)}).decode(),
            "state": RELEASED,
        }
        connection.execute(model_table.insert().values(row))
        rows = [
            {"model_id": model_id, "name": name, "sha256": sha256(body).hex(), "body": body}
            for name, body in files.items()
        ]
        connection.execute(artefact_table.insert(), rows)
        self.journal.record(connection, Passport.kind, document)
        return model_id

    def change(self, connection: sa.Connection, subject: ModelState) -> None:
        """Put a model into another state, and the hub's signed word of it into the log.

        Its files and passport stay for whoever verifies.

        Raises:
            NotFoundError: No such model.
            ConflictError: It is out of use already, or in this state.
        """
        if model(connection, subject.model_id).state in (RETIRED, subject.state):
            raise ConflictError("model: is out of use already, or in this state")
        mine = model_table.c.model_id == subject.model_id
        connection.execute(model_table.update().where(mine).values(state=subject.state))
        document = issue(subject, self._key, self._now())
        self.journal.record(connection, ModelState.kind, document)


def model_id_of(order: Opened[Order]) -> str:
    """The model an order makes: `<study>-v<version>-<first 8 digits of the order's digest>`."""
    return f"{order.subject.study_id}-v{order.subject.version}-{order.digest[:8]}"


def training_root(record_sha256s: Sequence[str]) -> str:
    """SHA-256 over the round records' digests, in order, as bytes."""
    return sha256(b"".join(bytes.fromhex(digest) for digest in record_sha256s)).hex()


def exists(connection: sa.Connection, model_id: str) -> bool:
    """Whether the model was released (it may be retired by now)."""
    query = sa.select(model_table.c.model_id).where(model_table.c.model_id == model_id)
    return connection.execute(query).scalar() is not None


def model(connection: sa.Connection, model_id: str) -> ModelRow:
    """The model.

    Raises:
        NotFoundError: No such model.
    """
    query = sa.select(model_table).where(model_table.c.model_id == model_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("model: no such model")
    return _row(row)


def models(connection: sa.Connection) -> list[ModelRow]:
    """Every model, by study and version."""
    order = (model_table.c.study_id, model_table.c.version, model_table.c.model_id)
    query = sa.select(model_table).order_by(*order).limit(MODELS_MAX)
    return [_row(row) for row in connection.execute(query)]


def artefact(connection: sa.Connection, model_id: str, name: str) -> bytes:
    """One file of a model.

    Raises:
        NotFoundError: No such model or file.
    """
    query = sa.select(artefact_table.c.body).where(
        artefact_table.c.model_id == model_id, artefact_table.c.name == name
    )
    body = connection.execute(query).scalar()
    if body is None:
        raise NotFoundError("model: no such model or file")
    return bytes(body)


def _files(
    model_id: str, study: Study, weights: Mapping[str, NDArray[np.float32]]
) -> dict[str, bytes]:
    family, width = family_of(study), len(columns(study.schema_))
    tensors = weights_file(family, width, weights)
    graph = onnx_file(family, width, weights)
    check_parity(family, width, tensors, graph)
    return {WEIGHTS_FILE: tensors, ONNX_FILE: graph, IO_FILE: io_file(model_id, study)}


def _named(name: str, body: bytes) -> Artefact:
    return Artefact.model_validate({"name": name, "sha256": sha256(body).hex()})


def _adversary(order: Order) -> str:
    return ADVERSARY_A if order.mode == "A" else adversary_b(order.honest)


def _mechanism(order: Order, *, evaluated: bool) -> list[str]:
    def line(what: str, sigma_micro: int, rounds: int, sampling_micro: int = MICRO) -> str:
        q = "1" if sampling_micro == MICRO else _decimal(sampling_micro)
        return f"{what} q={q} sigma={_decimal(sigma_micro)} rounds={rounds}"

    train = line("train", order.training_sigma_micro, order.rounds, order.sampling_micro)
    shares = f" shares of 1/{order.honest} under a masked sum" if order.mode == "B" else ""
    lines = [f"{train} clip={_decimal(order.clip_micro)}{shares}"]
    return [*lines, line("evaluate", order.evaluation_sigma_micro, 1)] if evaluated else lines


def _decimal(micro: int) -> str:
    whole, rest = divmod(micro, MICRO)
    return f"{whole}.{rest:06d}"


def _card(study: Study) -> dict[str, Json]:
    """What a person reads before she asks the model anything."""
    shown = study.model_dump(
        mode="json",
        by_alias=True,
        include={
            "title", "lay_summary", "proposer", "purpose", "disease", "commercial", "schema_",
            "label", "fee_point_nano", "fee_cohort_nano", "expires",
        },
    )  # fmt: skip
    return {str(name): value for name, value in shown.items()}


def _row(row: sa.Row[object]) -> ModelRow:
    return ModelRow(
        model_id=row.model_id,
        study_id=row.study_id,
        version=row.version,
        order_sha256=row.order_sha256,
        passport_digest=row.passport_digest,
        card=parse_object(row.card),
        state=row.state,
    )
