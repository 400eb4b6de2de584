"""How it changes who may speak for a record: document by document, in the order of the log.

    enrolment (hospital) ──rotate──▶ new key, at once
                         ──recover─▶ new key; widening waits WAIT_S, narrowing does not
                         ──enrolment again─▶ the same
                         ──revoke-all─▶ closed: nobody widens until the hospital enrols anew

Hub, node and `coop verify` fold with this one function. Pure.
"""

from typing import Final

from consent.speakers import Desks, Representative, Speakers, Vote
from coop.documents.consent import Enrolment
from coop.documents.envelope import Opened
from coop.documents.people import KeyEvent, Representation, RepresentationEnd, committed
from coop.errors import CoopError, Kind

WAIT_S: Final = 7 * 24 * 3600
"""A recovered key may widen after so long: time for her to see the notice and object."""
REPRESENTATIVES_MAX: Final = 32
_EVER_MAX: Final = 512
"""Ended ones with them: what they gave rests on them."""
FORMER_MAX: Final = 8
Said = Enrolment | KeyEvent | Representation | RepresentationEnd


class SpeakerRefusedError(CoopError):
    """The signer may not say this about who speaks for the record."""

    code = "speakers.refused"
    kind = Kind.FORBIDDEN


class KeyChainError(CoopError):
    """The key event does not follow the key the record has now: someone was faster."""

    code = "speakers.chain"
    kind = Kind.CONFLICT


def take(state: Speakers | None, opened: Opened[Said], at: int, desks: Desks) -> Speakers:
    """The state after a document whose signature the caller has verified.

    A document seen before changes nothing: a hub that shows an old enrolment or representation
    again brings nobody back.

    Args:
        state: Before it; None at the start.
        opened: For this pid and this hospital, as the caller has checked.
        at: When this house saw it in the log, UTC seconds.
        desks: Who may speak on somebody's behalf.

    Raises:
        SpeakerRefusedError: The signer may not say this.
        KeyChainError: It does not follow the key the record has.
    """
    said = opened.subject
    if isinstance(said, Enrolment):
        return _enrolled(state, said, opened, at, desks)
    if state is None:
        raise SpeakerRefusedError("pid: no key was enrolled for this record")
    match said:
        case KeyEvent():
            after = _key_event(state, said, opened, at, desks)
        case Representation():
            after = _represented(state, said, opened, desks)
        case _:
            after = _unrepresented(state, said, opened, desks)
    return after if after is state else after.model_copy(update={"newest": opened.digest})


# -- the key ---------------------------------------------------------------------------------------


def _enrolled(
    state: Speakers | None, said: Enrolment, opened: Opened[Said], at: int, desks: Desks
) -> Speakers:
    if opened.issuer != desks.hospital:
        raise SpeakerRefusedError("enrolment: only the record's own hospital signs it")
    fresh = Speakers(
        key=said.key,
        custody=said.custody,
        since=at,
        head=opened.digest,
        enrolled_at=opened.at,
        enrolments=(opened.digest,),
        next_key_sha256=said.next_key_sha256,
        guardians=tuple(said.guardians or ()),
        threshold=said.threshold or 0,
    )
    if state is None:
        return fresh
    if opened.at < state.enrolled_at or opened.digest in state.enrolments:
        return state
    same_second = state.enrolments if opened.at == state.enrolled_at else ()
    return fresh.model_copy(
        update={
            **_recovery(state, at),
            "enrolments": (*same_second, opened.digest),
            "newest": opened.digest,
        }
    )


def _recovery(state: Speakers, at: int) -> dict[str, object]:
    """What a new key brings with it when the old one did not ask for it."""
    # After revoke-all the hospital has heard both sides: a stolen key objects once, not for ever.
    former = () if state.closed else (*state.former, state.key)[-FORMER_MAX:]
    return {
        "since": at,
        "sequence": state.sequence + 1,
        "waits_until": at + WAIT_S,
        "former": former,
        "closed": False,
        "votes": (),
        "representatives": _not_by_key(state.representatives),
    }


def _not_by_key(named: tuple[Representative, ...]) -> tuple[Representative, ...]:
    """Whom the key named speaks no more, and what he gave ends: the key may not have been hers."""
    return tuple(one.model_copy(update={"ended": True}) if one.by_key else one for one in named)


def _key_event(
    state: Speakers, said: KeyEvent, opened: Opened[Said], at: int, desks: Desks
) -> Speakers:
    if (said.sequence, said.previous) != (state.sequence + 1, state.head):
        raise KeyChainError(
            f"sequence: must be {state.sequence + 1} after the newest key event; sign anew",
            sequence=state.sequence + 1,
        )
    if state.closed:
        raise KeyChainError("event: the record is closed; its hospital enrols a new key")
    if said.event == "revoke-all":
        _may_close(state, opened.issuer, desks)
        return state.model_copy(
            update={
                "closed": True,
                "head": opened.digest,
                "sequence": state.sequence + 1,
                "next_key_sha256": None,
                "former": (),
                "votes": (),
                "representatives": _not_by_key(state.representatives),
            }
        )
    key = str(said.key)
    if key in {state.key, desks.registry, desks.hospital}:
        raise SpeakerRefusedError("key: must be a new key of the patient's own")
    if said.event == "rotate":
        return _rotated(state, said, opened, at)
    return _voted(state, said, opened, at)


def _may_close(state: Speakers, did: str, desks: Desks) -> None:
    entitled = {state.key, *state.former, *state.guardians, desks.registry, desks.hospital}
    entitled |= {one.did for one in state.representatives if not one.ended}
    if did not in entitled:
        raise SpeakerRefusedError("revoke-all: signed by nobody who speaks for this record")


def _rotated(state: Speakers, said: KeyEvent, opened: Opened[Said], at: int) -> Speakers:
    key = str(said.key)
    if opened.issuer != key or state.next_key_sha256 != committed(key):
        raise SpeakerRefusedError("rotate: must be signed by the key that was committed to before")
    changed = {}
    if said.guardians is not None:
        changed = {"guardians": tuple(said.guardians), "threshold": said.threshold or 0}
    return state.model_copy(
        update={
            "key": key,
            "since": at,
            "head": opened.digest,
            "sequence": state.sequence + 1,
            "next_key_sha256": said.next_key_sha256,
            "votes": (),
            **changed,
        }
    )


def _voted(state: Speakers, said: KeyEvent, opened: Opened[Said], at: int) -> Speakers:
    if opened.issuer not in state.guardians:
        raise SpeakerRefusedError("recover: must be signed by a guardian of this record's key")
    vote = Vote(guardian=opened.issuer, key=str(said.key), next_key_sha256=said.next_key_sha256)
    votes = (*(one for one in state.votes if one.guardian != vote.guardian), vote)
    wanted = (vote.key, vote.next_key_sha256)
    if sum((one.key, one.next_key_sha256) == wanted for one in votes) < state.threshold:
        return state.model_copy(update={"votes": votes})
    return state.model_copy(
        update={
            **_recovery(state, at),
            "key": vote.key,
            "custody": "self",
            "head": opened.digest,
            "next_key_sha256": vote.next_key_sha256,
        }
    )


# -- representatives -------------------------------------------------------------------------------


def _represented(
    state: Speakers, said: Representation, opened: Opened[Said], desks: Desks
) -> Speakers:
    if state.representative(opened.digest) is not None:
        return state
    if said.did in {state.key, desks.registry, desks.hospital}:
        raise SpeakerRefusedError("did: a representative needs a key of her own")
    living = sum(not one.ended for one in state.representatives)
    if living >= REPRESENTATIVES_MAX or len(state.representatives) >= _EVER_MAX:
        raise SpeakerRefusedError(f"representations: at most {REPRESENTATIVES_MAX} for one record")
    by_key = opened.issuer == state.key and opened.issuer != desks.hospital
    if by_key and (said.role != "proxy" or state.closed or state.custody == "custodial"):
        raise SpeakerRefusedError("representation: a patient's own key names proxies only")
    if not by_key and (opened.issuer != desks.hospital or said.authority is None):
        raise SpeakerRefusedError("representation: the record's hospital signs it, with its paper")
    # A recovered key that waits cannot give through somebody else what it may not give itself.
    since = max(said.valid_from, state.waits_until) if by_key else said.valid_from
    one = Representative(
        digest=opened.digest,
        did=said.did,
        role=said.role,
        since=since,
        until=said.valid_until,
        by_key=by_key,
    )
    return state.model_copy(update={"representatives": (*state.representatives, one)})


def _unrepresented(
    state: Speakers, said: RepresentationEnd, opened: Opened[Said], desks: Desks
) -> Speakers:
    one = state.representative(said.representation_sha256)
    if one is None:
        raise SpeakerRefusedError("representation_sha256: no such representation of this record")
    if opened.issuer not in {state.key, one.did, desks.registry, desks.hospital}:
        raise SpeakerRefusedError("representation-end: signed by nobody who may end it")
    if one.ended:
        return state
    over = one.model_copy(update={"ended": True})
    changed = tuple(over if each is one else each for each in state.representatives)
    return state.model_copy(update={"representatives": changed})
