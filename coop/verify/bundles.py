"""Verifying one file: a receipt, a consent, a passport, a whole log."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
from coop.documents.envelope import Opened, Subject, open_document
from coop.documents.serving import CohortAnswer, CohortJob, InferenceReceipt
from coop.documents.study import Approval, Study
from coop.documents.training import Lease, Order, Passport, RoundReceipt, RoundRecord, RoundRequest
from coop.errors import InvalidInputError, Kind
from coop.journal import note
from coop.journal.commitments import kind_of_leaf
from coop.journal.merkle import JournalProofError, leaf_hash, root_of
from coop.journal.receipts import Verified, check_bundle, checked_cosigners
from coop.journal.trust import Trust

S = TypeVar("S", bound=Subject)
_RESTRICTING: Final = frozenset({"revoke", "suspend"})


class VerificationError(InvalidInputError):
    """The documents are genuine one by one and do not say what they must say together."""

    code: ClassVar[str] = "verify.failed"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


class Speaker(StrEnum):
    """Who may sign a kind of document."""

    HUB = "the hub"
    SITE = "the hospital it names"
    PATIENT = "a key the hospital enrolled"
    ANYONE = "anyone"


_KINDS: Final[Mapping[str, tuple[type[Subject], Speaker]]] = {
    kind.kind: (kind, speaker)
    for speaker, kinds in {
        Speaker.HUB: (
            *(ConsentReceipt, Order, Lease, RoundRequest, RoundRecord, Passport),
            *(InferenceReceipt, CohortJob, DividendWindow),
        ),
        Speaker.SITE: (Enrolment, Approval, RoundReceipt, CohortAnswer, UseStatement),
        Speaker.PATIENT: (Consent, UseRequest),
        Speaker.ANYONE: (Study,),
    }.items()
    for kind in kinds
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was verified, step by step."""

    what: str
    steps: list[str]
    facts: dict[str, Json]
    witnessed: bool
    """Every checkpoint was cosigned by at least k hospitals of the trust file."""

    def to_json(self) -> dict[str, Json]:
        """For `--json`."""
        steps: list[Json] = list(self.steps)
        return {
            "ok": True,
            "what": self.what,
            "witnessed": self.witnessed,
            "steps": steps,
            **self.facts,
        }


@dataclass(slots=True, kw_only=True)
class Work:
    """The steps and checkpoints met while verifying one file."""

    trust: Trust
    steps: list[str] = field(default_factory=list)
    seen: list[Verified] = field(default_factory=list)

    def step(self, text: str) -> None:
        """Note what was checked."""
        self.steps.append(text)

    def logged(
        self, kind: type[S], value: Json, *, enrolment: Opened[Enrolment] | None = None
    ) -> Opened[S]:
        """Open a receipt bundle of `kind`: proof, signature and issuer verified."""
        bundle = object_of(value, kind.kind)
        verified = check_bundle(bundle, self.trust)
        if verified.kind != kind.kind:
            raise VerificationError(f"{kind.kind}: the bundle holds a {verified.kind}")
        for other in self.seen:
            if other.size == verified.size and other.root != verified.root:
                raise JournalProofError("checkpoint: two roots of one size: the log was forked")
        opened = open_as(kind, verified.document, self.trust, enrolment=enrolment)
        self.seen.append(verified)
        self.step(
            f"{kind.kind}: signed by {_name_of(opened.issuer, self.trust)}, "
            f"entry {verified.index} of the log of {verified.size}, "
            f"cosigned by {len(verified.cosigners)} (needs {self.trust.k})"
        )
        return opened

    def report(self, what: str, facts: Mapping[str, Json]) -> Report:
        """The report of all steps so far."""
        witnessed = all(len(one.cosigners) >= self.trust.k for one in self.seen)
        return Report(what=what, steps=self.steps, facts=dict(facts), witnessed=witnessed)


def open_as(
    kind: type[S],
    document: Mapping[str, Json],
    trust: Trust,
    *,
    enrolment: Opened[Enrolment] | None = None,
) -> Opened[S]:
    """Open a document of `kind`, signed by whoever may say this.

    Raises:
        WrongDocumentError: Of another kind or shape.
        BadSignatureError: Not signed by its issuer.
        VerificationError: Its issuer may not say this.
    """
    opened = open_document(kind, document, issuers=None)
    speaker = _KINDS[kind.kind][1]
    allowed: set[str | None]
    match speaker:
        case Speaker.HUB:
            allowed = {trust.hub}
        case Speaker.SITE:
            allowed = {trust.sites.get(str(getattr(opened.subject, "site", "")))}
        case Speaker.PATIENT:
            allowed = _consenting(opened.subject, trust, enrolment)
        case Speaker.ANYONE:
            allowed = {opened.issuer}
    if opened.issuer not in allowed:
        missing = speaker is Speaker.PATIENT and enrolment is None
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
    if kind not in _KINDS:
        raise VerificationError(f"kind: {kind!r} is no kind of document")
    return open_as(_KINDS[kind][0], document, trust)


def verify_receipt(bundle: Mapping[str, Json], trust: Trust) -> Report:
    """Verify any receipt bundle: in the log, signed, and by whoever may say this."""
    work = Work(trust=trust)
    kind = str(bundle.get("kind"))
    if kind not in _KINDS:
        raise VerificationError(f"kind: {kind!r} is no kind of document")
    if kind == Consent.kind:
        return verify_consent(bundle, trust)
    opened = work.logged(_KINDS[kind][0], dict(bundle))
    return work.report("receipt", _facts(opened, work))


def verify_consent(bundle: Mapping[str, Json], trust: Trust) -> Report:
    """Verify a consent: the registry's receipt, or the patient's own document.

    The patient's document may carry two more members: `enrolment` (the hospital's word that her key
    speaks for the record) and `receipt` (the registry's receipt bundle for it). Steps: (1) the
    enrolment is signed by the hospital; (2) the consent is logged and signed by that key, or
    restricts and is signed by the hub or the hospital; (3) the receipt names exactly this entry.
    """
    work = Work(trust=trust)
    if bundle.get("kind") == ConsentReceipt.kind:
        opened = work.logged(ConsentReceipt, dict(bundle))
        if opened.subject.index >= work.seen[-1].index:
            raise VerificationError("consent-receipt: logged before the consent it acknowledges")
        return work.report("consent", _facts(opened, work))
    plain = {name: value for name, value in bundle.items() if name not in ("enrolment", "receipt")}
    # (1)
    enrolment = None
    if "enrolment" in bundle:
        enrolment = _enrolment(work, object_of(bundle["enrolment"], "enrolment"))
    # (2)
    consent = work.logged(Consent, plain, enrolment=enrolment)
    place = work.seen[-1]
    # (3)
    if "receipt" in bundle:
        receipt = work.logged(ConsentReceipt, bundle["receipt"]).subject
        named = (receipt.consent_sha256, receipt.pid, receipt.event, receipt.index, receipt.salt)
        event = consent.subject
        if named != (consent.digest, event.pid, event.event, place.index, place.salt):
            raise VerificationError("consent-receipt: acknowledges another consent than this one")
        work.step("consent-receipt: names exactly this entry")
    return work.report("consent", {**_facts(consent, work), "index": place.index})


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
    names = ", ".join(sorted(cosigners)) or "nobody yet"
    work.step(f"cosigned by {len(cosigners)} (needs {trust.k}): {names}")
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
    report = work.report("log", facts)
    witnessed = len(cosigners) >= trust.k
    return Report(what="log", steps=report.steps, facts=report.facts, witnessed=witnessed)


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
    facts = _facts(passport, work)
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


def _enrolment(work: Work, value: dict[str, Json]) -> Opened[Enrolment]:
    if "document" in value:
        return work.logged(Enrolment, value)
    opened = open_as(Enrolment, value, work.trust)
    work.step(f"enrolment: signed by {_name_of(opened.issuer, work.trust)}")
    return opened


def _consenting(
    consent: Subject, trust: Trust, enrolment: Opened[Enrolment] | None
) -> set[str | None]:
    """Dids that may have signed this consent event."""
    if not isinstance(consent, Consent):
        return set()
    allowed: set[str | None] = set()
    if enrolment is not None:
        spoken_for = (enrolment.subject.pid, enrolment.subject.site)
        if spoken_for != (consent.pid, consent.site):
            raise VerificationError("enrolment: for another record than the consent")
        allowed.add(enrolment.subject.key)
    if consent.event in _RESTRICTING:
        allowed |= {trust.hub, trust.sites.get(consent.site)} - {None}
    return allowed


def _facts(opened: Opened[S], work: Work) -> dict[str, Json]:
    place = work.seen[-1]
    return {
        "kind": type(opened.subject).kind,
        "digest": opened.digest,
        "issuer": opened.issuer,
        "signed_by": _name_of(opened.issuer, work.trust),
        "at": opened.at,
        "index": place.index,
        "size": place.size,
        "cosigners": sorted(place.cosigners),
        "says": opened.document["credentialSubject"],
    }


def _name_of(did: str, trust: Trust) -> str:
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
