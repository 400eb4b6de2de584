"""This hospital's own reading of consents: every envelope verified, every chain folded.

Pure but for signature checks. A grant counts here only if it is signed by a key that goes back to
an enrolment *this* hospital signed; nothing the hub adds or leaves out can widen what the fold
permits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from typing import ClassVar, Final, Self

from consent.chain import ConsentChainError, apply, bounded, heads_digest, keys_of
from consent.decide import Standing, State
from consent.speakers import Desks, Speakers, speaker_of
from consent.succession import Said, take
from coop.canonical import Json, NotCanonicalError, document_digest
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import Opened, WrongDocumentError, open_document, type_of
from coop.documents.erasure import Erasure
from coop.documents.people import PEOPLE
from coop.errors import InvalidInputError, Kind
from coop.journal.commitments import commitment, commitment_of_digest, leaf_of
from coop.journal.merkle import leaf_hash
from coop.passkeys import RelyingParty

_PEOPLE: Final[Mapping[str, type[Said]]] = {Enrolment.kind: Enrolment, **PEOPLE}
_KINDS: Final[Mapping[str, str]] = {
    type_of(kind): kind.kind for kind in (Consent, *_PEOPLE.values(), Erasure)
}
_SETTLING: Final = frozenset({"grant", "amend", "revoke"})
_BEFORE: Final[Mapping[str, State]] = {
    "grant": State.REVOKED,
    "amend": State.ACTIVE,
    "suspend": State.ACTIVE,
    "resume": State.SUSPENDED,
    "revoke": State.ACTIVE,
    "propose": State.REVOKED,
    "reject": State.PROPOSED,
    "deceased": State.ACTIVE,
    "void": State.ACTIVE,
    "object": State.REVOKED,
    "lift": State.REVOKED,
}
_HEADS_TRIED_MAX: Final = 64  # six pids set aside; more are cleared by patients signing again


class UnloggedDocumentError(InvalidInputError):
    """The hub sent a document that is not the one in the log at this index."""

    code: ClassVar[str] = "mirror.not-in-log"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One signed document of this site at its place in the log."""

    index: int
    salt: str
    document: dict[str, Json]
    seen_at: int = 0
    """When this hospital first saw it in the log, by its own clock (UTC seconds)."""
    named: str | None = None
    """The digest under which the hub keeps it; believed only where the log bears it out."""
    named_pid: str = ""
    """Whose the hub says it is: for a document too damaged to say so itself."""

    @property
    def kind(self) -> str:
        """`consent`, `erasure`, or one of the kinds that say who may speak for a record.

        Raises:
            WrongDocumentError: Neither.
        """
        types = self.document.get("type")
        name = str(types[-1]) if isinstance(types, list) and types else ""
        if name not in _KINDS:
            raise WrongDocumentError("document: no consent, nor about who may give one")
        return _KINDS[name]

    @property
    def digest(self) -> str:
        """The document's name in the chain."""
        return document_digest(self.document)

    @property
    def claimed_digest(self) -> str:
        """The document's digest; what the hub names it by if it has none."""
        try:
            return self.digest
        except NotCanonicalError:
            return self.named or ""

    def committed(self, logged: bytes) -> tuple[str, str] | None:
        """(kind, digest) that the entry with this leaf hash commits to; None if neither of ours."""
        salt = bytes.fromhex(self.salt)
        for digest in dict.fromkeys(d for d in (self.claimed_digest, self.named) if d):
            for kind in _KINDS.values():
                if leaf_hash(leaf_of(kind, commitment_of_digest(salt, digest))) == logged:
                    return kind, digest
        return None

    def check_logged(self, logged: bytes) -> None:
        """Return if the entry with this leaf hash commits to exactly this document.

        Raises:
            UnloggedDocumentError: It does not.
        """
        try:
            leaf = leaf_of(self.kind, commitment(bytes.fromhex(self.salt), self.document))
        except ValueError as error:
            raise UnloggedDocumentError("salt: not hex") from error
        if leaf_hash(leaf) != logged:
            raise UnloggedDocumentError(
                f"entry {self.index}: the log commits to another document than the hub sent"
            )


@dataclass(slots=True, kw_only=True)
class Fold:
    """Who may speak for each pid, and how each chain stands. Grows in the order of the log."""

    site: str
    site_did: str
    hub_did: str
    passkeys: RelyingParty | None = None
    speakers: dict[str, Speakers] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    aside: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Pids denied since staff set a document of theirs aside, with every head the hub may hold them
    at: that document, or the newest one that verified before it (None: there was none)."""
    keys_aside: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    """The same for what says who may speak for them."""
    record_of: Callable[[str], str] = str
    """What an erasure names a pid by (`federated.erased.record_digest`)."""
    erased: set[str] = field(default_factory=set)
    """Records that were erased, by that name."""
    denied: set[str] = field(default_factory=set)
    """Pids of erased records that the hub shows again: whatever is said of them permits nothing."""
    last: int = -1
    """Log index of the newest envelope taken."""

    def copy(self) -> Self:
        """An independent copy, to try new envelopes on."""
        return type(self)(
            site=self.site,
            site_did=self.site_did,
            hub_did=self.hub_did,
            passkeys=self.passkeys,
            speakers=dict(self.speakers),
            standings=dict(self.standings),
            aside=dict(self.aside),
            keys_aside=dict(self.keys_aside),
            record_of=self.record_of,
            erased=set(self.erased),
            denied=set(self.denied),
            last=self.last,
        )

    def take(self, envelope: Envelope) -> str:
        """Verify and fold the next envelope in the order of the log; returns its pid, if any.

        Raises:
            WrongDocumentError: Malformed, for another hospital, or an enrolment by another signer.
            BadSignatureError: The signature does not verify.
            ConsentSignerError, SpeakerRefusedError: Signed by a key that may not say this.
            ConsentChainError, KeyChainError: Not the next event of its chain.
            PolicyError: A policy no machine can obey.
        """
        kind = envelope.kind
        if kind == Erasure.kind:
            pid = self._erase(envelope)
        else:
            pid = self._people(envelope, kind) if kind in _PEOPLE else self._event(envelope)
        self.last = envelope.index
        return pid

    def _erase(self, envelope: Envelope) -> str:
        """Forget the record that this hospital had erased; it counts no more, whatever comes."""
        said = open_document(Erasure, envelope.document, issuers={self.site_did}).subject
        if said.site != self.site:
            raise WrongDocumentError("erasure.site: must be this hospital")
        self.erased.add(said.record)
        for pid in [pid for pid in self.speakers if self.record_of(pid) == said.record]:
            for known in (self.speakers, self.standings, self.aside, self.keys_aside):
                known.pop(pid, None)
            self.denied.discard(pid)
        return ""

    def _event(self, envelope: Envelope) -> str:
        opened = open_document(Consent, envelope.document, issuers=None, passkeys=self.passkeys)
        pid = opened.subject.pid
        if opened.subject.site != self.site or pid not in self.speakers:
            raise WrongDocumentError("consent: for a record this hospital did not enrol")
        aside = pid in self.aside
        after = apply(
            self._before_rejoining(opened.subject) if aside else self.standings.get(pid),
            opened,
            speaker=speaker_of(
                self.speakers[pid], opened.issuer, self.desks, opened.subject.representation
            ),
            log_index=envelope.index,
        )
        if not aside or opened.subject.event in _SETTLING:
            self.aside.pop(pid, None)
            self.standings[pid] = after
        else:
            self.standings[pid] = after  # her objection stays with her
            self._deny(pid, (after.head_digest,), after.sequence, envelope.index)
        return pid

    def set_aside(self, index: int, kind: str, digest: str, pid: str) -> None:
        """Pass over a document that staff set aside: its patient is denied until she signs again.

        She is, once an event that follows it in her chain verifies and says what holds: a grant or
        an amendment signed by her key, or a revocation. Pausing and resuming only refer to a choice
        whose history is in doubt, so they leave her denied.
        """
        self.last = index
        if not pid:
            return
        standing = self.standings.get(pid)
        heads = self.aside.get(pid, (standing.head_digest if standing else None,))
        if kind == Consent.kind:
            heads = (digest, *heads)
        else:
            speakers = self.speakers.get(pid)
            known = self.keys_aside.get(pid, (speakers.newest if speakers else None,))
            self.keys_aside[pid] = (digest, *known)
        self._deny(pid, heads, standing.sequence if standing else 0, index)

    def heads_of(self, wanted: str) -> dict[str, str] | None:
        """The chain heads whose digest a lease names, by pid; None if these are others.

        Exact for every pid. Of one set aside two documents are known, and the hub may hold her at
        either; she is denied in both cases, so the choice lets nobody in.
        """
        settled = {p: s.head_digest for p, s in self.standings.items() if p not in self.aside}
        settled |= {
            keys_of(pid): speakers.newest
            for pid, speakers in self.speakers.items()
            if speakers.newest is not None and pid not in self.keys_aside
        }
        doubtful = self.aside | {keys_of(pid): heads for pid, heads in self.keys_aside.items()}
        for chosen in islice(product(*doubtful.values()), _HEADS_TRIED_MAX):
            denied = {name: head for name, head in zip(doubtful, chosen, strict=True) if head}
            if heads_digest(settled | denied) == wanted:
                return settled | denied
        return None

    def _deny(self, pid: str, heads: tuple[str | None, ...], sequence: int, index: int) -> None:
        self.aside[pid] = heads
        self.standings[pid] = Standing(
            state=State.SUSPENDED,
            policy=None,
            head_digest=heads[0] or "",
            sequence=sequence,
            log_index=index,
            objected=pid in self.standings and self.standings[pid].objected,
        )

    def _before_rejoining(self, event: Consent) -> Standing | None:
        """The standing that `event` of a pid set aside continues, without a policy.

        Raises:
            ConsentChainError: It follows neither the document set aside nor the one before it.
        """
        known = self.standings[event.pid].sequence
        if event.previous not in self.aside[event.pid] or event.sequence <= known:
            raise ConsentChainError("previous: is not the document set aside, nor the one before")
        if event.previous is None:
            return None
        # In which state the hub held her cannot be known here; whatever it was, no policy of then
        # is taken over, so `apply` is left to judge signer and policy of this event.
        return Standing(
            state=_BEFORE[event.event],
            policy=None,
            head_digest=event.previous,
            sequence=event.sequence - 1,
            log_index=-1,
            objected=event.event == "lift"
            or (event.event != "object" and self.standings[event.pid].objected),
        )

    @property
    def desks(self) -> Desks:
        """Who may restrict here on somebody's behalf."""
        return Desks(registry=self.hub_did, hospital=self.site_did)

    def _people(self, envelope: Envelope, kind: str) -> str:
        """Fold an envelope that says who may speak for a record."""
        enrols = kind == Enrolment.kind
        issuers = {self.site_did} if enrols else None  # for the others `take` knows
        opened: Opened[Said] = open_document(
            _PEOPLE[kind], envelope.document, issuers=issuers, passkeys=self.passkeys
        )
        pid, before = opened.subject.pid, self.speakers.get(opened.subject.pid)
        if opened.subject.site != self.site or (before is None and not enrols):
            raise WrongDocumentError(f"{kind}: for a record of another hospital, or none of ours")
        after = take(before, opened, envelope.seen_at, self.desks)
        if before is None and self.erased and self.record_of(pid) in self.erased:
            self.denied.add(pid)
        self.speakers[pid] = after
        self.keys_aside.pop(pid, None)
        standing = self.standings.get(pid)
        if before is not None and standing is not None:
            self.standings[pid] = bounded(standing, before, after, envelope.seen_at)
        return pid
