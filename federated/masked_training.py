"""Mode B at the hub: one attempt at a masked round, from keys to the sum. It sees nothing else.

A set-up serves many rounds and outlives a restart of the hub. A round's vectors are kept before
anybody is asked to reveal, so a hub that dies in between asks for the same sum again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from coop.canonical import Json, parse_object
from coop.documents.envelope import Opened, open_document
from coop.documents.masked import MaskKeys
from coop.documents.training import RoundReceipt, RoundRequest
from coop.errors import CoopError, InvalidInputError, Kind
from coop.logs import logger
from federated import masked_tables as tables
from federated import models
from federated.collect import OFFLINE, WITHDRAWN, Asking, expected_of
from federated.gate import Admitted, Gate, GateError
from federated.integer_noise import norm_max, to_numbers
from federated.masked_sum import MaskingError, TooFewPartiesError, check_setup, unmasked
from federated.masked_wire import (
    KEYS,
    REVEALED,
    SEALED,
    Ask,
    AskKeys,
    AskMasked,
    AskReveal,
    AskShares,
    Revealed,
    Sealed,
    read,
    to_content,
)
from federated.rounds import Rounds
from federated.run_tables import VECTOR, NextRound
from federated.step import apply_round

_ROUNDS_OF_A_SETUP: Final = 100
REFUSED: Final = "masked.bad-answer"

Asks = Callable[..., Asking]
"""`Asking` with the run, its deadline and its stop in place."""


class BadSumError(CoopError):
    """The sum is none that honest hospitals can give; one of them sent something else."""

    code = "masked.bad-sum"
    kind = Kind.UNPROCESSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """A round's result: the weights after it, and the receipts of who is in the sum."""

    weights: models.Weights
    receipts: list[Opened[RoundReceipt]]


@dataclass(slots=True)
class MaskedRound:
    """One attempt at one masked round.

    Args:
        rounds: The hub's runs.
        asks: Makes an `Asking` for these sites.
        asked: The round.
        request: Its request.
        nodes: Node ids by site, for the roster's sites.
        online: Who is connected.
    """

    rounds: Rounds
    asks: Asks
    asked: NextRound
    request: Opened[RoundRequest]
    nodes: Mapping[str, int]
    online: Callable[[], set[str]]
    refused: dict[str, str] = field(default_factory=dict)
    """Code by site that is not in the sum."""

    @property
    def _needed(self) -> int:
        return max(self.asked.order.subject.quorum, self.asked.order.subject.honest)

    def attempt(self) -> Summed | None:
        """The sum of this round, or None: `refused` says why, and another attempt may help.

        Raises:
            SuperLinkDownError: The link failed.
            BadSumError: What came out cannot be right.
        """
        order = self.asked.order.digest
        with self.rounds.database.reading() as connection:
            known = tables.waiting(connection, order, self.asked.round)
        if known is None:
            setup = self._setup()
            known = None if setup is None else self._collect(setup)
        return None if known is None else self._lift(known)

    def _setup(self) -> tables.KnownSetup | None:
        """(1) and (2): the set-up in use, or a new one with everybody who is there."""
        order, number = self.asked.order, self.asked.round
        with self.rounds.database.unit_of_work() as connection:
            row = tables.newest(connection, order.digest)
            known = tables.complete(row)
            if row is not None and known is not None and not row.over:
                # Whoever was away and is back gets keys of its own, and takes part again.
                back = set(known.absent) & self.online()
                if known.first <= number <= known.last and not back:
                    return known
            last = min(order.subject.rounds, number + _ROUNDS_OF_A_SETUP - 1)
            # Lifted in part or not at all: only a round that all draw anew may follow.
            fresh = row is not None and row.anew
            setup = tables.begin(connection, order.digest, first=number, last=last, fresh=fresh)
        ask = AskKeys(setup=setup, first=number, last=last, fresh=fresh)
        keys = self._keys(ask)
        sealed = self._sealed(setup, keys) if len(keys) >= self._needed else {}
        if len(sealed) < self._needed:
            logger().warning("masked set-up failed", setup=setup, size=len(sealed))
            return None
        with self.rounds.database.unit_of_work() as connection:
            tables.finish(
                connection,
                order.digest,
                setup,
                keys=[keys[site] for site in sorted(keys)],
                sealed=sealed,
                absent=sorted(site for site, code in self.refused.items() if code == OFFLINE),
            )
            return tables.complete(tables.newest(connection, order.digest))

    def _keys(self, ask: AskKeys) -> dict[str, dict[str, Json]]:
        """(1) The signed keys of every site that answers."""
        dids = {entry.site: entry.did for entry in self.asked.order.subject.roster}
        found: dict[str, dict[str, Json]] = {}
        wanted = list(range(ask.first, ask.last + 1))

        def take(site: str, content: Mapping[str, bytes]) -> str | None:
            document = parse_object(content.get(KEYS, b""))
            keys = open_document(MaskKeys, document, issuers={dids[site]}).subject
            said = (keys.order_sha256, keys.setup, keys.site, keys.fresh)
            rounds = [entry.round for entry in keys.rounds]
            if said != (self.asked.order.digest, ask.setup, site, ask.fresh) or rounds != wanted:
                return REFUSED
            found[site] = document
            return None

        self._ask(ask, self.nodes, take)
        return found

    def _sealed(self, setup: int, keys: Mapping[str, dict[str, Json]]) -> dict[str, dict[str, str]]:
        """(2) The sealed shares of every site that answers."""
        found: dict[str, dict[str, str]] = {}

        def take(site: str, content: Mapping[str, bytes]) -> str | None:
            answer = read(Sealed, content.get(SEALED, b""))
            if not isinstance(answer, Sealed) or set(answer.sealed) != set(keys) - {site}:
                return REFUSED
            found[site] = answer.sealed
            return None

        documents: list[dict[str, object]] = [dict(keys[site]) for site in sorted(keys)]
        probe = tables.KnownSetup(
            number=setup,
            first=1,
            last=1,
            keys=[keys[site] for site in sorted(keys)],
            sealed={},
            absent=[],
        )
        try:
            check_setup(probe.setup(self.asked.order))
        except CoopError as error:
            logger().warning("masked keys do not fit", code=error.code)
            return {}
        self._ask(AskShares(setup=setup, keys=documents), keys, take)
        return found

    def _collect(self, setup: tables.KnownSetup) -> tables.Waiting | None:
        """(3) The masked vectors of every party that answers, kept."""
        gate = Gate(expected_of(self.asked, self.request))

        def take(site: str, content: Mapping[str, bytes]) -> str | None:
            try:
                gate.admit(site, content)
            except GateError as error:
                return error.code
            return None

        asks = {
            site: AskMasked(setup=setup.number, parties=setup.parties, sealed=setup.boxes_for(site))
            for site in setup.parties
        }
        self._ask(asks, asks, take)
        survivors = sorted(gate.admitted)
        order, number = self.asked.order.digest, self.asked.round
        with self.rounds.database.unit_of_work() as connection:
            if len(survivors) < self._needed:
                tables.end(connection, order)
                return None
            tables.keep(
                connection,
                order,
                number,
                setup.number,
                vectors={site: _vector(gate.admitted[site]) for site in survivors},
                receipts=[gate.admitted[site].receipt.document for site in survivors],
            )
            return tables.waiting(connection, order, number)

    def _lift(self, known: tables.Waiting) -> Summed | None:
        """(4) The sum, or None: too few revealed yet, or somebody withdrew."""
        survivors = sorted(known.vectors)
        gone = sorted(set(known.setup.parties) - set(survivors))
        seeds: dict[str, dict[str, bytes]] = {site: {} for site in survivors}
        masks: dict[str, dict[str, bytes]] = {site: {} for site in gone}

        def take(site: str, content: Mapping[str, bytes]) -> str | None:
            answer = read(Revealed, content.get(REVEALED, b""))
            if not isinstance(answer, Revealed):
                return REFUSED
            if set(answer.seeds) != set(survivors) or set(answer.masks) != set(gone):
                return REFUSED
            for kept, given in ((seeds, answer.seeds), (masks, answer.masks)):
                for of, share in given.items():
                    kept[of][site] = bytes.fromhex(share)
            return None

        ask = AskReveal(setup=known.setup.number, survivors=survivors)
        codes = self._ask(ask, survivors, take, again_max=0)
        if WITHDRAWN in codes.values():
            # Enough others may have revealed: this sum must not be lifted, and none like it.
            self._anew()
            return None
        try:
            total = unmasked(
                known.setup.setup(self.asked.order),
                round_=self.asked.round,
                parties=known.setup.parties,
                vectors=known.vectors,
                seed_shares=seeds,
                mask_shares=masks,
            )
        except TooFewPartiesError:
            return None  # whoever is away may come back: the same sum is asked for again
        except MaskingError as error:
            raise BadSumError("masks: shares do not give what was signed") from error
        self.refused |= {site: self.refused.get(site, REFUSED) for site in gone}
        for site in survivors:
            self.refused.pop(site, None)
        return Summed(weights=self._step(total, len(survivors)), receipts=known.receipts)

    def _step(self, total: np.ndarray, parties: int) -> models.Weights:
        order, numbers = self.asked.order.subject, to_numbers(total)
        longest = norm_max(
            clip_micro=order.clip_micro,
            length=self.asked.length,
            sigma_micro=order.training_sigma_micro,
            population=self.asked.study.recipe.population,
            parties=parties,
        )
        if not math.sqrt(float(np.square(numbers).sum())) <= longest:
            raise BadSumError("sum: larger than clipped gradients and noise can be")
        update = models.unflatten(numbers, self.asked.weights)
        return apply_round(self.asked.weights, {"sum": update}, self.asked.study.recipe)

    def _anew(self) -> None:
        order = self.asked.order.digest
        with self.rounds.database.unit_of_work() as connection:
            tables.drop(connection, order, self.asked.round)
            tables.end(connection, order, anew=True)

    def _ask(
        self,
        ask: Ask | Mapping[str, Ask],
        sites: Mapping[str, object] | list[str],
        take: Callable[[str, Mapping[str, bytes]], str | None],
        again_max: int = 1,
    ) -> dict[str, str]:
        """One stage to these sites; who refused, by code."""
        each = {site: ask[site] if isinstance(ask, Mapping) else ask for site in sites}

        def accept(site: str, content: Mapping[str, bytes]) -> str | None:
            try:
                return take(site, content)
            except (InvalidInputError, ValueError):
                return REFUSED

        asking = self.asks(
            self.asked,
            self.request,
            {site: self.nodes[site] for site in sites if site in self.nodes},
            self._needed,
            accept=accept,
            parts={site: to_content(one) for site, one in each.items()},
            again_max=again_max,
        )
        asking.ask()
        self.refused |= asking.refused
        return dict(asking.refused)


def _vector(answer: Admitted) -> np.ndarray:
    return answer.update[VECTOR].astype(np.uint64)
