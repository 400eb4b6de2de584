"""Four hospitals that train in mode B, in one process: real sites, hub tables and arithmetic.

Only Flower's transport is left out: `LocalRun` hands a message to the hospital's own code and its
answer back, and can lose either.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from coop_world import Run, World, digest, now

from coop import studies
from coop.canonical import jcs, parse_object
from coop.documents.envelope import open_document
from coop.documents.training import Order
from coop.errors import CoopError
from federated.approval import approve
from federated.client_app import to_bytes
from federated.collect import Asking
from federated.flower_run import Reply
from federated.masked_round import MaskedInput, answer_stage
from federated.masked_training import MaskedRound
from federated.masked_wire import STAGE, from_content
from federated.models import from_safetensors
from federated.round import RoundInput, answer_round
from federated.rounds import Rounds

FOURTH = "longbeach"


def add_fourth(world: World, folder: Path) -> None:
    world.add_site(FOURTH, folder)
    world.pin_everyone()


@dataclass
class LocalRun:
    """A Flower run whose nodes are in this process."""

    world: World
    columns: int
    down: set[str] = field(default_factory=set)
    """Sites that are away."""
    lost: Callable[[str, str], bool] = lambda _stage, _site: False
    """Whether an answer is lost on its way, by stage (`round` in mode A) and site."""
    altered: Callable[[str, str, dict], dict] = lambda _stage, _site, content: content
    sent: list[tuple[str, str]] = field(default_factory=list)
    """(stage, site) of every message that arrived at a hospital."""
    _replies: list[Reply] = field(default_factory=list)

    @property
    def nodes(self) -> dict[str, int]:
        return {site: number for number, site in enumerate(sorted(self.world.sites), start=1)}

    def presence(self) -> dict[int, str]:
        return {number: "now" for site, number in self.nodes.items() if site not in self.down}

    def send(
        self, _kind: str, content: Mapping[str, bytes], nodes: Iterable[int]
    ) -> dict[str, int]:
        names = {number: site for site, number in self.nodes.items()}
        sent = {}
        for node in nodes:
            message = f"m{len(self.sent)}-{node}"
            sent[message] = node
            site = names[node]
            stage = content.get(STAGE, b"round").decode()
            self.sent.append((stage, site))
            reply = self._answer(message, site, dict(content), stage)
            gone = self.lost(stage, site)
            self._replies.append(
                Reply(message_id=message, content=None, code="x", node_gone=True) if gone else reply
            )
        return sent

    def collect(self, message_ids: Iterable[str]) -> list[Reply]:
        wanted = set(message_ids)
        here = [reply for reply in self._replies if reply.message_id in wanted]
        self._replies = [reply for reply in self._replies if reply.message_id not in wanted]
        return here

    def _answer(self, message: str, name: str, content: dict, stage: str) -> Reply:
        asked = RoundInput(
            order=parse_object(content["order"]),
            request=parse_object(content["request"]),
            weights=from_safetensors(content["weights"], self.columns),
        )
        site, mirror = self.world.sites[name], self.world.mirrors[name]
        try:
            if STAGE in content:
                said = answer_stage(
                    site, mirror, MaskedInput(round=asked, ask=from_content(content))
                )
            else:
                answered = answer_round(site, mirror, asked)
                said = {"receipt": jcs(answered.receipt), "update": to_bytes(answered.update)}
        except CoopError as error:
            return Reply(message_id=message, content=None, code=error.code, node_gone=False)
        said = self.altered(stage, name, dict(said))
        return Reply(message_id=message, content=said, code=None, node_gone=False)


@dataclass
class Masked:
    """A study in mode B that all four hospitals approved, ordered by the hub."""

    world: World
    study_id: str
    rounds: Rounds
    order_sha256: str

    @classmethod
    def ready(cls, world: World, study_id: str, **changes) -> "Masked":
        said = {"recipe__mode": "B", "recipe__honest": 3, "hospitals_quorum": 3, **changes}
        study, _ = world.study(study_id, **said)
        for name, site in sorted(world.sites.items()):
            document = approve(site, world.clients[name], study.study_id, now=now())
            assert document
        rounds = Rounds(world.database, world.journal, world.folder.hub_key, now=now)
        order = rounds.create(study.study_id)
        return cls(world=world, study_id=study_id, rounds=rounds, order_sha256=digest(order))

    @property
    def order(self) -> dict:
        with self.world.database.reading() as connection:
            return self.world.journal.document(connection, self.order_sha256)

    def run(self, **faults) -> LocalRun:
        asked = self.rounds.next_round(self.order_sha256)
        assert asked is not None
        return LocalRun(self.world, asked.length, **faults)

    def attempt(self, run: LocalRun, seconds: float = 1.0) -> tuple[object, dict[str, str]]:
        """One attempt at the next round: its sum, or None, and who is not in it."""
        asked = self.rounds.next_round(self.order_sha256)
        assert asked is not None
        request = self.rounds.request(asked)
        nodes = run.nodes

        def online() -> set[str]:
            return set(nodes) - run.down

        attempt = MaskedRound(
            self.rounds, partial(Asking, run, seconds=seconds), asked, request, nodes, online
        )
        return attempt.attempt(), attempt.refused

    def conclude(self, run: LocalRun) -> object:
        """The next round whole, as the trainer does it."""
        from federated import masked_tables, models
        from federated.collect import refusals

        asked = self.rounds.next_round(self.order_sha256)
        assert asked is not None
        summed, refused = self.attempt(run)
        assert summed is not None, refused
        self.rounds.conclude(
            asked,
            self.rounds.request(asked),
            summed.receipts,
            refusals(refused),
            models.to_safetensors(summed.weights),
            models.weights_digest(summed.weights),
        )
        with self.world.database.unit_of_work() as connection:
            masked_tables.drop(connection, asked.order.digest, asked.round)
        return summed


__all__ = ["FOURTH", "LocalRun", "Masked", "Order", "Run", "add_fourth", "open_document", "studies"]
