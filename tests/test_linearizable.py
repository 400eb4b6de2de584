"""Withdrawals and decisions at once: every answer is one that a single, instant register gives.

A history is what clients see of one record: when each asked, when each was answered, and what. It
is linearizable if every operation can be put at one instant between its question and its answer so
that each decision reads what the newest grant or withdrawal before it wrote (Herlihy & Wing 1990).
A decision by a lease that is held may read what held up to 60 s before, and nothing older.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random  # noqa: TID251  (seeded: the same schedules every time)
from typing import Final

import pytest
from budget import budget
from consent_hub import Person
from lease_world import World, made

from consent.decide import Request, decide
from federated.mirror import HeldLease, LeaseExpiredError

HELD_S: Final = 60
HISTORIES: Final = budget(40, 3000)
TRAINS: Final = Request(
    action="train-federated",
    purpose="DUO:0000006",
    data_class="cardiology",
    study_id="heart",
    organisation="University",
    commercial=False,
    at=0,
)


@dataclass(frozen=True)
class Operation:
    """What one client saw: a write of a permission, or a decision that read one."""

    writes: bool
    value: bool
    asked: float
    answered: float


def read(value: bool, asked: float, answered: float) -> Operation:  # noqa: FBT001  (what was read)
    return Operation(writes=False, value=value, asked=asked, answered=answered)


def linearizable(history: list[Operation], *, first: bool) -> bool:
    """Whether some order of instants explains the history (Wing & Gong 1993, with a memory).

    Args:
        history: Every operation.
        first: What held before.
    """
    seen: set[tuple[frozenset[int], bool]] = set()

    def explained(left: frozenset[int], *, value: bool) -> bool:
        if not left:
            return True
        if (left, value) in seen:
            return False
        seen.add((left, value))
        horizon = min(history[n].answered for n in left)
        for number in left:
            one = history[number]
            # Whoever asked after somebody else was answered cannot come before that one.
            if one.asked > horizon or (not one.writes and one.value != value):
                continue
            if explained(left - {number}, value=one.value if one.writes else value):
                return True
        return False

    return explained(frozenset(range(len(history))), value=first)


@dataclass
class Clients:
    """Patients who grant and withdraw over slow lines while the hospital and the portal decide.

    Args:
        world: Registry, mirror, time and wire.
        random: The schedule.
        fresh: How the hospital gets a lease for a decision.
        ask: How the portal asks the registry.
        in_force: Whether a held lease still counts.
    """

    world: World
    random: Random
    person: Person
    fresh: Callable[[], HeldLease]
    ask: Callable[[str], bool]
    in_force: Callable[[HeldLease], bool]
    history: list[Operation] = field(default_factory=list)
    due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    ties: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.world.wait = self.wait  # type: ignore[method-assign]  # things happen meanwhile

    def wait(self, seconds: float) -> None:
        """Time goes by, and what is due happens at its time."""
        until = self.world.time + seconds
        while self.due and self.due[0][0] <= until:
            at, _, happen = heapq.heappop(self.due)
            self.world.time = at
            happen()
        self.world.time = until

    def later(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.due, (self.world.time + seconds, next(self.ties), happen))

    def run(self) -> list[Operation]:
        """One history: writes and readings begin while others are under way."""
        held: HeldLease | None = None
        for _ in range(self.random.randint(3, 6)):
            self.later(self.random.expovariate(1 / 10), self.begin)
        for _ in range(self.random.randint(2, 4)):
            self.wait(self.random.expovariate(1 / 15))
            if held is not None and self.in_force(held) and self.random.random() < 0.5:
                now = self.world.time
                self.history.append(read(self.reads(held), now - HELD_S, now))
            else:
                asked = self.world.time
                self.world.delays = (self.slow(), self.slow())
                held = self.fresh()
                self.history.append(read(self.reads(held), asked, self.world.time))
        self.wait(1000)
        return self.history

    def begin(self) -> None:
        """Somebody asks for something; it is done, and answered, later."""
        asked = self.world.time
        what = self.random.choice([self.grant, self.withdraw, self.decision])
        there, back = self.slow(), self.slow()

        def done() -> None:
            writes, value = what()
            self.later(
                back,
                lambda: self.history.append(Operation(writes, value, asked, self.world.time)),
            )

        self.later(there, done)

    def grant(self) -> tuple[bool, bool]:
        active = self.world.hub.registry.standing(self.person.pid).state == "active"
        document = self.person.event("amend" if active else "grant")
        assert self.world.hub.registry.submit([document])[0]["problem"] is None
        self.person.follow(document)
        return True, True

    def withdraw(self) -> tuple[bool, bool]:
        registry = self.world.hub.registry
        registry.restrict(self.person.pid, "revoke", "session")
        standing = registry.standing(self.person.pid)
        self.person.sequence, self.person.head = standing.sequence, standing.head_digest
        return True, False

    def decision(self) -> tuple[bool, bool]:
        return False, self.ask(self.person.pid)

    def reads(self, lease: HeldLease) -> bool:
        pid = self.person.pid
        return pid in lease.usable and decide(lease.standings.get(pid), TRAINS).permits

    def slow(self) -> float:
        return self.random.choice([0.0, self.random.expovariate(1 / 8)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("linear")
    with made(folder) as here:
        yield here


@dataclass
class Parts:
    """The three ways to read, as they ship; a mutant replaces one."""

    world: World

    def fresh(self) -> HeldLease:
        return self.world.mirror.lease()

    def ask(self, pid: str) -> bool:
        return self.world.hub.registry.decision(pid, TRAINS).permits

    def in_force(self, lease: HeldLease) -> bool:
        try:
            lease.check(self.world.boot())
        except LeaseExpiredError:
            return False
        return True


def unexplained(world: World, parts: Parts, histories: int) -> int:
    """How many of so many histories no single register explains."""
    random = Random(11)  # noqa: S311  (a schedule, not a secret)
    (person,) = world.hospital.enrol(1)
    document = person.event("grant")
    assert world.hub.registry.submit([document])[0]["problem"] is None
    person.follow(document)
    found = 0
    for _ in range(histories):
        first = parts.world.hub.registry.decision(person.pid, TRAINS).permits
        clients = Clients(world, random, person, parts.fresh, parts.ask, parts.in_force)
        found += not linearizable(clients.run(), first=first)
    return found


def test_every_history_of_registry_and_mirror_is_linearizable(world):
    assert unexplained(world, Parts(world), HISTORIES) == 0


class StaleLease(Parts):
    """A node that keeps its reading of consents and renews only the time it holds."""

    known: HeldLease | None = None
    asked = 0

    def fresh(self) -> HeldLease:
        lease = super().fresh()
        self.asked += 1
        if self.known is None or self.asked % 3 == 0:
            self.known = lease
        return replace(lease, standings=self.known.standings, usable=self.known.usable)


class StaleDecision(Parts):
    """A registry that remembers an answer for a while."""

    known: tuple[float, bool] = (0.0, False)

    def ask(self, pid: str) -> bool:
        if self.world.time - self.known[0] > 10:
            self.known = (self.world.time, super().ask(pid))
        return self.known[1]


class HeldForEver(Parts):
    """A node whose lease never runs out; it decides by it for as long as it likes."""

    def in_force(self, lease: HeldLease) -> bool:
        self.world.wait(90)
        return lease.log_size > 0


@pytest.mark.parametrize("mutant", [StaleLease, StaleDecision, HeldForEver])
def test_a_stale_answer_is_caught(world, mutant):
    assert unexplained(world, mutant(world), 40) > 0


def op(kind: str, asked: float, answered: float) -> Operation:
    writes, value = kind in {"grant", "withdraw"}, kind in {"grant", "yes"}
    return Operation(writes=writes, value=value, asked=asked, answered=answered)


def test_the_checker_tells_possible_from_impossible():
    both_at_once = [op("withdraw", 0, 10), op("yes", 1, 2), op("no", 3, 4)]
    assert linearizable(both_at_once, first=True)
    assert linearizable([op("withdraw", 0, 10), op("yes", 11, 12), op("grant", 0, 10)], first=True)
    assert linearizable([], first=True)
    back_and_forth = [op("withdraw", 0, 10), op("no", 1, 2), op("yes", 3, 4)]
    assert not linearizable(back_and_forth, first=True)
    assert not linearizable([op("withdraw", 0, 1), op("yes", 2, 3)], first=True)
    assert not linearizable([op("yes", 0, 1)], first=False)
    assert not linearizable([op("grant", 0, 1), op("withdraw", 2, 3), op("yes", 4, 5)], first=True)
