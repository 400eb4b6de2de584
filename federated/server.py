"""The trainer: a thread of the hub that turns queued orders into trained models, round by round.

It owns the SuperLink's process, registers the members' nodes there, and drives Flower runs itself.
Everything it knows is in `federated.rounds`: killed at any instruction, it goes on after the last
checkpoint, and hospitals answer a round they answered before from their stores.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import sqlalchemy as sa

from coop import members
from coop.canonical import sha256
from coop.documents.envelope import Opened
from coop.documents.training import RoundReceipt, RoundRequest
from coop.errors import CoopError, InvariantError, Kind
from coop.logs import logger
from federated import masked_tables, models
from federated.collect import NO_ANSWER, OFFLINE, ROUND_S, Asking, Collector, refusals
from federated.flower_run import FlowerRun, open_run
from federated.gate import Admitted
from federated.masked_training import MaskedRound
from federated.registered import permitted_at_start
from federated.rounds import Rounds
from federated.run_tables import (
    HISTOGRAM,
    TRAIN,
    WAITING,
    NextRound,
    RunNotOpenError,
    RunRow,
    RunState,
    histograms_bytes,
)
from federated.step import apply_round
from federated.superlink import SuperLink, SuperLinkDownError

_IDLE_S: Final = 0.5
_READY_S: Final = 60.0  # a cold start on a loaded machine took 10 s
_ONLINE_S: Final = 30.0  # how long a run waits for the whole roster before it starts with a quorum
_WAIT_MAX_S: Final = 600.0  # … and how long without a quorum, before the next run has its turn
_ATTEMPTS_MAX: Final = 3
_ATTEMPT_PAUSE_S: Final = 3.0
_BACKOFF_MAX_S: Final = 15.0

Made = tuple[bytes, str, Sequence[Opened[RoundReceipt]]]
"""The state after a round, the digest its record names, and the receipts of who is in it."""
_LATER_S: Final = 5.0  # a run that must wait leaves its turn to others: twice as long each time,
_LATER_MAX_S: Final = 300.0  # … and so long at most
_CLOSED: Final = frozenset({"node.outside-hours", "node.stopped"})
_FOR_NOW: Final = _CLOSED | {OFFLINE, NO_ANSWER}
"""Codes of hospitals that will answer some other time: a run waits for them, and does not fail."""


class BelowQuorumError(CoopError):
    """Too few hospitals answered a round, several times; the run may be ordered again later."""

    code = "round.below-quorum"
    kind = Kind.UNAVAILABLE


class WaitingError(CoopError):
    """Too few hospitals answer now, and enough others will later; the run goes on then."""

    code = WAITING
    kind = Kind.UNAVAILABLE

    def __init__(self, waiting: Mapping[str, str]) -> None:
        super().__init__("waits for " + ", ".join(sorted(waiting)))
        self.waiting = waiting


class OrderExpiredError(CoopError):
    """The order's time is over before its rounds are."""

    code = "training.order-expired"
    kind = Kind.CONFLICT


class Trainer:
    """Trains queued runs, one after the other, until `stop`.

    Args:
        rounds: The hub's runs.
        link: Its SuperLink, which this trainer starts, restarts and stops.
        on_finished: Releases the model of an order; called again after a crash, so it must do
            nothing the second time.
        round_s: Deadline of one round.
        online_s: How long a starting run waits for its whole roster.
    """

    def __init__(
        self,
        rounds: Rounds,
        link: SuperLink,
        *,
        on_finished: Callable[[str], None],
        round_s: float = ROUND_S,
        online_s: float = _ONLINE_S,
    ) -> None:
        self.rounds = rounds
        self.link = link
        self._on_finished = on_finished
        self._round_s = round_s
        self._online_s = online_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._current: str | None = None
        self._registered: dict[str, str] = {}
        self._nodes: dict[str, int] = {}
        self._later: dict[str, tuple[float, float]] = {}  # order → (when again, after how long)

    def start(self) -> None:
        """Start the SuperLink and the thread; returns at once."""
        self.link.start()
        self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the call in progress; an unfinished round is asked again next time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self.link.stop()

    def _run(self) -> None:
        pause = _IDLE_S
        while not self._stop.wait(pause):
            try:
                pause = 0.0 if self._step() else _IDLE_S
            except SuperLinkDownError as error:
                logger().warning("superlink down", code=error.code)
                pause = min(max(1.0, 2 * pause), _BACKOFF_MAX_S)
            except Exception as error:  # noqa: BLE001  (outermost loop: one bug must not end training)
                logger().error("trainer failed", error_type=type(error).__name__)
                self._give_up(error)
                pause = _BACKOFF_MAX_S

    def _give_up(self, error: Exception) -> None:
        """End the run a bug stopped, or it would stop every later one; it may be ordered again."""
        order, self._current = self._current, None
        # A database that is away fails no run: it is as it was, and is tried again.
        if order is None or isinstance(error, sa.exc.DBAPIError):
            return
        try:
            self.rounds.fail(order, InvariantError.code)
        except Exception as second:  # noqa: BLE001  (the thread must not end; the run is tried again)
            logger().error("run not ended", error_type=type(second).__name__)

    def _step(self) -> bool:
        """One piece of work; False if there was none."""
        self._current = None
        self._ready()
        moment = time.monotonic()
        later = [order for order, (again, _) in self._later.items() if again > moment]
        row = self.rounds.next_run(later)
        if row is None:
            return False
        self._current = row.order_sha256
        try:
            if row.state is not RunState.RELEASING:
                self._train(row)
            # A crash before `finish` repeats the release, which then changes nothing.
            self._on_finished(row.order_sha256)
            self.rounds.finish(row.order_sha256)
        except RunNotOpenError:
            logger().info("run ended from outside", order=row.order_sha256)
        except SuperLinkDownError:
            raise
        except WaitingError as error:
            logger().info("run waits", order=row.order_sha256, size=len(error.waiting))
            self.rounds.note(row.order_sha256, error.waiting)
            waited = self._later.get(row.order_sha256, (0.0, _LATER_S / 2))[1]
            pause = min(2 * waited, _LATER_MAX_S)
            self._later[row.order_sha256] = (time.monotonic() + pause, pause)
        except CoopError as error:
            logger().warning("run failed", order=row.order_sha256, code=error.code)
            self.rounds.fail(row.order_sha256, error.code)
        return True

    def _ready(self) -> None:
        """A running SuperLink that knows exactly the active members' keys."""
        if not self.link.alive():
            self.link.start()
            self._registered = {}
        with self.rounds.database.reading() as connection:
            rows = members.sites(connection).values()
        # By seniority: nobody takes over a hospital's node by joining with its public key.
        oldest = sorted(rows, key=lambda row: (row.joined_at, row.name))
        keys = {row.name: row.supernode_key for row in oldest}
        if keys != self._registered:
            self.link.wait_ready(_READY_S, self._stop)
            self._nodes = self.link.register(keys)
            self._registered = keys
            logger().info("nodes registered", size=len(keys))

    def _train(self, row: RunRow) -> None:
        asked = self.rounds.next_round(row.order_sha256)
        if asked is not None:
            self.link.wait_ready(_READY_S, self._stop)
            with open_run(self.link) as run:
                self._wait_for_roster(run, asked)
                while asked is not None:
                    self._round(run, asked)
                    asked = self.rounds.next_round(row.order_sha256)
        self.rounds.release(row.order_sha256)

    def _roster(self, asked: NextRound) -> dict[str, int]:
        return {
            entry.site: self._nodes[entry.site]
            for entry in asked.order.subject.roster
            if entry.site in self._nodes
        }

    def _wait_for_roster(self, run: FlowerRun, asked: NextRound) -> None:
        """Return when the whole roster is online, or a quorum is and the patience is over.

        Raises:
            WaitingError: No quorum came online; the next run in the queue has waited enough.
        """
        roster = self._roster(asked)
        nodes = set(roster.values())
        quorum = asked.order.subject.quorum
        start = time.monotonic()
        while True:
            online = nodes & set(run.presence())
            waited = time.monotonic() - start
            if online == nodes or (waited > self._online_s and len(online) >= quorum):
                self.rounds.note(asked.order.digest, {})
                return
            away = {site: OFFLINE for site, node in roster.items() if node not in online}
            if waited > _WAIT_MAX_S:
                raise WaitingError(away)
            if waited > self._online_s:
                self.rounds.note(asked.order.digest, away)
            self._pause(_IDLE_S)
            self.rounds.next_round(asked.order.digest)  # raises when the run is cancelled
            self._check_time(asked)

    def _round(self, run: FlowerRun, asked: NextRound) -> None:
        """One round to its checkpoint.

        Raises:
            WaitingError: Too few contributed in every attempt, but enough others will.
            BelowQuorumError: Too few contributed in every attempt, and no others will.
        """
        request = self.rounds.request(asked)
        quorum = asked.order.subject.quorum
        codes: dict[str, str] = {}
        for attempt in range(_ATTEMPTS_MAX):
            self._check_time(asked)
            made, codes = (self._masked if asked.masked else self._plain)(run, asked, request)
            if self._stop.is_set():
                raise SuperLinkDownError("the hub is stopping")
            if made is not None:
                state, digest, receipts = made
                self.rounds.conclude(asked, request, receipts, refusals(codes), state, digest)
                if asked.masked:
                    with self.rounds.database.unit_of_work() as connection:
                        masked_tables.drop(connection, asked.order.digest, asked.round)
                self._later.pop(asked.order.digest, None)
                logger().info("round done", round=asked.round, size=len(receipts))
                return
            logger().warning("below quorum", round=asked.round, attempt=attempt)
            closed = {site: code for site, code in codes.items() if code in _CLOSED}
            if len(asked.order.subject.roster) - len(closed) < quorum:
                raise WaitingError(closed)
            self._pause(_ATTEMPT_PAUSE_S)
        later = {site: code for site, code in codes.items() if code in _FOR_NOW}
        if len(asked.order.subject.roster) - len(codes) + len(later) >= quorum:
            raise WaitingError(later)
        said = ", ".join(f"{site} {code}" for site, code in sorted(codes.items()))
        raise BelowQuorumError(f"round {asked.round}: fewer than {quorum} answers ({said})")

    def _plain(
        self, run: FlowerRun, asked: NextRound, request: Opened[RoundRequest]
    ) -> tuple[Made | None, dict[str, str]]:
        """One attempt whose answers the hub sees; and who is not in it, by code."""
        quorum = asked.order.subject.quorum
        collector = Collector(
            run,
            asked,
            request,
            self._roster(asked),
            quorum,
            seconds=self._round_s,
            stop=self._stop,
        )
        admitted = collector.collect()
        if len(admitted) < quorum:
            return None, collector.refused
        state, digest = aggregate(asked, admitted, self._registered_for(asked))
        receipts = [admitted[site].receipt for site in sorted(admitted)]
        return (state, digest, receipts), collector.refused

    def _masked(
        self, run: FlowerRun, asked: NextRound, request: Opened[RoundRequest]
    ) -> tuple[Made | None, dict[str, str]]:
        """One attempt of which the hub sees the sum only."""
        roster = self._roster(asked)

        def online() -> set[str]:
            present = set(run.presence())
            return {site for site, node in roster.items() if node in present}

        attempt = MaskedRound(
            self.rounds,
            partial(Asking, run, seconds=self._round_s, stop=self._stop),
            asked,
            request,
            roster,
            online,
        )
        summed = attempt.attempt()
        if summed is None:
            return None, attempt.refused
        state = models.to_safetensors(summed.weights)
        made = state, models.weights_digest(summed.weights), summed.receipts
        return made, attempt.refused

    def _registered_for(self, asked: NextRound) -> dict[str, int]:
        """Registered consents by site at the run's start, where the study's rule needs them."""
        if asked.study.recipe.aggregation == "sum":
            return {}
        with self.rounds.database.reading() as connection:
            found = permitted_at_start(
                connection, self.rounds.journal, asked.study, asked.order.digest
            )
        return {site: len(pids) for site, pids in found.items()}

    def _check_time(self, asked: NextRound) -> None:
        if self.rounds.now() >= asked.order.subject.not_after:
            raise OrderExpiredError("order: its time is over; order the study anew")

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise SuperLinkDownError("the hub is stopping")


def aggregate(
    asked: NextRound, admitted: Mapping[str, Admitted], registered: Mapping[str, int] | None = None
) -> tuple[bytes, str]:
    """The state after the round and the digest its record names; arrival order changes nothing."""
    if asked.phase == TRAIN:
        updates = {site: _weights(answer) for site, answer in admitted.items()}
        weights = apply_round(asked.weights, updates, asked.study.recipe, registered)
        return models.to_safetensors(weights), models.weights_digest(weights)
    state = histograms_bytes(
        {site: answer.update[HISTOGRAM].astype(np.int64) for site, answer in admitted.items()}
    )
    return state, sha256(state).hex()


def _weights(answer: Admitted) -> models.Weights:
    return {name: value.astype(np.float32) for name, value in answer.update.items()}
