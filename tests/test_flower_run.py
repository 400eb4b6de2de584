"""Flower end to end: real SuperLink, front, SuperNodes, executors and the trainer's own thread."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import served
from training_world import TrainingWorld, sqlite_world, study_of

from coop.canonical import document_digest
from federated import flower_compat as flower
from federated import supernode
from federated.flower_run import open_run
from federated.front import Front
from federated.run_tables import RunState
from federated.server import Trainer
from federated.superlink import SuperLink, free_port

NODE = Path(__file__).parent / "flower_node.py"
PARENT = Path(__file__).parent.parent
WAIT_S = 80.0


def wait_for(what: Callable[[], object], seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


class Federation:
    """The processes of one test; `close` leaves none behind."""

    def __init__(self, folder: Path, front_port: int, world: TrainingWorld, link: SuperLink):
        self.folder, self.front, self.world, self.link = folder, front_port, world, link
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def join(self, *sites: str) -> None:
        for site in sites:
            self.world.join(site, supernode.make_key(self.folder / f"{site}.key"))

    def start(self, site: str, pause_s: float = 0.0) -> None:
        seed = self.world.keys[site]._key.encode().hex()
        arguments = [
            site,
            seed,
            f"127.0.0.1:{self.front}",
            self.link.ca_file,
            self.folder / f"{site}.key",
            self.folder / site,
            free_port(),
            pause_s,
        ]
        log = (self.folder / f"{site}.log").open("ab")
        self.nodes[site] = subprocess.Popen(
            [sys.executable, NODE, *map(str, arguments)],
            cwd=PARENT,
            env={**os.environ, "PYTHONPATH": str(PARENT)},  # noqa: TID251  (children need PATH)
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def kill(self, site: str) -> None:
        """kill -9 for the node and its SuperNode at the same instant."""
        process = self.nodes.pop(site)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for site in list(self.nodes):
            self.kill(site)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    world = sqlite_world(tmp_path)
    link = SuperLink(tmp_path / "link")
    link.start()
    front = Front(link.address, link.ca_file)
    with served(front, certificate=link.folder, close=front.close) as port:
        made = Federation(tmp_path, port, world, link)
        try:
            yield made
        finally:
            made.close()
            link.stop()
            world.database.close()


def state_of(world: TrainingWorld, order: str):
    with world.database.reading() as connection:
        return world.rounds.get(connection, order)


def trainer_of(world: TrainingWorld, link: SuperLink, released: list[str]) -> Trainer:
    made = Trainer(world.rounds, link, on_finished=released.append, round_s=40, online_s=8)
    made.start()
    return made


@pytest.mark.flow
@pytest.mark.timeout(120)
def test_a_run_survives_a_killed_node_a_killed_superlink_and_a_new_hub(federation: Federation):
    world, link = federation.world, federation.link
    federation.join("east", "west")
    world.join("north", "no key at all")  # must not stop the others
    recipe = study_of().recipe.model_copy(update={"rounds": 4, "average_last": 4})
    world.ready("east", "west", recipe=recipe)
    released: list[str] = []
    trainer = trainer_of(world, link, released)
    try:
        wait_for(lambda: trainer._nodes)
        assert set(trainer._nodes) == {"east", "west"}
        federation.start("east", pause_s=0.2)
        federation.start("west", pause_s=2.0)
        digest = document_digest(world.rounds.create("heart"))
        wait_for(lambda: state_of(world, digest).round >= 1)
        federation.kill("west")  # in the middle of round 2: it needs two seconds
        wait_for(lambda: state_of(world, digest).round >= 2)
        os.kill(link.pid(), signal.SIGKILL)
        wait_for(lambda: state_of(world, digest).round >= 3)
        trainer.stop()  # in the middle of round 4, as far as we know
        link = SuperLink(link.folder, port=link.port)
        trainer = trainer_of(world, link, released)
        wait_for(lambda: state_of(world, digest).state is RunState.FINISHED)
    finally:
        trainer.stop()
    assert released == [digest]
    with world.database.reading() as connection:
        records = world.rounds.records(connection, digest)
        result = world.rounds.result(connection, digest)
    accepted = [
        [entry["site"] for entry in record["credentialSubject"]["accepted"]] for record in records
    ]
    assert accepted == [["east", "west"], ["east"], ["east"], ["east"], ["east"]]
    refused = records[1]["credentialSubject"]["refused"]
    assert refused == [{"site": "west", "code": "round.site-offline"}]
    # -2/100, then three times -1/100 more; the mean of all four iterates is released.
    assert result.weights["weight"].tolist() == pytest.approx([-0.035, -0.035])
    assert sum(int(own.sum()) for own in result.histograms.values()) == 40


@pytest.mark.flow
@pytest.mark.timeout(120)
def test_a_run_that_a_dead_hub_left_is_ended_before_the_next_one(tmp_path: Path):
    link = SuperLink(tmp_path / "link")
    link.start()
    left = open_run(link)
    try:
        link.wait_ready(WAIT_S)
        first = left.__enter__()  # a hub that dies never leaves it

        def status(run_id: int):
            with link.control() as control:
                request = flower.ListRunsRequest(run_id=run_id)
                (run,) = control.ListRuns(request).run_dict.values()
            return run.status.status, run.status.sub_status

        assert status(first.run_id) == (flower.Status.RUNNING, "")
        with open_run(link) as second:
            assert status(first.run_id) == (flower.Status.FINISHED, flower.SubStatus.STOPPED)
            assert status(second.run_id) == (flower.Status.RUNNING, "")
        assert status(second.run_id) == (flower.Status.FINISHED, flower.SubStatus.COMPLETED)
    finally:
        left.__exit__(None, None, None)
        link.stop()
