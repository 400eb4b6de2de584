"""One true time, a hub that reads it, a hospital whose clock drifts, and a slow wire."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consent_hub import ConsentHub, Hospital, clock

from coop.db import Database
from federated.mirror import HeldLease, Mirror


class World:
    """The real registry and the real mirror; only the time and the wire are the test's.

    `between` is called while a lease is on its way: with "asked" before the registry answers, with
    "answered" after.
    """

    def __init__(self, hub: ConsentHub, hospital: Hospital) -> None:
        self.hub, self.hospital = hub, hospital
        self.start = self.time = float(clock())
        self.rate = 1.0
        self.delays = (0.0, 0.0)
        self.between: Callable[[str], None] = lambda _moment: None
        for part in (hub.registry, hub.registry._events, hub.registry._leases, hub.journal):
            name = "now" if part is hub.registry else "_now"
            setattr(part, name, lambda: int(self.time))
        hospital.now = hub.now = lambda: int(self.time)
        self.mirror = Mirror(hospital.site, self, now=hospital.now, clock=self.boot)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.time += seconds

    def boot(self, at: float | None = None) -> float:
        """The hospital's clock since boot, at a true time."""
        return ((self.time if at is None else at) - self.start) * self.rate

    def get(self, path: str, *, nonce: str, have: int, documents: int) -> dict[str, Any]:
        """The wire: slow there, slow back, and things happen meanwhile."""
        assert path == "/v1/lease"
        self.wait(self.delays[0])
        self.between("asked")
        answer = self.hub.registry.lease(self.hospital.site.name, nonce, have, documents)
        self.between("answered")
        self.wait(self.delays[1])
        return answer

    def ask(self, there: float, back: float) -> HeldLease:
        """A lease over a wire with these delays."""
        self.delays = (there, back)
        return self.mirror.lease()


@contextmanager
def made(folder: Path) -> Iterator[World]:
    """A world of one hospital, which needs no witness."""
    database = Database(f"sqlite:///{folder / 'hub.sqlite'}")
    database.upgrade()
    hub = ConsentHub(database)
    hospital = Hospital(hub, folder, "alone")
    hospital.site.pin(hub.trust.to_json(), "http://127.0.0.1:1", None)
    yield World(hub, hospital)
    hospital.close()
    database.close()
