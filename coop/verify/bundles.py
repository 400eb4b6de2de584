"""Verifying one file: what every kind needs; a passport, a whole log."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Final, TypeVar

from coop.canonical import Json, from_b64u, sha256
from coop.documents.consent import (
    Consent,
    ConsentReceipt,
    Enrolment,
    UseRequest,
    UseStatement,
)
from coop.documents.dividend import DividendWindow
from coop.documents.emergency import BreakGlass, BreakGlassReview
from coop.documents.envelope import Opened, Subject, open_document
from coop.documents.erasure import Erasure
from coop.documents.masked import MaskKeys
from coop.documents.people import KeyEvent, Representation, RepresentationEnd
from coop.documents.quarantine import Quarantine
from coop.documents.serving import CohortAnswer, CohortJob, InferenceReceipt
from coop.documents.study import Approval, Study
from coop.documents.tally import Tally
from coop.documents.training import (
    Lease,
    ModelState,
    Order,
    Passport,
    RoundReceipt,
    RoundRecord,
    RoundRequest,
)
from coop.errors import InvalidInputError, Kind
from coop.journal import note
from coop.journal.commitments import kind_of_leaf
from coop.journal.merkle import JournalProofError, leaf_hash, root_of
from coop.journal.receipts import Verified, check_bundle, checked_cosigners
from coop.journal.trust import Trust

S = TypeVar("S", bound=Subject)
_RESTRICTING: Final = frozenset({"revoke", "suspend"})
_IN_FORCE: Final = "; stopping is in force all the same and needs none"


class VerificationError(InvalidInputError):
    """The documents are genuine one by one and do not say what they must say together."""

    code: ClassVar[str] = "verify.failed"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


class Speaker(StrEnum):
    """Who may sign a kind of document."""

    HUB = "the hub"
    SITE = "the hospital it names"
    PATIENT = "whoever speaks for the record"
    ANYONE = "anyone"


_BY_SPEAKER: Final[Mapping[Speaker, tuple[type[Subject], ...]]] = {
    Speaker.HUB: (
        *(ConsentReceipt, Order, Lease, RoundRequest, RoundRecord, Passport),
        *(InferenceReceipt, CohortJob, DividendWindow, Tally, ModelState),
    ),
    Speaker.SITE: (
        *(Enrolment, Approval, RoundReceipt, CohortAnswer, UseStatement),
        *(Quarantine, BreakGlass, BreakGlassReview, Erasure, MaskKeys),
    ),
    Speaker.PATIENT: (Consent, UseRequest, KeyEvent, Representation, RepresentationEnd),
    Speaker.ANYONE: (Study,),
}
KINDS: Final[Mapping[str, tuple[type[Subject], Speaker]]] = {
    kind.kind: (kind, speaker) for speaker, kinds in _BY_SPEAKER.items() for kind in kinds
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was verified, step by step."""

    what: str
    steps: list[str]
    waiting: list[str]
    """What is recorded and not complete: a checkpoint that fewer than k hospitals have cosigned."""
    facts: dict[str, Json]

    @property
    def witnessed(self) -> bool:
        """Every checkpoint was cosigned by at least k hospitals of the trust file."""
        return not self.waiting

    def lines(self) -> list[str]:
        """For people: what was checked, what is still waited for, and what that makes."""
        verdict = "verified" if self.witnessed else "genuine and recorded, not yet complete"
        return [
            *(f"ok   {step}" for step in self.steps),
            *(f"wait {text}" for text in self.waiting),
            f"{self.what}: {verdict}",
        ]

    def to_json(self) -> dict[str, Json]:
        """For `--json`."""
        steps: list[Json] = list(self.steps)
        waiting: list[Json] = list(self.waiting)
        return {
            "ok": True,
            "what": self.what,
            "witnessed": self.witnessed,
            "steps": steps,
            "waiting": waiting,
            **self.facts,
        }


@dataclass(slots=True, kw_only=True)
class Work:
    """The steps and checkpoints met while verifying one file."""

    trust: Trust
    steps: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    seen: list[Verified] = field(default_factory=list)

    def step(self, text: str) -> None:
        """Note what was checked."""
        self.steps.append(text)

    def logged(self, kind: type[S], value: Json, *, also: Collection[str] = ()) -> Opened[S]:
        """Open a receipt bundle of `kind`: proof, signature and issuer verified (`open_as`)."""
        bundle = object_of(value, kind.kind)
        verified = check_bundle(bundle, self.trust)
        if verified.kind != kind.kind:
            raise VerificationError(f"{kind.kind}: the bundle holds a {verified.kind}")
        for other in self.seen:
            if other.size == verified.size and other.root != verified.root:
                raise JournalProofError("checkpoint: two roots of one size: the log was forked")
        opened = open_as(kind, verified.document, self.trust, also=also)
        self.seen.append(verified)
        said = (
            f"{kind.kind}: signed by {name_of(opened.issuer, self.trust)}, "
            f"entry {verified.index} of the log of {verified.size}"
        )
        cosigned = len(verified.cosigners)
        if cosigned >= self.trust.k:
            self.step(f"{said}, cosigned by {cosigned} (needs {self.trust.k})")
        else:
            self.step(said)
            self.wait(kind.kind, cosigned, restricts=_restricts(opened.subject))
        return opened

    def wait(self, what: str, cosigned: int, *, restricts: bool = False) -> None:
        """Note what too few hospitals have cosigned so far."""
        text = (
            f"{what}: recorded; waiting for the hospitals' cosignatures "
            f"({cosigned} of {self.trust.k})"
        )
        # Acknowledged at its commit: what narrows waits for nobody (DESIGN §7).
        self.waiting.append(text + (_IN_FORCE if restricts else ""))

    def report(self, what: str, facts: Mapping[str, Json]) -> Report:
        """The report of all steps so far."""
        return Report(what=what, steps=self.steps, waiting=self.waiting, facts=dict(facts))


def open_as(
    kind: type[S],
    document: Mapping[str, Json],
    trust: Trust,
    *,
    also: Collection[str] = (),
) -> Opened[S]:
    """Open a document of `kind`, signed by whoever may say this.

    Args:
        kind: What it must be.
        document: What is verified.
        trust: Whose word counts for what.
        also: Dids that may speak for the record it is about.

    Raises:
        WrongDocumentError: Of another kind or shape.
        BadSignatureError: Not signed by its issuer.
        VerificationError: Its issuer may not say this.
    """
    opened = open_document(kind, document, issuers=None, passkeys=trust.passkeys)
    speaker = KINDS[kind.kind][1]
    allowed: set[str | None]
    match speaker:
        case Speaker.HUB:
            allowed = {trust.hub}
        case Speaker.SITE:
            allowed = {trust.sites.get(str(getattr(opened.subject, "site", "")))}
        case Speaker.PATIENT:
            allowed = _entitled(opened.subject, trust, also)
        case Speaker.ANYONE:
            allowed = {opened.issuer}
    if opened.issuer not in allowed:
        missing = speaker is Speaker.PATIENT and not also
        hint = "; the file holds no enrolment of that key" if missing else ""
        raise VerificationError(
            f"{kind.kind}: signed by {opened.issuer}; only {speaker.value} may sign it{hint}"
        )
    return opened


def verify_document_by_kind(
    kind: str, document: Mapping[str, Json], trust: Trust
) -> Opened[Subject]:
    """`open_as` for a kind given by name.

    Raises:
        VerificationError: There is no such kind, or its issuer may not say this.
    """
    if kind not in KINDS:
        raise VerificationError(f"kind: {kind!r} is no kind of document")
    return open_as(KINDS[kind][0], document, trust)


def verify_log(export: Mapping[str, Json], trust: Trust) -> Report:
    """Verify a whole exported log.

    Steps: (1) the log signed the checkpoint; (2) every cosignature on it is a hospital's and
    verifies; (3) every leaf holds a kind and a commitment and nothing else; (4) the leaves hash to
    the checkpoint's root.
    """
    work = Work(trust=trust)
    if export.get("v") != 1 or not {"v", "checkpoint", "entries"} <= set(export):
        raise VerificationError("log: needs v=1, checkpoint and entries")
    # (1)
    text = str(export["checkpoint"])
    checkpoint = note.open_checkpoint(text, origin=trust.origin, log_did=trust.log)
    work.step(f"checkpoint: {trust.origin} at {checkpoint.size}, signed by the log")
    # (2)
    cosigners = checked_cosigners(text, trust)
    names = ", ".join(sorted(cosigners)) or "nobody"
    if len(cosigners) >= trust.k:
        work.step(f"cosigned by {len(cosigners)} (needs {trust.k}): {names}")
    else:
        work.wait("checkpoint", len(cosigners))
    # (3)
    leaves = [from_b64u(str(leaf)) for leaf in list_of(export["entries"], "entries")]
    kinds = Counter(kind_of_leaf(leaf) for leaf in leaves)
    work.step(f"{len(leaves)} leaves hold a kind and a commitment and nothing else")
    # (4)
    if len(leaves) != checkpoint.size or root_of(map(leaf_hash, leaves)) != checkpoint.root:
        raise JournalProofError("log: its entries do not hash to its checkpoint")
    work.step("the leaves hash to the checkpoint's root")
    facts: dict[str, Json] = {
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "cosigners": sorted(cosigners),
        "kinds": dict(sorted(kinds.items())),
    }
    return work.report("log", facts)


def verify_passport(
    bundle: Mapping[str, Json], trust: Trust, artefacts: Mapping[str, bytes] | None = None
) -> Report:
    """Verify a model's passport, and the model's files if they are at hand.

    The bundle may carry one more member, `records`: the receipt bundles of every round record in
    order. Steps: (1) the passport is logged and signed by the hub; (2) the records are one unbroken
    chain of its order, end in the one it names and give its training root; (3) each file is the one
    it names.

    Raises:
        VerificationError: A record or a file is not the one the passport names.
    """
    work = Work(trust=trust)
    # (1)
    plain = {name: value for name, value in bundle.items() if name != "records"}
    passport = work.logged(Passport, plain)
    facts = facts_of(passport, work)
    # (2)
    if "records" in bundle:
        values = list_of(bundle["records"], "records")
        _check_records(passport.subject, [work.logged(RoundRecord, value) for value in values])
        work.step("records: one unbroken chain that gives the passport's training root")
    # (3)
    named: dict[str, str] = {item.name: item.sha256 for item in passport.subject.artefacts}
    for name, data in (artefacts or {}).items():
        if named.get(name) != sha256(data).hex():
            raise VerificationError(f"{name}: not the file that the passport names")
        work.step(f"{name}: is the file that the passport names")
    for name in sorted(set(named) - set(artefacts or {})):
        work.step(f"{name}: NOT CHECKED, the file is not at hand")
    return work.report("passport", facts)


def _check_records(passport: Passport, records: Sequence[Opened[RoundRecord]]) -> None:
    previous: str | None = None
    for number, record in enumerate(records, start=1):
        said = record.subject
        place = (said.order_sha256, said.round, said.previous_sha256)
        if place != (passport.order_sha256, number, previous):
            raise VerificationError(f"records: number {number} does not continue the chain")
        previous = record.digest
    root = sha256(b"".join(bytes.fromhex(record.digest) for record in records)).hex()
    if (previous, root) != (passport.record_sha256, passport.training_root):
        raise VerificationError("records: not those that the passport was made from")


def _entitled(subject: Subject, trust: Trust, also: Collection[str]) -> set[str | None]:
    """Dids that may have signed this document about one record."""
    desks = {trust.hub, trust.sites.get(str(getattr(subject, "site", "")))}
    match subject:
        case Consent() if subject.event in _RESTRICTING:
            return {*also, *desks}
        case KeyEvent() if subject.event == "revoke-all":
            return {*also, *desks}
        case RepresentationEnd():
            return {*also, *desks}
        case Representation():
            return {*also, *(desks - {trust.hub})}
        case _:
            return {*also}


def _restricts(subject: Subject) -> bool:
    return isinstance(subject, (Consent, ConsentReceipt)) and subject.event in _RESTRICTING


def facts_of(opened: Opened[Subject], work: Work) -> dict[str, Json]:
    """What a document says, who signed it and where it stands."""
    place = work.seen[-1]
    return {
        "kind": type(opened.subject).kind,
        "digest": opened.digest,
        "issuer": opened.issuer,
        "signed_by": name_of(opened.issuer, work.trust),
        "at": opened.at,
        "index": place.index,
        "size": place.size,
        "cosigners": sorted(place.cosigners),
        "says": opened.document["credentialSubject"],
    }


def name_of(did: str, trust: Trust) -> str:
    """Whose key it is, by the trust file."""
    if did == trust.hub:
        return "the hub"
    return next((name for name, known in trust.sites.items() if known == did), did)


def object_of(value: Json, where: str) -> dict[str, Json]:
    """`value` as an object."""
    if not isinstance(value, dict):
        raise VerificationError(f"{where}: must be an object")
    return value


def list_of(value: Json, where: str) -> list[Json]:
    """`value` as a list."""
    if not isinstance(value, list):
        raise VerificationError(f"{where}: must be a list")
    return value
