"""What the hub knows of training runs: orders, requests, checkpoints; and how one is resumed.

Everything a run needs after a crash is here: the signed order, the request of each round exactly as
it was first sent (a hospital's cached answer names it) and the weights after each round. A round
becomes fact in one unit of work: receipts, record, checkpoint, progress.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import sqlalchemy as sa

from coop import members, studies
from coop.canonical import Json, jcs
from coop.db import Database
from coop.documents.envelope import Opened, issue, open_document
from coop.documents.study import Study
from coop.documents.training import (
    Accepted,
    Order,
    Refused,
    RoundReceipt,
    RoundRecord,
    RoundRequest,
)
from coop.errors import NotFoundError
from coop.families import family_of, initial
from coop.features import columns
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.studies import StudyState
from federated import models
from federated.orders import make_order, stands
from federated.run_tables import (
    EVALUATE,
    OPEN,
    TRAIN,
    WAITING,
    NextRound,
    RunNotOpenError,
    RunResult,
    RunRow,
    RunState,
    histograms_of,
    round_checkpoint,
    round_request,
    run_row,
    training_run,
)
from federated.step import average


class Rounds:
    """The hub's training runs. Thread-safe.

    Args:
        database: The hub's.
        journal: Where orders, requests, receipts and records are logged.
        hub_key: Signs orders, requests and records.
        now: UTC seconds.
    """

    def __init__(
        self, database: Database, journal: Journal, hub_key: SigningKey, *, now: Callable[[], int]
    ) -> None:
        self.database = database
        self.journal = journal
        self._key = hub_key
        self.now = now

    # --- starting and ending ------------------------------------------------------------------

    def create(self, study_id: str, version: int | None = None) -> dict[str, Json]:
        """Order the training of a ready study and return the order; the trainer picks it up.

        A failed run whose order still stands is queued again: hospitals repeat what they answered
        before, at no further privacy cost.

        Raises:
            NotFoundError: No such study.
            WrongStudyStateError, OrderRefusedError: It cannot be trained now.
        """
        with self.database.unit_of_work() as connection:
            row = studies.get(connection, study_id, version)
            order = make_order(
                row,
                studies.approvals_of(connection, row.digest),
                members.site_dids(connection),
                now=self.now(),
            )
            studies.move(
                connection,
                row.digest,
                to=StudyState.TRAINING,
                since={StudyState.READY, StudyState.TRAINING},
            )
            last = self._last(connection, row.digest)
            if last is not None:
                known = self._order(connection, last.order_sha256)
                if last.state in OPEN:
                    return known.document
                if last.state is RunState.FAILED and stands(known.subject, order, self.now()):
                    self._set(connection, last.order_sha256, state=RunState.QUEUED, error=None)
                    return known.document
            return self._insert(connection, order)

    def cancel(self, order_sha256: str) -> RunRow:
        """Stop a run before its next round; what hospitals were charged stays charged.

        Raises:
            NotFoundError: No such run.
            RunNotOpenError: It has ended.
        """
        with self.database.unit_of_work() as connection:
            row = self.get(connection, order_sha256, lock=True)
            if row.state not in (RunState.QUEUED, RunState.RUNNING):
                raise RunNotOpenError(f"run: is {row.state}")
            self._end(connection, row, RunState.CANCELLED, "training.cancelled")
            return self.get(connection, order_sha256)

    def fail(self, order_sha256: str, code: str) -> None:
        """End an open run with the code of what stopped it."""
        with self.database.unit_of_work() as connection:
            row = self.get(connection, order_sha256, lock=True)
            if row.state in OPEN:
                self._end(connection, row, RunState.FAILED, code)

    def finish(self, order_sha256: str) -> None:
        """The model is released; the run is done."""
        with self.database.unit_of_work() as connection:
            row = self.get(connection, order_sha256)
            studies.move(
                connection,
                row.study_sha256,
                to=StudyState.RELEASED,
                since={StudyState.TRAINING, StudyState.RELEASED},
            )
            self._set(connection, order_sha256, state=RunState.FINISHED, error=None)

    def note(self, order_sha256: str, waiting: Mapping[str, str]) -> None:
        """Say for whom an open run waits, and why (code by site); nobody: it goes on."""
        code, text = (WAITING, jcs(dict(waiting)).decode()) if waiting else (None, None)
        with self.database.unit_of_work() as connection:
            if dict(self.get(connection, order_sha256).waiting) != dict(waiting):
                self._set(connection, order_sha256, error=code, waiting=text)

    # --- rounds ---------------------------------------------------------------------------------

    def next_run(self, later: Collection[str] = ()) -> RunRow | None:
        """The run to work on: one that is under way first, then the oldest queued; not `later`."""
        order = sa.case((training_run.c.state == RunState.QUEUED, 1), else_=0)
        query = (
            sa.select(training_run)
            .where(training_run.c.state.in_(OPEN), training_run.c.order_sha256.not_in(later))
            .order_by(order, training_run.c.created_at, training_run.c.order_sha256)
        )
        with self.database.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else run_row(row)

    def next_round(self, order_sha256: str) -> NextRound | None:
        """The round that comes after the last checkpoint; None when all are done.

        Raises:
            RunNotOpenError: The run was cancelled or has ended.
        """
        with self.database.unit_of_work() as connection:
            row = self.get(connection, order_sha256, lock=True)
            study_row = studies.by_digest(connection, row.study_sha256)
            if row.state not in (RunState.QUEUED, RunState.RUNNING):
                raise RunNotOpenError(f"run: is {row.state}")
            if study_row.state is StudyState.CANCELLED:
                raise RunNotOpenError("study: was cancelled")
            if row.state is RunState.QUEUED:
                self._set(connection, order_sha256, state=RunState.RUNNING)
            return self._next(connection, row, study_row.study)

    def _next(self, connection: sa.Connection, row: RunRow, study: Study) -> NextRound | None:
        order = self._order(connection, row.order_sha256)
        number = row.round + 1
        evaluates = study.budget.evaluation_percent > 0
        if number > order.subject.rounds + (1 if evaluates else 0):
            return None
        training = number <= order.subject.rounds
        last = 1 if training else study.recipe.average_last
        width, family = len(columns(study.schema_)), family_of(study)
        done = self.checkpoints(connection, row.order_sha256, since=number - last)
        iterates = [models.from_safetensors(bytes(p.state), width, family) for p in done]
        return NextRound(
            order=order,
            study=study,
            phase=TRAIN if training else EVALUATE,
            round=number,
            weights=average(iterates, last) if iterates else initial(study, width),
            previous_sha256=done[-1].record_sha256 if done else None,
        )

    def request(self, asked: NextRound) -> Opened[RoundRequest]:
        """The round's request: written before it is first sent, and the same ever after."""
        key = (round_request.c.order_sha256 == asked.order.digest) & (
            round_request.c.round == asked.round
        )
        with self.database.unit_of_work() as connection:
            digest = connection.execute(sa.select(round_request.c.digest).where(key)).scalar()
            if digest is None:
                subject = RoundRequest(
                    order_sha256=asked.order.digest,
                    phase=TRAIN if asked.phase == TRAIN else EVALUATE,
                    round=asked.round,
                    weights_sha256=models.weights_digest(asked.weights),
                )
                document = issue(subject, self._key, self.now())
                opened = open_document(RoundRequest, document, issuers=[self._key.did])
                connection.execute(
                    round_request.insert().values(
                        order_sha256=asked.order.digest, round=asked.round, digest=opened.digest
                    )
                )
                self.journal.record(connection, RoundRequest.kind, document)
                return opened
            document = self.journal.document(connection, digest)
        return open_document(RoundRequest, document, issuers=[self._key.did])

    def conclude(
        self,
        asked: NextRound,
        request: Opened[RoundRequest],
        receipts: Sequence[Opened[RoundReceipt]],
        refused: Sequence[Refused],
        state: bytes,
        aggregate_sha256: str,
    ) -> RoundRecord:
        """Make the round a fact: receipts, record, checkpoint and progress, all or none.

        Raises:
            RunNotOpenError: The run was cancelled meanwhile; nothing is kept.
        """
        record = RoundRecord(
            order_sha256=asked.order.digest,
            phase=request.subject.phase,
            round=asked.round,
            request_sha256=request.digest,
            accepted=[
                Accepted(site=receipt.subject.site, receipt_sha256=receipt.digest)
                for receipt in receipts
            ],
            refused=list(refused),
            aggregate_sha256=aggregate_sha256,
            previous_sha256=asked.previous_sha256,
        )
        document = issue(record, self._key, self.now())
        opened = open_document(RoundRecord, document, issuers=[self._key.did])
        with self.database.unit_of_work() as connection:
            row = self.get(connection, asked.order.digest, lock=True)
            if row.state is not RunState.RUNNING or row.round != asked.round - 1:
                raise RunNotOpenError(f"run: is {row.state} at round {row.round}")
            connection.execute(
                round_checkpoint.insert().values(
                    order_sha256=asked.order.digest,
                    round=asked.round,
                    phase=asked.phase,
                    state=state,
                    record_sha256=opened.digest,
                )
            )
            self._set(
                connection, row.order_sha256, phase=asked.phase, round=asked.round, error=None
            )
            self.journal.record_many(
                connection, RoundReceipt.kind, [receipt.document for receipt in receipts]
            )
            self.journal.record(connection, RoundRecord.kind, document)
        return record

    def release(self, order_sha256: str) -> None:
        """Every round is done: from here only the release remains."""
        with self.database.unit_of_work() as connection:
            row = self.get(connection, order_sha256, lock=True)
            if row.state is not RunState.RUNNING:
                raise RunNotOpenError(f"run: is {row.state}")
            self._set(connection, order_sha256, state=RunState.RELEASING)

    # --- reading --------------------------------------------------------------------------------

    def get(self, connection: sa.Connection, order_sha256: str, *, lock: bool = False) -> RunRow:
        """The run of this order; `lock` keeps its state as read until the commit.

        Raises:
            NotFoundError: There is none.
        """
        query = sa.select(training_run).where(training_run.c.order_sha256 == order_sha256)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise NotFoundError("run: not found")
        return run_row(row)

    def runs(self, connection: sa.Connection, study_id: str | None = None) -> list[RunRow]:
        """Every run, of one study if it is named, newest first."""
        query = sa.select(training_run).order_by(
            training_run.c.created_at.desc(), training_run.c.order_sha256
        )
        if study_id is not None:
            query = query.where(training_run.c.study_id == study_id)
        return [run_row(row) for row in connection.execute(query)]

    def order(self, connection: sa.Connection, order_sha256: str) -> Opened[Order]:
        """The signed order."""
        self.get(connection, order_sha256)
        return self._order(connection, order_sha256)

    def checkpoints(
        self, connection: sa.Connection, order_sha256: str, *, since: int = 1
    ) -> list[sa.Row[tuple[object, ...]]]:
        """Checkpoints from round `since` on, in order: `round phase state record_sha256`."""
        query = (
            sa.select(round_checkpoint)
            .where(
                round_checkpoint.c.order_sha256 == order_sha256, round_checkpoint.c.round >= since
            )
            .order_by(round_checkpoint.c.round)
        )
        return list(connection.execute(query))

    def records(self, connection: sa.Connection, order_sha256: str) -> list[dict[str, Json]]:
        """The signed round records in order."""
        return [
            self.journal.document(connection, row.record_sha256)
            for row in self.checkpoints(connection, order_sha256)
        ]

    def result(self, connection: sa.Connection, order_sha256: str) -> RunResult:
        """What the rounds made, for the release.

        Raises:
            NotFoundError: No such run, or its rounds are not done.
        """
        row = self.get(connection, order_sha256)
        study = studies.by_digest(connection, row.study_sha256).study
        done = self.checkpoints(connection, order_sha256)
        trained = [point for point in done if point.phase == TRAIN]
        if row.state not in (RunState.RELEASING, RunState.FINISHED):
            raise NotFoundError("run: its rounds are not done")
        width, family = len(columns(study.schema_)), family_of(study)
        iterates = [models.from_safetensors(bytes(p.state), width, family) for p in trained]
        evaluated = next((bytes(point.state) for point in done if point.phase == EVALUATE), None)
        return RunResult(
            order=self._order(connection, order_sha256),
            study=study,
            weights=average(iterates, study.recipe.average_last),
            histograms={} if evaluated is None else histograms_of(evaluated),
            record_sha256s=[point.record_sha256 for point in done],
        )

    def _order(self, connection: sa.Connection, order_sha256: str) -> Opened[Order]:
        document = self.journal.document(connection, order_sha256)
        return open_document(Order, document, issuers=[self._key.did])

    def _last(self, connection: sa.Connection, study_sha256: str) -> RunRow | None:
        query = (
            sa.select(training_run)
            .where(training_run.c.study_sha256 == study_sha256)
            .order_by(training_run.c.created_at.desc(), training_run.c.order_sha256)
            .limit(1)
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else run_row(row)

    def _insert(self, connection: sa.Connection, order: Order) -> dict[str, Json]:
        now = self.now()
        document = issue(order, self._key, now)
        opened = open_document(Order, document, issuers=[self._key.did])
        connection.execute(
            training_run.insert().values(
                order_sha256=opened.digest,
                study_sha256=order.study_sha256,
                study_id=order.study_id,
                version=order.version,
                state=RunState.QUEUED,
                phase=TRAIN,
                round=0,
                rounds=order.rounds,
                created_at=now,
                updated_at=now,
            )
        )
        self.journal.record(connection, Order.kind, document)
        return document

    def _end(self, connection: sa.Connection, row: RunRow, state: RunState, code: str) -> None:
        # Ready again: hospitals may renew their approvals and the study may be ordered anew.
        study = studies.by_digest(connection, row.study_sha256)
        if study.state is StudyState.TRAINING:
            studies.move(connection, study.digest, to=StudyState.READY, since={StudyState.TRAINING})
        self._set(connection, row.order_sha256, state=state, error=code)

    def _set(self, connection: sa.Connection, order_sha256: str, **values: object) -> None:
        connection.execute(
            training_run.update()
            .where(training_run.c.order_sha256 == order_sha256)
            .values(**{"waiting": None, **values}, updated_at=self.now())
        )
