"""Released models in memory: loaded only if every digest equals the signed passport's.

onnxruntime on one thread: a model here has hundreds of weights, and a second thread costs more than
it brings. Sessions are kept per artefact digest, so a changed artefact is a different model.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import sqlalchemy as sa

from coop import catalogue, features
from coop.artefacts import ONNX_FILE
from coop.canonical import sha256
from coop.documents.envelope import open_document
from coop.documents.study import Study
from coop.documents.training import Passport
from coop.errors import CoopError, Kind, NotFoundError, UnavailableError
from coop.journal.store import Journal
from inference_gateway.oip import BadTensorError, Value

RISK_DIGITS: Final = 3  # more digits serve extraction, not a decision (references/gateway.md §6)
_LOADED_MAX: Final = 64  # sessions kept; the oldest goes first


class ModelRetiredError(CoopError):
    """The model was withdrawn from use; its passport says why."""

    code = "gateway.model-retired"
    kind = Kind.FORBIDDEN


class ModelDamagedError(UnavailableError):
    """The stored model is not the one its passport names; it is not served."""

    code = "gateway.model-damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model ready to answer."""

    model_id: str
    passport: Passport
    passport_sha256: str
    study: Study
    session: Any
    input_name: str

    @property
    def version(self) -> str:
        """The study version it was trained under, as the protocol's model version."""
        return str(self.passport.version)


class Models:
    """The released models of one hub. Thread-safe.

    Args:
        journal: Holds passports and studies.
        hub_did: Signs passports.
    """

    def __init__(self, journal: Journal, hub_did: str) -> None:
        self._journal = journal
        self._hub_did = hub_did
        self._lock = threading.Lock()
        self._loaded: dict[str, Served] = {}

    def found(self, connection: sa.Connection, model_id: str) -> Served:
        """The model, loaded and verified; `check_state` says whether it may answer.

        Steps: (1) its passport is the hub's own; (2) the artefact's bytes have the passport's
        digest; (3) it reads as many columns as its study has.

        Raises:
            NotFoundError: No such model.
            ModelDamagedError: (2) or (3) fails.
        """
        passport_sha256 = catalogue.model(connection, model_id).passport_digest
        with self._lock:
            known = self._loaded.get(passport_sha256)
        if known is not None:
            return known
        loaded = self._load(connection, model_id, passport_sha256)
        with self._lock:
            if len(self._loaded) >= _LOADED_MAX:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[passport_sha256] = loaded
        return loaded

    def check_state(self, connection: sa.Connection, model_id: str) -> None:
        """Return if the model may answer at this moment.

        Raises:
            NotFoundError: No such model.
            ModelRetiredError: It was withdrawn from use.
        """
        state = catalogue.model(connection, model_id).state
        if state == catalogue.RETIRED:
            raise ModelRetiredError(f"model: {model_id} is {state} and answers nothing")

    def _load(self, connection: sa.Connection, model_id: str, passport_sha256: str) -> Served:
        # (1)
        document = self._journal.document(connection, passport_sha256)
        passport = open_document(Passport, document, issuers={self._hub_did}).subject
        if passport.model_id != model_id:
            raise NotFoundError("model: its passport names another model")
        study_document = self._journal.document(connection, passport.study_sha256)
        study = open_document(Study, study_document, issuers=None).subject
        # (2)
        body = catalogue.artefact(connection, model_id, ONNX_FILE)
        named = {artefact.name: artefact.sha256 for artefact in passport.artefacts}
        if sha256(body).hex() != named.get(ONNX_FILE):
            raise ModelDamagedError(f"model: {model_id}'s file is not the one its passport names")
        session = _session(body)
        # (3)
        columns = len(features.columns(study.schema_))
        first = session.get_inputs()[0]
        if first.shape[-1] != columns:
            raise ModelDamagedError(
                f"model: {model_id} does not read its study's {columns} columns"
            )
        return Served(
            model_id=model_id,
            passport=passport,
            passport_sha256=passport_sha256,
            study=study,
            session=session,
            input_name=first.name,
        )


def risk_of(model: Served, rows: Sequence[Mapping[str, Value]]) -> list[float]:
    """The model's risk for every row, rounded to `RISK_DIGITS`.

    Raises:
        BadTensorError: A row lacks a feature that the study does not let be missing.
    """
    encoded, kept = features.encode(rows, model.study.schema_, None)
    if not bool(np.all(kept)):
        first = int(np.argmin(kept))
        raise BadTensorError(f"inputs: row {first} lacks a feature that may not be missing")
    score = model.session.run(None, {model.input_name: encoded})[0]
    return [round(float(value), RISK_DIGITS) for value in np.asarray(score).reshape(-1)]


def _session(body: bytes) -> Any:  # noqa: ANN401  (onnxruntime has no types)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(body, options, providers=["CPUExecutionProvider"])
