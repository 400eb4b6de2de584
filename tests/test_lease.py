"""Withdrawal bites within 60 s: no lease without it outlives what her receipt promises."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random  # noqa: TID251  (seeded: the same schedule every time)

import pytest
from budget import budget
from consent_hub import Person, grant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lease_world import World, made

from consent.decide import Request, decide
from federated.held_lease import DRIFT
from federated.mirror import HeldLease, LeaseExpiredError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with made(tmp_path_factory.mktemp("lease")) as here:
        yield here


@dataclass
class Withdrawal:
    """One patient, and what happens while her hospital asks for leases."""

    world: World
    person: Person
    moment: str = ""
    effective_by: int | None = None

    def happen(self, moment: str) -> None:
        if moment == self.moment and self.effective_by is None:
            answer = self.world.hub.registry.restrict(self.person.pid, "revoke", "session")
            self.effective_by = answer["effective_by"]
            assert self.effective_by - self.world.time <= 60

    def ask(self, there: float, back: float, moment: str) -> HeldLease:
        self.moment = moment
        return self.world.ask(there, back)


def begin(world: World, rate: float) -> Withdrawal:
    """A new patient who granted; the hospital's clock runs at `rate`."""
    world.rate, world.between = rate, lambda _moment: None
    (person,) = world.hospital.enrol(1)
    grant(world.hub, [person])
    case = Withdrawal(world, person)
    world.between = case.happen
    return case


delays = st.floats(0, 50)
asks = st.tuples(delays, delays, st.sampled_from(["", "asked", "answered"]), delays)


@given(rate=st.floats(1 - DRIFT, 1 + DRIFT), steps=st.lists(asks, min_size=1, max_size=4))
@settings(
    max_examples=budget(25, 1000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whoever_was_acknowledged_is_out_everywhere_when_the_receipt_says(world, rate, steps):
    case = begin(world, rate)
    leases = []
    for there, back, moment, pause in steps:
        leases.append(case.ask(there, back, moment))
        world.time += pause
    if case.effective_by is None:
        return
    assert case.person.pid not in case.ask(0, 0, "").usable
    for lease in leases:
        if case.person.pid in lease.usable:
            with pytest.raises(LeaseExpiredError):
                lease.check(world.boot(case.effective_by))


def test_counting_from_the_answer_would_break_the_promise(world):
    case = begin(world, 1.0)
    lease = case.ask(0, 50, "answered")
    assert case.person.pid in lease.usable
    assert case.effective_by is not None
    with pytest.raises(LeaseExpiredError):
        lease.check(world.boot(case.effective_by))
    late = lease.expires_boottime + 50
    assert late > world.boot(case.effective_by)


def test_a_lease_in_force_is_worth_something(world):
    lease = begin(world, 1.0).ask(1, 1, "")
    lease.check(world.boot())
    assert lease.expires_boottime - world.boot() > 50


# -- a long life of one hospital: every decision held against every receipt

PATIENTS = 24
LEASES = budget(60, 2500)
DECISIONS = budget(200, 500)  # between two leases


@dataclass
class Life:
    """A hospital that asks, decides and loses its line, while patients withdraw and come back.

    `over` says for how many decisions a consent was used at or after the second that the receipt
    of its withdrawal names: by the rule that ships, and by the two that are wrong.
    """

    world: World
    random: Random
    people: list[Person] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    """Heads that were withdrawn, with the second the receipt names."""
    decisions: int = 0
    permits: int = 0
    over: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))

    def patients_decide(self, _moment: str) -> None:
        """Somebody withdraws or comes back, or nobody."""
        if self.random.random() < 0.5:
            return
        person = self.random.choice(self.people)
        registry = self.world.hub.registry
        if self.random.random() < 0.2:  # without a key
            withdrawn = registry.standing(person.pid).state == "active"
            before = person.head
            if withdrawn:
                answer = registry.restrict(person.pid, "revoke", "session")
                self.ended[before] = answer["effective_by"]
                person.sequence += 1
                person.head = registry.standing(person.pid).head_digest
            return
        active = registry.standing(person.pid).state == "active"
        document = person.event("revoke" if active else "grant")
        answer = registry.submit([document])[0]
        assert answer["problem"] is None
        if active:
            self.ended[person.head] = answer["effective_by"]
        person.follow(document)

    def decide(self, lease: HeldLease, received: float, request: Request) -> None:
        """One decision by the lease that is held, under each rule."""
        self.decisions += 1
        pid = self.random.choice(self.people).pid
        standing = lease.standings.get(pid)
        if pid not in lease.usable or not decide(standing, request).permits:
            return
        late = standing is not None and self.world.time >= self.ended.get(
            standing.head_digest, self.world.time + 1
        )
        for rule, is_over in RULES.items():
            if not is_over(lease, self.world.boot(), received):
                self.permits += rule == "ours"
                self.over[rule] += late


def _expired(lease: HeldLease, at: float) -> bool:
    try:
        lease.check(at)
    except LeaseExpiredError:
        return True
    return False


RULES = {
    "ours": lambda lease, at, _waited: _expired(lease, at),
    "counted from the answer": lambda lease, at, waited: _expired(lease, at - waited),
    "no expiry": lambda _lease, _at, _waited: False,
}


def test_of_all_decisions_in_a_long_life_none_is_late_and_both_wrong_rules_are(tmp_path):
    random = Random(7)  # noqa: S311  (a schedule, not a secret)
    request = Request(
        action="train-federated",
        purpose="DUO:0000006",
        data_class="cardiology",
        study_id="heart",
        organisation="University",
        commercial=False,
        at=0,
    )
    with made(tmp_path) as world:
        life = Life(world, random, people=world.hospital.enrol(PATIENTS))
        grant(world.hub, life.people)
        world.between = life.patients_decide
        for _ in range(LEASES):
            world.rate = random.uniform(1 - DRIFT, 1 + DRIFT)
            world.start = world.time  # the machine was started anew, and its clock runs as it likes
            asked = world.boot()
            lease = world.ask(random.expovariate(1 / 4), random.expovariate(1 / 12))
            waited = world.boot() - asked
            line_down = random.random() < 0.2
            until = random.expovariate(1 / (120 if line_down else 25))
            for _ in range(DECISIONS):
                life.decide(lease, waited, request)
                world.time += until / DECISIONS
                if random.random() < 2 / DECISIONS:
                    life.patients_decide("meanwhile")
    assert life.decisions == LEASES * DECISIONS
    assert life.permits > life.decisions / 10
    assert life.over["ours"] == 0
    assert life.over["counted from the answer"] > 0
    assert life.over["no expiry"] > life.over["counted from the answer"]
