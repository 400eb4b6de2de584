"""This hospital's own reading of consents: every envelope verified, every chain folded.

Pure but for signature checks. A grant counts here only if it is signed by a key whose enrolment
*this* hospital signed; nothing the hub adds or leaves out can widen what the fold permits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from consent.chain import apply
from consent.decide import Standing
from coop.canonical import Json, document_digest
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import WrongDocumentError, open_document
from coop.errors import InvalidInputError, Kind
from coop.journal.commitments import commitment, leaf_of
from coop.journal.merkle import leaf_hash

_KINDS: Final[Mapping[str, str]] = {"CoopEnrolment": "enrolment", "CoopConsent": "consent"}


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

    @property
    def kind(self) -> str:
        """`enrolment` or `consent`.

        Raises:
            WrongDocumentError: Neither.
        """
        types = self.document.get("type")
        name = str(types[-1]) if isinstance(types, list) and types else ""
        if name not in _KINDS:
            raise WrongDocumentError("document: neither an enrolment nor a consent")
        return _KINDS[name]

    @property
    def digest(self) -> str:
        """The document's name in the chain."""
        return document_digest(self.document)

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
    """Who speaks for each pid here, and how each chain stands. Grows in the order of the log."""

    site: str
    site_did: str
    hub_did: str
    keys: dict[str, str] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    last: int = -1
    """Log index of the newest envelope taken."""

    def copy(self) -> Self:
        """An independent copy, to try new envelopes on."""
        return type(self)(
            site=self.site,
            site_did=self.site_did,
            hub_did=self.hub_did,
            keys=dict(self.keys),
            standings=dict(self.standings),
            last=self.last,
        )

    def take(self, envelope: Envelope) -> str:
        """Verify and fold the next envelope in the order of the log; returns its pid.

        Raises:
            WrongDocumentError: Malformed, for another hospital, or an enrolment by another signer.
            BadSignatureError: The signature does not verify.
            ConsentSignerError: Signed by a key that may not say this.
            ConsentChainError: Not the next event of its chain.
            PolicyError: A policy no machine can obey.
        """
        pid = self._enrol(envelope) if envelope.kind == "enrolment" else self._event(envelope)
        self.last = envelope.index
        return pid

    def _event(self, envelope: Envelope) -> str:
        opened = open_document(Consent, envelope.document, issuers=None)
        pid = opened.subject.pid
        if opened.subject.site != self.site or pid not in self.keys:
            raise WrongDocumentError("consent: for a record this hospital did not enrol")
        self.standings[pid] = apply(
            self.standings.get(pid),
            opened,
            patient_did=self.keys[pid],
            # Restrictions only: `apply` lets nobody but the enrolled key widen.
            restrictors={self.hub_did, self.site_did},
            log_index=envelope.index,
        )
        return pid

    def heads(self) -> dict[str, str]:
        """The newest event of every chain, by pid."""
        return {pid: standing.head_digest for pid, standing in self.standings.items()}

    def _enrol(self, envelope: Envelope) -> str:
        opened = open_document(Enrolment, envelope.document, issuers={self.site_did})
        if opened.subject.site != self.site:
            raise WrongDocumentError("enrolment: for another hospital")
        self.keys[opened.subject.pid] = opened.subject.key
        return opened.subject.pid
