"""Collecting one round: quorum, deadline, restarts and withdrawals, over a scripted link.

The link stands in for Flower so that nodes can vanish at an exact instant; `test_flower_run` has
the real one.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from training_world import NOW, TrainingWorld, sqlite_world

from coop.canonical import document_digest, jcs, sha256
from coop.documents.envelope import issue
from coop.documents.training import RoundReceipt
from federated import collect
from federated.client_app import to_bytes
from federated.collect import Collector
from federated.flower_run import Reply
from federated.server import aggregate

ZERO = "0" * 64
NODES = {"east": 1, "north": 2, "west": 3}


@dataclass
class ScriptedLink:
    """Plays a list of behaviours per node; each sent message takes the node's next one."""

    world: TrainingWorld
    script: dict[int, list[str]]
    here: dict[int, str] = field(default_factory=lambda: dict.fromkeys(NODES.values(), "t0"))
    sent: list[int] = field(default_factory=list)
    waiting: dict[str, tuple[int, str]] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)

    def presence(self) -> dict[int, str]:
        return dict(self.here)

    def send(self, _kind, content, nodes):
        self.content = dict(content)
        ids = {}
        for node in nodes:
            message = f"m{len(self.sent)}"
            self.sent.append(node)
            self.waiting[message] = (node, self.script[node].pop(0))
            ids[message] = node
        return ids

    def collect(self, message_ids):
        return [reply for m in list(message_ids) if (reply := self.answer(m)) is not None]

    def answer(self, message: str) -> Reply | None:
        node, act = self.waiting[message]
        if act == "silent":
            return None
        if act == "dies":
            self.here.pop(node, None)
            return None
        if act == "restarts":
            self.here[node] = "t1"
            return None
        if act == "honest":
            site = next(name for name, number in NODES.items() if number == node)
            return Reply(message_id=message, content=self.honest(site), code=None, node_gone=False)
        gone = act == "flower.5"
        return Reply(message_id=message, content=None, code=act, node_gone=gone)

    def honest(self, site: str) -> dict[str, bytes]:
        import orjson

        order, request = (orjson.loads(self.content[name]) for name in ("order", "request"))
        update = to_bytes({"weight": np.full(2, NODES[site], dtype=np.float32)})
        subject = RoundReceipt(
            site=site,
            order_sha256=document_digest(order),
            phase="train",
            round=1,
            request_sha256=document_digest(request),
            lease_sha256=ZERO,
            release_lease_sha256=ZERO,
            cohort_commitment=ZERO,
            count_commitment=ZERO,
            debit_sequence=1,
            sigma_micro=order["credentialSubject"]["training_sigma_micro"],
            clip_micro=order["credentialSubject"]["clip_micro"],
            update_sha256=sha256(update).hex(),
        )
        return {"receipt": jcs(issue(subject, self.world.keys[site], NOW)), "update": update}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "POLL_S", 0.01)
    monkeypatch.setattr(collect, "_PRESENCE_S", 0.05)
    world = sqlite_world(tmp_path)
    for site in NODES:
        world.join(site)
    world.ready(*NODES, hospitals_quorum=2)
    digest = document_digest(world.rounds.create("heart"))
    asked = world.rounds.next_round(digest)
    yield world, asked, world.rounds.request(asked)
    world.database.close()


def play(asked, seconds: float = 5.0, **script):
    world, round_, request = asked
    link = ScriptedLink(world, {NODES[site]: list(acts) for site, acts in script.items()})
    collector = Collector(link, round_, request, NODES, 2, seconds=seconds)
    start = time.monotonic()
    admitted = collector.collect()
    return admitted, collector.refused, link, time.monotonic() - start


def test_all_answers_end_the_round_at_once(asked):
    admitted, refused, _, seconds = play(asked, east=["honest"], north=["honest"], west=["honest"])
    assert set(admitted) == set(NODES)
    assert refused == {}
    assert seconds < 1


def test_a_dead_node_is_not_waited_for_when_the_quorum_answered(asked):
    admitted, refused, _, seconds = play(asked, east=["honest"], north=["honest"], west=["dies"])
    assert set(admitted) == {"east", "north"}
    assert refused == {"west": "round.site-offline"}
    assert seconds < 2


def test_a_silent_node_ends_with_the_deadline(asked):
    admitted, refused, _, seconds = play(
        asked, 0.5, east=["honest"], north=["honest"], west=["silent"]
    )
    assert set(admitted) == {"east", "north"}
    assert refused == {"west": "round.no-answer"}
    assert 0.4 < seconds < 2


def test_a_restarted_node_is_sent_the_round_again(asked):
    admitted, refused, link, _ = play(
        asked, east=["honest"], north=["honest"], west=["restarts", "honest"]
    )
    assert set(admitted) == set(NODES)
    assert refused == {}
    assert link.sent.count(3) == 2


def test_a_withdrawal_is_asked_again_once_and_only_once(asked):
    admitted, _, link, _ = play(
        asked, east=["honest"], north=["honest"], west=["round.withdrawn", "honest"]
    )
    assert set(admitted) == set(NODES)
    admitted, refused, link, _ = play(
        asked, east=["honest"], north=["honest"], west=["round.withdrawn", "round.withdrawn"]
    )
    assert refused == {"west": "round.withdrawn"}
    assert link.sent.count(3) == 2


def test_a_refusal_ends_a_nodes_part(asked):
    admitted, refused, _, seconds = play(
        asked, east=["honest"], north=["budget.exhausted"], west=["round.not-approved"]
    )
    assert set(admitted) == {"east"}
    assert refused == {"north": "budget.exhausted", "west": "round.not-approved"}
    assert seconds < 1


def test_a_node_that_flower_gave_up_is_asked_again_when_it_is_back(asked):
    admitted, refused, link, _ = play(
        asked, east=["honest"], north=["silent"], west=["flower.5", "honest"], seconds=1.0
    )
    assert set(admitted) == {"east", "west"}
    assert refused == {"north": "round.no-answer"}
    assert link.sent.count(3) == 2


def test_the_order_of_arrival_changes_no_bit(asked):
    first, *_ = play(asked, east=["honest"], north=["honest"], west=["honest"])
    late, *_ = play(
        asked, east=["round.withdrawn", "honest"], north=["honest"], west=["restarts", "honest"]
    )
    assert list(first) != list(late)
    assert aggregate(asked[1], first) == aggregate(asked[1], late)
