"""Withdrawal bites within 60 s: no lease without it outlives what her receipt promises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from budget import budget
from consent_hub import ConsentHub, Hospital, Person, clock, grant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coop.db import Database
from federated.held_lease import DRIFT
from federated.mirror import HeldLease, LeaseExpiredError, Mirror


class World:
    """One true time, a hub that reads it, a hospital whose clock drifts, and a slow wire."""

    def __init__(self, hub: ConsentHub, hospital: Hospital) -> None:
        self.hub, self.hospital = hub, hospital
        self.start = self.time = float(clock())
        self.rate = 1.0
        self.delays = (0.0, 0.0)
        self.moment = ""
        self.person: Person | None = None
        self.effective_by: int | None = None
        for part in (hub.registry, hub.registry._events, hub.registry._leases, hub.journal):
            name = "now" if part is hub.registry else "_now"
            setattr(part, name, lambda: int(self.time))
        self.mirror = Mirror(hospital.site, self, now=lambda: int(self.time), clock=self.boot)  # type: ignore[arg-type]

    def boot(self, at: float | None = None) -> float:
        return ((self.time if at is None else at) - self.start) * self.rate

    def get(self, path: str, *, nonce: str, have: int, documents: int) -> dict[str, Any]:
        """The wire: slow there, slow back, and things happen meanwhile."""
        assert path == "/v1/lease"
        self.time += self.delays[0]
        self.happen("asked")
        answer = self.hub.registry.lease(self.hospital.site.name, nonce, have, documents)
        self.happen("answered")
        self.time += self.delays[1]
        return answer

    def happen(self, moment: str) -> None:
        if moment == self.moment and self.person is not None and self.effective_by is None:
            answer = self.hub.registry.restrict(self.person.pid, "revoke", "session")
            self.effective_by = answer["effective_by"]
            assert self.effective_by - self.time <= 60

    def ask(self, there: float, back: float, moment: str) -> HeldLease:
        self.delays, self.moment = (there, back), moment
        return self.mirror.lease()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("lease")
    database = Database(f"sqlite:///{folder / 'hub.sqlite'}")
    database.upgrade()
    hub = ConsentHub(database)
    hospital = Hospital(hub, folder, "alone")
    hospital.site.pin(hub.trust.to_json(), "http://127.0.0.1:1", None)
    yield World(hub, hospital)
    hospital.close()
    database.close()


def begin(world: World, rate: float) -> Person:
    """A new patient who granted; the hospital's clock runs at `rate`."""
    world.rate, world.effective_by, world.person, world.moment = rate, None, None, ""
    (world.person,) = world.hospital.enrol(1)
    grant(world.hub, [world.person])
    return world.person


delays = st.floats(0, 50)
asks = st.tuples(delays, delays, st.sampled_from(["", "asked", "answered"]), delays)


@given(rate=st.floats(1 - DRIFT, 1 + DRIFT), steps=st.lists(asks, min_size=1, max_size=4))
@settings(
    max_examples=budget(25, 1000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whoever_was_acknowledged_is_out_everywhere_when_the_receipt_says(world, rate, steps):
    person = begin(world, rate)
    leases = []
    for there, back, moment, pause in steps:
        leases.append(world.ask(there, back, moment))
        world.time += pause
    if world.effective_by is None:
        return
    assert person.pid not in world.ask(0, 0, "").usable
    for lease in leases:
        if person.pid in lease.usable:
            with pytest.raises(LeaseExpiredError):
                lease.check(world.boot(world.effective_by))


def test_counting_from_the_answer_would_break_the_promise(world):
    person = begin(world, 1.0)
    lease = world.ask(0, 50, "answered")
    assert person.pid in lease.usable
    assert world.effective_by is not None
    with pytest.raises(LeaseExpiredError):
        lease.check(world.boot(world.effective_by))
    late = lease.expires_boottime + 50
    assert late > world.boot(world.effective_by)


def test_a_lease_in_force_is_worth_something(world):
    begin(world, 1.0)
    lease = world.ask(1, 1, "")
    lease.check(world.boot())
    assert lease.expires_boottime - world.boot() > 50
