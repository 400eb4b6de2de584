"""A whole cooperative of real processes for fault tests: hub, SuperLink, four nodes, few patients.

Where the other promises of the issue's list of faults are held, with the real parts:

| promise | test |
|---|---|
| a hub with full access forges a grant or an enrolment | test_forgery.py, test_mirror.py |
| … an approval or an order: no row trains | test_forgery.py, test_round.py |
| a forged, foreign, expired or altered order, other noise, unknown purpose | test_round.py |
| withdrawal between start and release: discarded, the debit stays | test_faults.py, test_round.py |
| stale lease, altered policy, wrong key | test_mirror.py, test_round.py, test_chain.py |
| replayed, NaN, oversized or wrongly signed update | test_gate.py |
| foreign app bundle: refused, nothing of it runs | test_executor.py |
| SuperLink killed: restarted, the run resumes | test_faults.py, test_flower_run.py |
| mode B: a hospital or the hub killed between its stages | test_faults.py, test_masked_round.py |
| malformed row quarantined with line and reason | test_importers.py |
| a receipt signed anew with a fresh key | test_verify.py, test_demo.py |
| a demo folder without its marker | test_demo_stage.py |
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from coop.db import Database
from coop.demo import learning, patients
from coop.demo.house import House, open_house
from coop.demo.narrator import Narrator
from coop.demo.stage import prepare
from coop.studyfile import load_study
from federated.budget import debit
from federated.site import Site

RECORDS = 45
"""Patients who enrol at each hospital: enough to train, few enough to be quick."""


@dataclass
class Faulty:
    """A running house whose parts a test may kill and start again."""

    house: House
    versions: int = 0
    facts: dict = field(default_factory=dict)

    def ready(self, rounds: int, **recipe: object) -> str:
        """Propose and approve a new study version; its id."""
        self.versions += 1
        fields = load_study(learning.study_file())
        fields["version"] = self.versions
        fields["recipe"] = {**fields["recipe"], "rounds": rounds, "average_last": 2, **recipe}
        if "aggregation" in recipe:
            fields["hospitals_quorum"] = 4
        learning.propose(self.house, fields)
        learning.approve_everywhere(self.house, fields)
        return str(fields["study_id"])

    def train(self, rounds: int, **recipe: object) -> str:
        """The same, and order its training; the order's digest."""
        body = {"study_id": self.ready(rounds, **recipe), "version": self.versions}
        return self.house.researcher_client.post("/v1/rounds", body)["run"]["order_sha256"]

    def run(self, order: str) -> dict:
        with self.house.public() as client:
            return client.get(f"/v1/rounds/{order}")

    def await_round(self, order: str, number: int) -> None:
        wait_for(lambda: self.run(order)["round"] >= number, 90)

    def finish(self, order: str, seconds: float = 150) -> dict:
        wait_for(lambda: self.run(order)["state"] in {"finished", "failed"}, seconds)
        return self.run(order)

    def kill_hub(self) -> None:
        hub = self.house.hub
        assert hub is not None
        os.kill(hub.process.pid, signal.SIGKILL)
        hub.process.wait()
        self.house.stage.children.remove(hub)

    def kill_superlink(self) -> None:
        """Flower's relay alone; the hub, whose child it is, lives on."""
        hub = self.house.hub
        assert hub is not None
        (link,) = children_of(hub.process.pid, b"federated.superlink")
        os.kill(link, signal.SIGKILL)

    def kill_node(self, name: str) -> None:
        """The whole hospital loses power: node and SuperNode at once."""
        child = self.house.hospitals[name].child
        assert child is not None
        os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        self.house.stage.children.remove(child)

    def start_node(self, name: str) -> None:
        hospital = self.house.hospitals[name]
        self.house.start_node(hospital)
        self.house.await_node(hospital)

    def site(self, name: str) -> Site:
        return Site.open(self.house.folder / name)

    def hub_database(self) -> Database:
        return Database(f"sqlite:///{self.house.folder / 'hub/coop.sqlite'}")

    def debits(self, name: str, order: str) -> list[int]:
        """The rounds debited under an order, one entry per debit."""
        site = self.site(name)
        with site.database.reading() as connection:
            query = sa.select(debit.c.round).where(debit.c.order_sha256 == order)
            found = sorted(connection.execute(query).scalars())
        site.close()
        return found


def children_of(parent: int, program: bytes) -> list[int]:
    """The pids of a process's own children that run `program`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[1]) == parent and program in command:
                found.append(int(entry.name))
    return found


def accepted(run: dict) -> list[set[str]]:
    """The hospitals whose answers each finished round took."""
    return [
        {entry["site"] for entry in record["credentialSubject"]["accepted"]}
        for record in run["records"]
    ]


def wait_for(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def open_faulty(folder: Path) -> Faulty:
    """Start everything, enrol some patients at each hospital."""
    house = open_house(prepare(folder), Narrator(quiet_stdout=True))
    for hospital in house.hospitals.values():
        hospital.records = hospital.records[:RECORDS]
    faulty = Faulty(house)
    patients.enrol(house, faulty.facts)
    learning.researcher(house)
    return faulty
