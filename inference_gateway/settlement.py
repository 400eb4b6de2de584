"""What comes back from the hospitals: verified, added up, charged once and receipted.

A question is settled when no hospital's answer is outstanding, in one transaction that pays the
fee, logs every job, answer and the receipt, and stores the result. If nobody answered, the fee is
given back. Whatever a crash leaves open, the sweep settles.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from coop import ledger, members, studies
from coop.canonical import Json, document_digest, jcs, parse_object
from coop.db import Database
from coop.documents.envelope import issue, open_document
from coop.documents.serving import CohortAnswer, CohortJob, CohortQuery, InferenceReceipt
from coop.documents.study import MICRO, Study
from coop.errors import CoopError, Kind
from coop.journal.store import Journal
from coop.keys import SigningKey, random_bytes
from coop.ledger import HoldResolvedError
from coop.logs import logger
from inference_gateway import jobs, pricing, query
from inference_gateway.commitments import NONCE_BYTES, request_commitment, result_sha256
from inference_gateway.jobs import JobState, Outcome
from inference_gateway.models import Models
from inference_gateway.registry_state import RegistryView
from inference_gateway.store import question_table

NO_ANSWERS: Final = "cohort.no-answers"
_SILENT: Final = "site.no-answer"
_TAIL: Final = 10  # standard deviations: honest noise is beyond them once in 10^23


class WrongAnswerError(CoopError):
    """The hospital's document does not answer the job it was given."""

    code = "cohort.wrong-answer"
    kind = Kind.UNPROCESSABLE


class Settlement:
    """Takes the hospitals' answers and settles questions. Thread-safe.

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

    def receive(
        self,
        site: str,
        job_id: str,
        attempt: int,
        *,
        document: Mapping[str, Json] | None,
        code: str | None,
    ) -> None:
        """Take a hospital's signed answer, or its refusal.

        Steps: (1) the job is this hospital's; (2) its own key signed the answer; (3) the answer is
        to exactly this job, with its noise and of a possible size; (4) it is stored, if no later
        attempt has the job; (5) after the last answer the question is settled.

        Raises:
            NotFoundError: (1) fails.
            WrongDocumentError, BadSignatureError: (2) fails.
            WrongAnswerError: (3) fails.
            LateAttemptError: (4) fails.
        """
        with self._database.reading() as connection:
            # (1)
            _, payload = jobs.payload_of(connection, site, job_id)
            if document is not None:
                # (2)
                dids = members.site_dids(connection)
                opened = open_document(CohortAnswer, document, issuers={dids.get(site, "")})
                # (3)
                asked = CohortJob.model_validate(payload["credentialSubject"])
                study = studies.by_digest(connection, asked.study_sha256).study
                _check_answer(opened.subject, payload, site)
                _check_numbers(opened.subject, asked, study)
        # (4)
        with self._database.unit_of_work() as connection:
            jobs.finish(connection, site, job_id, attempt, result=document, code=code)
        # The answer is durable. A crash here leaves the question open: the sweep settles it.
        # (5)
        question = job_id.partition(".")[0]
        self.settle(question)

    def settle(self, question_id: str) -> None:
        """Combine, charge and receipt the question if no answer is outstanding; idempotent.

        Raises:
            RegistryStaleError: No fresh checkpoint for the receipt; the sweep tries again.
        """
        view = self._registry.fresh()
        with self._database.unit_of_work() as connection:
            # Locked first: of two last answers at once, the second sees both.
            row = connection.execute(
                sa.select(question_table)
                .where(question_table.c.id == question_id)
                .with_for_update()
            ).one_or_none()
            if row is None or row.state != "running":
                return
            outcomes = jobs.outcomes(connection, question_id)
            if any(outcome.state in jobs.OPEN for outcome in outcomes):
                return
            answered = [outcome for outcome in outcomes if outcome.state is JobState.DONE]
            refused: list[Json] = [
                {"site": outcome.site, "code": outcome.code or _SILENT}
                for outcome in outcomes
                if outcome.state is not JobState.DONE
            ]
            if answered:
                self._pay(connection, row, answered, refused, checkpoint=view.checkpoint)
            else:
                self._fail(connection, row, NO_ANSWERS, refused)

    def sweep(self) -> None:
        """End what nobody will answer, and settle what a crash left open."""
        with self._database.reading() as connection:
            running = sa.select(question_table.c.id).where(question_table.c.state == "running")
            open_questions = list(connection.execute(running).scalars())
        if not open_questions:
            return
        with self._database.unit_of_work() as connection:
            jobs.bury(connection, self._now())
        for question_id in open_questions:
            try:
                self.settle(question_id)
            except Exception as error:  # noqa: BLE001  (one question's fault must not hold the others)
                logger().error("question not settled", error_type=type(error).__name__)

    def _pay(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        answered: Sequence[Outcome],
        refused: list[Json],
        *,
        checkpoint: str,
    ) -> None:
        journal_id = 0
        if row.hold is not None:
            about = {"question": row.id, "study": row.study_id}
            try:
                journal_id = ledger.capture(
                    connection, row.hold, now=self._now(), meta=about
                ).journal_id
            except HoldResolvedError as error:
                # The sweep came after the hold had expired: unpaid, so not answered.
                self._fail(connection, row, error.code, refused)
                return
        documents = [outcome.result for outcome in answered if outcome.result is not None]
        answers = [CohortAnswer.model_validate(each["credentialSubject"]) for each in documents]
        nonce = random_bytes(NONCE_BYTES)
        asked_for = CohortQuery.model_validate(parse_object(row.query))
        result: dict[str, Json] = {
            **query.combine(answers, asked_for).json(),
            "job": row.id,
            "nonce": nonce.hex(),
            "fee_nano": row.fee_nano,
            "rho_nano": parse_object(row.query)["rho_nano"],
            "sites": [answer.site for answer in answers],
            "refused": refused,
        }
        subject = InferenceReceipt(
            receipt_id=random_bytes(16).hex(),
            mode="cohort",
            **self._model_named(connection, row),
            study_id=row.study_id,
            purpose=row.purpose,
            request_commitment=request_commitment(nonce, row.body_sha256),
            result_sha256=result_sha256(nonce, jcs(result)),
            answers=[document_digest(document) for document in documents],
            checkpoint=checkpoint,
            fee_nano=row.fee_nano,
            journal_id=journal_id,
        )
        receipt = issue(subject, self._hub_key, self._now())
        self._end(
            connection,
            row,
            state="done",
            result=jcs(result).decode(),
            receipt_sha256=document_digest(receipt),
        )
        asked = [jobs.payload_of(connection, outcome.site, outcome.id)[1] for outcome in answered]
        # Last in the transaction: the log's head stays locked until the commit.
        self._journal.record_many(connection, CohortJob.kind, asked)
        self._journal.record_many(connection, CohortAnswer.kind, documents)
        self._journal.record(connection, InferenceReceipt.kind, receipt)

    def _model_named(self, connection: sa.Connection, row: sa.Row[Any]) -> dict[str, Any]:
        model_id = parse_object(row.query).get("model_id")
        if model_id is None:
            return {}
        model = self._models.found(connection, str(model_id))
        return {
            "model_id": model.model_id,
            "passport_sha256": model.passport_sha256,
            "training_root": model.passport.training_root,
        }

    def _fail(
        self, connection: sa.Connection, row: sa.Row[Any], code: str, refused: list[Json]
    ) -> None:
        if row.hold is not None:
            ledger.void(connection, row.hold)
        self._end(
            connection, row, state="failed", code=code, result=jcs({"refused": refused}).decode()
        )

    def _end(self, connection: sa.Connection, row: sa.Row[Any], **values: str) -> None:
        mine = question_table.c.id == row.id
        connection.execute(question_table.update().where(mine).values(**values))


def _check_answer(answer: CohortAnswer, job: Mapping[str, Json], site: str) -> None:
    asked = CohortJob.model_validate(job["credentialSubject"])
    if (answer.job_id, answer.site) != (asked.job_id, site):
        raise WrongAnswerError("answer: is of another job or site")
    if answer.job_sha256 != document_digest(job):
        raise WrongAnswerError("answer.job_sha256: names another job document")
    if answer.rho_nano != asked.query.rho_nano:
        raise WrongAnswerError("answer.rho_nano: is not what the question allowed")
    risk_asked = asked.query.release == "count-and-mean-risk"
    table = len(answer.cells_noised or [])
    if (answer.risk_sum_noised_micro is not None) != risk_asked or table != asked.query.cells:
        raise WrongAnswerError("answer: releases something else than was asked")
    if answer.cells_noised is not None and sum(answer.cells_noised) != answer.count_noised:
        raise WrongAnswerError("answer.count_noised: is not the sum of its cells")


def _check_numbers(answer: CohortAnswer, asked: CohortJob, study: Study) -> None:
    """Refuse noise other than ordered, and numbers that no honest hospital can draw.

    What passes adds up to integers that the result's document can hold.
    """
    sigma = pricing.sigma_micro(asked.query)
    drawn = {answer.sigma_count_micro, answer.sigma_risk_micro or sigma}
    risk_asked = asked.query.release == "count-and-mean-risk"
    if drawn != {sigma} or (answer.sigma_risk_micro is not None) != risk_asked:
        raise WrongAnswerError("answer.sigma: is not the noise that the question's rho buys")
    most = study.recipe.population + _TAIL * sigma // MICRO + 1
    risk = answer.risk_sum_noised_micro or 0
    numbers = answer.cells_noised or [answer.count_noised]
    if max(map(abs, numbers)) > most or abs(risk) > most * MICRO:
        raise WrongAnswerError("answer: larger than the study's population and the noise can be")
