"""What the signed documents about one record show: whether it permitted a use, under a lease.

Folded by the same functions as at the hub and at the hospital. When a hospital saw a change of keys
no document says, so its signer's own time is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from consent.chain import apply, bounded, keys_of
from consent.decide import Request, Standing, decide
from consent.speakers import Desks, Speakers, speaker_of
from consent.succession import Said, take
from coop.documents.audit import Member, Shown
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import Opened, open_document
from coop.documents.people import PEOPLE
from coop.errors import CoopError, InvalidInputError, Kind
from coop.journal import note
from coop.journal.commitments import commitment, leaf_of
from coop.journal.merkle import leaf_hash, verify_inclusion
from coop.journal.trust import Trust

_ABOUT_PEOPLE: Final[Mapping[str, type[Said]]] = {Enrolment.kind: Enrolment, **PEOPLE}


class NoPermitError(InvalidInputError):
    """A member of the cohort is not shown to have permitted it."""

    code: ClassVar[str] = "audit.no-permit"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a hospital knew under one lease, and what it had to ask."""

    log_size: int
    cosigned_size: int
    """Below it, enough other hospitals had seen the log."""
    heads: Mapping[str, str]
    requests: Sequence[Request]
    """The same question at several instants; at one of them it was put."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """Whose word counts for the records of a hospital, and the log their documents stand in."""

    trust: Trust
    site: str
    log: note.Checkpoint

    @property
    def desks(self) -> Desks:
        """Who may restrict on somebody's behalf."""
        return Desks(registry=self.trust.hub, hospital=self.trust.sites.get(self.site))


@dataclass(frozen=True, slots=True)
class _State:
    index: int = -1
    standing: Standing | None = None
    speakers: Speakers | None = None


def check_permits(whose: Whose, member: Member, leases: Sequence[Held]) -> None:
    """Return if the member's documents show that she permitted the use under each lease.

    Steps: (1) each document stands in the log, is signed, about her, and follows the one before; at
    the size of each lease (2) her newest document is the one the lease vouches for, and under the
    first one the one her leaf names; (3) enough hospitals had seen what gave the permit; (4) it
    permits the use.

    Raises:
        NoPermitError: (1), (2), (3) or (4) fails.
    """
    # (1)
    try:
        states = list(_states(whose, member))
    except CoopError as error:
        raise NoPermitError(f"her documents do not hold together: {error.message}") from error
    for number, lease in enumerate(leases):
        known = [state for state in states if state.index < lease.log_size]
        state = known[-1] if known else _State()
        standing, speakers = state.standing, state.speakers
        # (2)
        newest = speakers.newest if speakers else None
        vouched = (lease.heads.get(member.pid), lease.heads.get(keys_of(member.pid)))
        if standing is None or (standing.head_digest, newest) != vouched:
            raise NoPermitError("the lease vouches for other documents than these")
        if number == 0 and standing.log_index != member.consent:
            raise NoPermitError("her leaf names another document than her newest one")
        # (3)
        if not 0 <= standing.widened_index < lease.cosigned_size:
            raise NoPermitError("other hospitals had not yet seen what she permitted")
        # (4)
        answers = [decide(standing, request) for request in lease.requests]
        if not any(answer.permits for answer in answers):
            raise NoPermitError(f"she had not permitted it: {answers[-1].reasons[0]}")


def _states(whose: Whose, member: Member) -> Iterator[_State]:
    state = _State()
    for shown in member.documents:
        if shown.index <= state.index:
            raise NoPermitError("one stands out of its order")
        _check_logged(whose, shown)
        state = _after(whose, member.pid, state, shown)
        yield state


def _check_logged(whose: Whose, shown: Shown) -> None:
    leaf = leaf_of(shown.kind, commitment(bytes.fromhex(shown.salt), shown.document))
    proof = [note.from_base64(part) for part in shown.proof]
    verify_inclusion(leaf_hash(leaf), shown.index, whose.log.size, proof, whose.log.root)


def _after(whose: Whose, pid: str, state: _State, shown: Shown) -> _State:
    passkeys = whose.trust.passkeys
    if shown.kind == Consent.kind:
        event = open_document(Consent, shown.document, issuers=None, passkeys=passkeys)
        _check_hers(event.subject, pid, whose.site)
        speaker = speaker_of(
            state.speakers, event.issuer, whose.desks, event.subject.representation
        )
        after = apply(state.standing, event, speaker=speaker, log_index=shown.index)
        return _State(shown.index, after, state.speakers)
    kind = _ABOUT_PEOPLE.get(shown.kind)
    if kind is None:
        raise NoPermitError("one is of a kind that says nothing about consent")
    said: Opened[Said] = open_document(kind, shown.document, issuers=None, passkeys=passkeys)
    _check_hers(said.subject, pid, whose.site)
    speakers = take(state.speakers, said, said.at, whose.desks)
    standing = state.standing
    if state.speakers is not None and standing is not None:
        standing = bounded(standing, state.speakers, speakers, said.at)
    return _State(shown.index, standing, speakers)


def _check_hers(said: Consent | Said, pid: str, site: str) -> None:
    if (said.pid, said.site) != (pid, site):
        raise NoPermitError("one is about another record")
