"""Asking every hospital for one round and collecting what passes the gate, with a deadline.

A node that went away is not waited for, once enough others answered; a node that restarted is sent
the round again; a node that found a withdrawal is asked once more, over the smaller cohort.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from coop.canonical import jcs
from coop.documents.envelope import Opened
from coop.documents.training import Refused, RoundRequest
from coop.logs import logger
from federated import models
from federated.flower_run import FlowerRun, Reply
from federated.gate import Admitted, Expected, Gate, GateError
from federated.run_tables import NextRound

POLL_S: Final = 0.1
_PRESENCE_S: Final = 2.0  # how often the nodes' presence is looked up while answers are missing
ROUND_S: Final = 60.0
_CODE_LENGTH_MAX: Final = 80

WITHDRAWN: Final = "round.withdrawn"
"""The node's code for: a patient of the cohort withdrew while it computed; ask again."""
NO_ANSWER: Final = "round.no-answer"
OFFLINE: Final = "round.site-offline"


def expected_of(asked: NextRound, request: Opened[RoundRequest]) -> Expected:
    """What the gate demands of this round's answers."""
    order = asked.order.subject
    return Expected(
        order_sha256=asked.order.digest,
        phase=asked.phase,
        round=asked.round,
        request_sha256=request.digest,
        dids={entry.site: entry.did for entry in order.roster},
        sigma_micro=asked.sigma_micro,
        clip_micro=order.clip_micro,
        tensors=asked.tensors(),
        population=asked.study.recipe.population,
        masked=asked.masked,
    )


@dataclass(slots=True)
class Asking:
    """One message to every hospital of a round, and its answers. One thread uses it."""

    run: FlowerRun
    asked: NextRound
    request: Opened[RoundRequest]
    nodes: Mapping[str, int]
    """Node ids by site, for the sites that are asked."""
    quorum: int
    """How many answers are needed: only below it is a site waited for that is away."""
    accept: Callable[[str, Mapping[str, bytes]], str | None]
    """Takes a site's answer; why not, by code."""
    seconds: float = ROUND_S
    stop: threading.Event = field(default_factory=threading.Event)
    parts: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """What a site is sent beside order, request and weights."""
    again_max: int = 1
    """How often a site that found a withdrawal is asked again."""
    refused: dict[str, str] = field(default_factory=dict)
    """Code by site that did not contribute."""
    taken: set[str] = field(default_factory=set)
    _open: dict[str, str] = field(default_factory=dict)  # message id → site
    _activations: dict[int, str] = field(default_factory=dict)
    _again: dict[str, int] = field(default_factory=dict)

    def ask(self) -> None:
        """Send, and take what comes. Ends at the deadline at the latest.

        Raises:
            SuperLinkDownError: The link failed; the round may be asked again, at no further charge.
        """
        presence = self.run.presence()
        self._activations = dict(presence)
        here = [site for site, node in sorted(self.nodes.items()) if node in presence]
        self.refused = {site: OFFLINE for site in self.nodes if site not in here}
        self._send(here)
        deadline = time.monotonic() + self.seconds
        looked = time.monotonic()
        while not self.stop.is_set() and time.monotonic() < deadline:
            for reply in self.run.collect(self._open) if self._open else ():
                self._take(reply)
            if not self._open and not self._waits_for_offline():
                break
            if time.monotonic() - looked > _PRESENCE_S:
                looked = time.monotonic()
                self._look(self.run.presence())
            self.stop.wait(POLL_S)
        for site in self._open.values():
            self.refused[site] = NO_ANSWER

    def _waits_for_offline(self) -> bool:
        """Without a quorum it is worth waiting for a site that may come back."""
        return len(self.taken) < self.quorum and OFFLINE in self.refused.values()

    def _send(self, sites: list[str]) -> None:
        content = {
            "order": jcs(self.asked.order.document),
            "request": jcs(self.request.document),
            "weights": models.to_safetensors(self.asked.weights),
        }
        alike: dict[tuple[tuple[str, bytes], ...], list[str]] = {}
        for site in sites:
            own = tuple(sorted(self.parts.get(site, {}).items()))
            alike.setdefault(own, []).append(site)
        for own, together in alike.items():
            site_of = {self.nodes[site]: site for site in together}
            sent = self.run.send(self.asked.phase, content | dict(own), site_of)
            self._open |= {message_id: site_of[node] for message_id, node in sent.items()}

    def _take(self, reply: Reply) -> None:
        site = self._open.pop(reply.message_id, None)
        if site is None:
            return
        code = reply.code if reply.content is None else self.accept(site, reply.content)
        if code is None:
            self.taken.add(site)
            self.refused.pop(site, None)
            return
        if reply.node_gone:
            code = OFFLINE
        elif code == WITHDRAWN and self._again.get(site, 0) < self.again_max:
            self._again[site] = self._again.get(site, 0) + 1
            self._send([site])
            return
        self.refused[site] = code[:_CODE_LENGTH_MAX]
        logger().warning("no contribution", site=site, code=code, round=self.asked.round)

    def _look(self, presence: Mapping[int, str]) -> None:
        """Send again to nodes that restarted or came back; stop waiting for those that are gone."""
        waiting = {site: message for message, site in self._open.items()}
        back: list[str] = []
        for site, node in self.nodes.items():
            here = presence.get(node)
            offline = self.refused.get(site) == OFFLINE
            restarted = site in waiting and here != self._activations.get(node)
            if here is None and site in waiting:
                self._open.pop(waiting[site])
                self.refused[site] = OFFLINE
            elif here is not None and (offline or restarted):
                # What the old process held is lost; its database answers a repeat for free.
                self._open.pop(waiting.get(site, ""), None)
                self.refused.pop(site, None)
                self._activations[node] = here
                back.append(site)
        self._send(back)


class Collector:
    """One attempt at one round whose answers are updates: what passes the gate."""

    def __init__(
        self,
        run: FlowerRun,
        asked: NextRound,
        request: Opened[RoundRequest],
        nodes: Mapping[str, int],
        quorum: int,
        **named: Any,  # noqa: ANN401  (the other fields of `Asking`)
    ) -> None:
        self._gate = Gate(expected_of(asked, request))
        self._asking = Asking(run, asked, request, nodes, quorum, accept=self._admit, **named)

    @property
    def refused(self) -> dict[str, str]:
        """Code by site that did not contribute."""
        return self._asking.refused

    def collect(self) -> dict[str, Admitted]:
        """What passed the gate, by site; see `Asking.ask`."""
        self._asking.ask()
        return dict(self._gate.admitted)

    def _admit(self, site: str, content: Mapping[str, bytes]) -> str | None:
        try:
            self._gate.admit(site, content)
        except GateError as error:
            return error.code
        return None


def refusals(refused: Mapping[str, str]) -> list[Refused]:
    """For the round's record, in site order."""
    return [Refused(site=site, code=code) for site, code in sorted(refused.items())]
