"""Mode B at the hospital: the seven steps of `federated.round`, and the answer under masks.

The stages of `federated.masked_sum` as messages of one Flower run. Keys and shares are agreed once
for many rounds; a round is two messages, the masked vector and what lifts the masks off the sum.

The rules that the proof needs, each kept by this hospital's own database:
- a set-up's number is used once, and its secrets for one set of keys (`SetupChangedError`);
- of one round and set-up one vector leaves, masked with one set of parties;
- of one round shares are revealed for one list of survivors and never for another
  (`AlreadyRevealedError`): no second sum of the same vectors is ever lifted. Only a set-up in which
  every hospital signed that it draws the round anew, and pays for it, may follow;
- a share is revealed only while everybody who permitted the answer still does.
"""

from dataclasses import dataclass

import numpy as np
import orjson
import safetensors.numpy

from coop.canonical import Json, b64u, jcs
from coop.documents.envelope import issue, open_document
from coop.documents.masked import MaskKeys
from coop.documents.training import Order
from coop.keys import random_bytes
from federated import masked_state as state
from federated.answers import discard
from federated.mandate import Mandate
from federated.masked_sum import (
    MaskingError,
    Setup,
    check_setup,
    masked,
    new_secrets,
    opened_shares,
    public_keys,
    sealed_shares,
)
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
    boxes,
    said,
)
from federated.mirror import Mirror
from federated.pace import even_pace
from federated.round import (
    INTEGERS,
    Clock,
    MaskedOnlyError,
    RoundInput,
    mandate_of,
    prepare,
    release,
    wall_clock,
)
from federated.run_tables import VECTOR
from federated.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedInput:
    """One stage of one round, as received."""

    round: RoundInput
    ask: Ask


@even_pace()
def answer_stage(
    site: Site, mirror: Mirror, asked: MaskedInput, *, now: Clock = wall_clock
) -> dict[str, bytes]:
    """Answer one stage, or refuse it with a code that says nothing about any patient.

    A repeat of the same stage gives the same bytes. What `federated.round` guarantees holds.

    Raises:
        MaskedOnlyError: The study trains in mode A.
        MaskingError, SetupChangedError, AlreadyRevealedError: A rule above would be broken.
        WithdrawnError: A consent changed; the round must be asked in a new set-up.
        NotApprovedError, BudgetExhaustedError, LeaseExpiredError, …: As in `answer_round`.
    """
    ask = asked.ask
    if isinstance(ask, AskMasked):
        return _masked(site, mirror, asked.round, ask, now)
    if isinstance(ask, AskReveal):
        return _reveal(site, mirror, asked.round, ask, now)
    mandate = mandate_of(site, asked.round, now())
    if not mandate.masked:
        raise MaskedOnlyError("round: this study's answers are not masked")
    if isinstance(ask, AskKeys):
        return _keys(site, mandate, ask, now())
    return _shares(site, mandate, ask)


def _keys(site: Site, mandate: Mandate, ask: AskKeys, at: int) -> dict[str, bytes]:
    """(1) Fresh keys for a range of the order's rounds, signed."""
    order, first, last = mandate.order, ask.first, ask.last
    if not mandate.request.subject.round == first <= last <= order.subject.rounds:
        raise MaskingError("keys: not for the rounds that are left of the order")
    rounds = range(first, last + 1)
    with site.database.unit_of_work() as connection:
        held = state.setup_of(connection, order.digest, ask.setup)
        if held is None:
            secrets = new_secrets(rounds, random_bytes)
            subject = public_keys(
                secrets,
                order_sha256=order.digest,
                setup=ask.setup,
                site=site.name,
                fresh=ask.fresh,
            )
            document = issue(subject, site.key, at)
            state.begin(
                connection, order.digest, ask.setup, secrets=secrets, own_keys=document, at=at
            )
        else:
            document = held.own_keys
            known = open_document(MaskKeys, document, issuers={site.key.did}).subject
            if (sorted(held.secrets.rounds), known.fresh) != (list(rounds), ask.fresh):
                raise state.SetupChangedError("setup: its keys are for other rounds")
    return {KEYS: jcs(document)}


def _shares(site: Site, mandate: Mandate, ask: AskShares) -> dict[str, bytes]:
    """(2) This hospital's shares, sealed to everybody whose keys it was shown."""
    order = mandate.order
    keys: list[dict[str, Json]] = [orjson.loads(orjson.dumps(entry)) for entry in ask.keys]
    setup = _setup(order.digest, order.subject, ask.setup, keys)
    check_setup(setup)
    with site.database.unit_of_work() as connection:
        held = _held(state.setup_of(connection, order.digest, ask.setup))
        if held.own_keys not in keys:
            raise MaskingError("keys: this hospital's own are missing, or others in its name")
        sealed = held.sealed
        if sealed is None:
            made, own = sealed_shares(setup, site.name, held.secrets, random_bytes)
            sealed = {to: b64u(box) for to, box in made.items()}
            state.keep_shares(
                connection, order.digest, ask.setup, keys=keys, own_shares=own, sealed=sealed
            )
        elif _by_site(held.keys or []) != _by_site(keys):
            raise state.SetupChangedError("setup: it was begun with other keys")
    return {SEALED: said(Sealed(sealed=sealed))}


def _masked(
    site: Site, mirror: Mirror, asked: RoundInput, ask: AskMasked, now: Clock
) -> dict[str, bytes]:
    """(3) Steps (1) to (7) of the round, and what leaves in (7) is under masks."""
    # Whatever makes the set-up useless is found before anything is debited.
    mandate = mandate_of(site, asked, now())
    order, number = mandate.order, mandate.request.subject.round
    with site.database.reading() as connection:
        held = _held(state.setup_of(connection, order.digest, ask.setup))
        lifted = state.revealed_of(connection, order.digest, number)
    setup = _setup(order.digest, order.subject, ask.setup, held.keys or [])
    anew = setup.fresh and number == min(held.secrets.rounds, default=0)
    if set(lifted) - {ask.setup} and not anew:
        raise state.AlreadyRevealedError("round: its masks were lifted in another set-up")
    others = opened_shares(setup, site.name, held.secrets, boxes(ask.sealed))
    if set(others) | {site.name} != set(ask.parties) or number not in held.secrets.rounds:
        raise MaskingError("parties: not those whose shares came along")
    if anew:
        with site.database.unit_of_work() as connection:
            for key in state.left_before(connection, order.digest, number, ask.setup):
                discard(connection, key)
    ready = prepare(site, mirror, asked, masked=True, now=now)
    integers = safetensors.numpy.load(ready.body)[INTEGERS].astype(np.int64)
    vector = masked(
        setup,
        site.name,
        held.secrets,
        round_=number,
        parties=ask.parties,
        x=integers.view(np.uint64),
    )
    mine = {site.name: held.own_shares or {}}
    shares = {sender: got[number] for sender, got in {**others, **mine}.items()}
    with site.database.unit_of_work() as connection:
        sent = state.sent_of(connection, order.digest, number, ask.setup)
        parties = orjson.dumps(sorted(ask.parties)).decode()
        if sent is None:
            connection.execute(
                state.mask_sent.insert().values(
                    order_sha256=order.digest,
                    round=number,
                    setup=ask.setup,
                    parties=parties,
                    answer_key=ready.answer.key,
                    held=orjson.dumps(
                        {who: [part.hex() for part in pair] for who, pair in shares.items()}
                    ).decode(),
                )
            )
        elif (sent.parties, sent.answer_key) != (parties, ready.answer.key):
            # Two vectors under the same masks: their difference would show what was masked.
            raise state.SetupChangedError("setup: the round was masked in it otherwise")
    body = bytes(safetensors.numpy.save({VECTOR: vector}))
    answered = release(site, ready, body)
    return {"receipt": jcs(answered.receipt), "update": body}


def _reveal(
    site: Site, mirror: Mirror, asked: RoundInput, ask: AskReveal, now: Clock
) -> dict[str, bytes]:
    """(4) The shares that lift the masks off one sum, while (6) still holds."""
    ready = prepare(site, mirror, asked, masked=True, now=now)
    order, number = ready.mandate.order, ready.mandate.request.subject.round
    survivors = sorted(ask.survivors)
    listed = orjson.dumps(survivors).decode()
    with site.database.unit_of_work() as connection:
        lifted = state.revealed_of(connection, order.digest, number)
        if ask.setup in lifted:
            if lifted[ask.setup].survivors != listed:
                raise state.AlreadyRevealedError("round: its masks were lifted for another sum")
            return {REVEALED: lifted[ask.setup].answer.encode()}
        if ready.answer.key in {row.answer_key for row in lifted.values()}:
            raise state.AlreadyRevealedError("round: its masks were lifted in another set-up")
        sent = state.sent_of(connection, order.digest, number, ask.setup)
        if sent is None or sent.answer_key != ready.answer.key:
            raise MaskingError("round: nothing left of it in this set-up that still counts")
        parties = set(orjson.loads(sent.parties))
        few = len(set(survivors)) < order.subject.honest or len(set(survivors)) != len(survivors)
        if few or site.name not in survivors or not set(survivors) <= parties:
            raise MaskingError("survivors: too few, or not of this round's parties")
        held = orjson.loads(sent.held)
        if set(held) != parties:
            raise MaskingError("round: its secrets were forgotten")
        answer = said(
            Revealed(
                seeds={who: held[who][1] for who in survivors},
                masks={who: held[who][0] for who in sorted(parties - set(survivors))},
            )
        )
        ready.fresh.check()
        connection.execute(
            state.mask_revealed.insert().values(
                order_sha256=order.digest,
                round=number,
                setup=ask.setup,
                survivors=listed,
                answer=answer.decode(),
            )
        )
        if number == order.subject.rounds:
            state.forget(connection, order.digest)
    return {REVEALED: answer}


def _held(found: state.HeldSetup | None) -> state.HeldSetup:
    if found is None:
        raise MaskingError("setup: unknown here, or forgotten; a new one is needed")
    return found


def _setup(order_sha256: str, order: Order, number: int, keys: list[dict[str, Json]]) -> Setup:
    """The set-up behind these signed keys; each must be signed by its site's key in the order."""
    dids = {entry.site: entry.did for entry in order.roster}
    opened = [open_document(MaskKeys, entry, issuers=set(dids.values())) for entry in keys]
    by_site = {one.subject.site: one for one in opened}
    if len(by_site) != len(opened) or any(
        dids.get(site) != one.issuer for site, one in by_site.items()
    ):
        raise MaskingError("keys: a hospital's are not signed with its key in the order")
    return Setup(
        order_sha256=order_sha256,
        number=number,
        places={site: place for place, site in enumerate(sorted(dids), start=1)},
        threshold=order.honest,
        keys={site: one.subject for site, one in by_site.items()},
    )


def _by_site(keys: list[dict[str, Json]]) -> set[bytes]:
    return {jcs(entry) for entry in keys}
