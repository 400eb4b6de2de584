"""A point answer: a released model's risk for the researcher's own rows, paid and receipted.

No patient's record is read: the model is differentially private, and what is computed from it costs
no further privacy. The researcher's rows are not stored; the receipt holds a keyed commitment to
them, whose nonce only the researcher gets.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import orjson
import sqlalchemy as sa

from coop import ledger
from coop.canonical import document_digest, encode, sha256
from coop.db import Database, insert_ignore
from coop.documents.envelope import issue
from coop.documents.serving import InferenceReceipt
from coop.errors import CoopError
from coop.journal.store import Journal
from coop.keys import SigningKey, random_bytes
from coop.ledger import Leg
from coop.money import NanoCredits
from inference_gateway import oip, pricing, scope
from inference_gateway.commitments import NONCE_BYTES, request_commitment, result_sha256
from inference_gateway.models import Models, Served, risk_of
from inference_gateway.registry_state import RegistryView
from inference_gateway.store import Stored, inference_answer, stored_answer

HOLD_S: Final = 120  # an answer takes milliseconds; a crash gives the credits back after this
_REQUEST_TAG: Final = b"coop/inference-request/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRequest:
    """What came over the wire, by whom."""

    asker: scope.Asker
    model_id: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    """With lower-case names."""
    idempotency_key: str | None = None
    at_least_as_fresh: str | None = None
    """A token that says how much of the log the answer must know."""


class Points:
    """Answers point questions. Thread-safe.

    Args:
        database: The hub's.
        journal: The transparency log.
        hub_key: Signs receipts.
        models: The released models.
        registry: The gateway's view of the log.
        now: UTC seconds.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        hub_key: SigningKey,
        *,
        models: Models,
        registry: RegistryView,
        now: Callable[[], int],
    ) -> None:
        self._database = database
        self._journal = journal
        self._hub_key = hub_key
        self._models = models
        self._registry = registry
        self._now = now

    def answer(self, request: PointRequest) -> Stored:
        """The answer, after it was charged; a repeat under the same Idempotency-Key is free.

        Steps ((1), who is calling, was the door's):
          (2) a stored answer to this key is returned as it is;
          (3) the body is well-formed for this model;
          (4) the study and the purpose are declared and in scope;
          (5) the model is not retired, and the registry's checkpoint is at most 60 s old and as
              fresh as was demanded;
          (6) the fee is set aside;
          (7) the model runs;
          (8) in one transaction: the model still answers, the fee is paid, the receipt is signed
              and logged, the answer is stored.

        Raises:
            CoopError: The first step that fails; from (6) on the fee is given back.
        """
        account_id = request.asker.account_id
        named = _body_sha256(request)
        key = request.idempotency_key or f"auto {random_bytes(16).hex()}"
        with self._database.reading() as connection:
            # (2)
            if stored := stored_answer(connection, account_id, key, named):
                return stored
            # (3)
            oip.check_encoding(request.headers, len(request.body))
            model = self._models.found(connection, request.model_id)
            question = oip.read(request.body, model.study.schema_)
            # (4)
            declared = scope.admit(
                connection,
                request.asker,
                study=model.study,
                purpose=model.passport.purpose,
                now=self._now(),
            )
            # (5)
            self._models.check_state(connection, request.model_id)
        view = self._registry.fresh(request.at_least_as_fresh)
        fee = pricing.fee_point(model.study, len(question.rows))
        # (6), (7), (8)
        with self._held(request, fee) as charge:
            risk = risk_of(model, question.rows)
            response = oip.answer(model.model_id, model.version, question.id, risk)
            answered = Answered(
                request=request,
                key=key,
                body_sha256=named,
                model=model,
                declared=declared,
                rows=len(question.rows),
                response=orjson.dumps(response),
                checkpoint=view.checkpoint,
            )
            return self._settle(answered, charge)

    @contextmanager
    def _held(self, request: PointRequest, fee: NanoCredits) -> Iterator["Charge"]:
        charge = Charge(fee=fee)
        if fee:
            leg = Leg(request.asker.account, f"revenue:{request.model_id}", fee)
            now = self._now()
            with self._database.unit_of_work() as connection:
                connection.execution_options(coop_quiet=True)
                charge.hold_id = ledger.hold(
                    connection,
                    key=f"infer:{random_bytes(16).hex()}",
                    leg=leg,
                    expires=now + HOLD_S,
                    now=now,
                ).id
        # The hold is durable, nothing is answered: a crash here gives it back when it expires.
        try:
            yield charge
        finally:
            if charge.hold_id is not None and not charge.settled:
                with self._database.unit_of_work() as connection:
                    ledger.void(connection, charge.hold_id)

    def _settle(self, answered: "Answered", charge: "Charge") -> Stored:
        request, now = answered.request, self._now()
        with self._database.unit_of_work() as connection:
            connection.execution_options(coop_quiet=True)
            self._models.check_state(connection, request.model_id)
            # The row is taken first: of two equal requests at once, one is charged and both get
            # the same answer.
            if not insert_ignore(connection, inference_answer, _row(answered, charge.fee, now)):
                stored = stored_answer(
                    connection, request.asker.account_id, answered.key, answered.body_sha256
                )
                return stored or _vanished()
            journal_id = 0
            if charge.hold_id is not None:
                about: dict[str, str | int] = {"model": request.model_id, "rows": answered.rows}
                journal_id = ledger.capture(
                    connection, charge.hold_id, now=now, meta=about
                ).journal_id
            stored = self._receipt(connection, answered, charge.fee, journal_id=journal_id)
        # Durable: charge, receipt and answer. A crash here loses only the reply; a repeat under the
        # same Idempotency-Key gets it.
        charge.settled = True
        return stored

    def _receipt(
        self, connection: sa.Connection, answered: "Answered", fee: NanoCredits, *, journal_id: int
    ) -> Stored:
        model, now = answered.model, self._now()
        nonce = random_bytes(NONCE_BYTES)
        subject = InferenceReceipt(
            receipt_id=random_bytes(16).hex(),
            mode="point",
            model_id=model.model_id,
            passport_sha256=model.passport_sha256,
            training_root=model.passport.training_root,
            study_id=answered.declared.study_id,
            purpose=answered.declared.purpose,
            request_commitment=request_commitment(nonce, answered.body_sha256),
            result_sha256=result_sha256(nonce, answered.response),
            answers=[],
            checkpoint=answered.checkpoint,
            fee_nano=fee,
            journal_id=journal_id,
        )
        document = issue(subject, self._hub_key, now)
        stored = Stored(
            response=answered.response,
            nonce=nonce.hex(),
            receipt_sha256=document_digest(document),
            fee_nano=fee,
        )
        mine = (inference_answer.c.account_id == answered.request.asker.account_id) & (
            inference_answer.c.idempotency_key == answered.key
        )
        connection.execute(
            inference_answer.update()
            .where(mine)
            .values(
                response=stored.response.decode(),
                nonce=stored.nonce,
                receipt_sha256=stored.receipt_sha256,
            )
        )
        self._journal.record(connection, InferenceReceipt.kind, document)
        return stored


@dataclass(slots=True, kw_only=True)
class Charge:
    """A fee that is set aside, until it is settled."""

    fee: NanoCredits
    hold_id: int | None = None
    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A computed answer on its way to be charged."""

    request: PointRequest
    key: str
    body_sha256: str
    model: Served
    declared: scope.Declared
    rows: int
    response: bytes
    checkpoint: str


class AnswerVanishedError(CoopError):
    """The stored answer was erased while it was asked for again; ask under a new key."""

    code = "gateway.answer-vanished"


def _body_sha256(request: PointRequest) -> str:
    bound: dict[str, object] = {
        "model_id": request.model_id,
        "study_id": request.asker.study_id,
        "purpose": request.asker.purpose,
        "body_sha256": sha256(request.body).hex(),
    }
    if request.at_least_as_fresh is not None:  # an answer under less is not the same answer
        bound["at_least_as_fresh"] = request.at_least_as_fresh
    return sha256(encode(_REQUEST_TAG, bound)).hex()


def _row(answered: Answered, fee: NanoCredits, now: int) -> dict[str, object]:
    return {
        "account_id": answered.request.asker.account_id,
        "idempotency_key": answered.key,
        "body_sha256": answered.body_sha256,
        "model_id": answered.model.model_id,
        "study_id": answered.declared.study_id,
        "rows": answered.rows,
        "fee_nano": fee,
        "at": now,
    }


def _vanished() -> Stored:
    raise AnswerVanishedError("Idempotency-Key: its answer was erased; choose a new one")
