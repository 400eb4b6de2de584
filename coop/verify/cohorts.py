"""Verifying an audited cohort: the members that a challenge named had permitted the round.

The challenge comes from signatures made after the hospital had committed to its cohort; who is
opened was nobody's choice (`consent.proofs.cohort`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from consent.chain import heads_digest
from consent.decide import Request
from consent.proofs import cohort
from consent.proofs.cohort import MEMBERS, MICRO, CohortProofError, Leaf
from consent.questions import question_of
from coop.canonical import Json
from coop.documents.audit import CohortAudit, Opening
from coop.documents.envelope import Opened
from coop.documents.study import Study
from coop.documents.training import Lease, Order, RoundReceipt, RoundRecord
from coop.errors import InvalidInputError, Kind
from coop.journal import note
from coop.journal.merkle import verify_inclusion
from coop.journal.receipts import Verified, parse_proof
from coop.journal.trust import Trust
from coop.verify.bundles import Report, VerificationError, Work, open_as
from coop.verify.permits import Held, NoPermitError, Whose, check_permits

_CONFIDENCE_MICRO: Final = 950_000
_ONE_PERCENT: Final = 10  # of a thousand
_ACTIONS: Final[Mapping[str, str]] = {"train": "train-federated", "evaluate": "evaluate"}


class ChallengeError(InvalidInputError):
    """Nobody but the log and this hospital had a hand in the challenge, or it is another one."""

    code: ClassVar[str] = "audit.challenge"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    file: CohortAudit
    study: Opened[Study]
    order: Opened[Order]
    receipt: Opened[RoundReceipt]
    place: Verified
    """Of the receipt in the log, under the checkpoint that makes the challenge."""
    log: note.Checkpoint


def verify_cohort(
    file: Mapping[str, Json],
    trust: Trust,
    *,
    members: int = MEMBERS,
    checkpoint: str | None = None,
) -> Report:
    """Verify a hospital's answer to an audit of one round's cohort.

    Args:
        file: What the hospital opened (`coop hospital audit`).
        trust: Whose word counts for what.
        members: How many members the auditor asked for.
        checkpoint: The signed checkpoint that the auditor chose for the challenge, if so.

    Steps: (1) study, order, receipt and record are logged, signed and of one round, whose record
    accepts the receipt; (2) the hub signed both leases that the receipt names, and the chain heads
    are those they vouch for; (3) enough hospitals beside this one cosigned the checkpoint that
    makes the challenge, in whose log the receipt stands; (4) the places opened are the first ones
    the challenge asks for, as many as it takes, and each is in the tree that the receipt commits
    to; (5) each member opened had permitted the use under both leases.

    Raises:
        AuditFileError, VerificationError: (1) or (2) fails.
        ChallengeError: (3) fails.
        CohortProofError: (4) fails.
        NoPermitError: (5) fails.
    """
    work = Work(trust=trust)
    # (1)
    read = _read(work, CohortAudit.read(dict(file)))
    said = read.receipt.subject
    # (2)
    leases = _leases(work, read)
    # (3)
    drawn = _challenge(work, read, checkpoint)
    # (4)
    opened = list(_opened(read, drawn, members))
    found = {place: one.member for place, one in opened if one.member is not None}
    work.step(f"places: the first {len(opened)} that the challenge names, of {read.file.places}")
    # (5)
    whose = Whose(trust=trust, site=said.site, log=read.log)
    for place, member in found.items():
        try:
            check_permits(whose, member, leases)
        except NoPermitError as error:
            raise NoPermitError(f"place {place}: {error.message}") from error
    work.step(f"members: {len(found)} opened, all had permitted it, at the start and at the end")
    facts = _facts(work, read, len(opened), len(found), chosen=checkpoint is not None)
    return work.report("cohort", facts)


def _read(work: Work, file: CohortAudit) -> _Read:
    study = work.logged(Study, file.study)
    order = work.logged(Order, file.order)
    receipt = work.logged(RoundReceipt, file.receipt)
    place = work.seen[-1]
    record = work.logged(RoundRecord, file.record).subject
    said, ordered = receipt.subject, order.subject
    if ordered.study_sha256 != study.digest or said.order_sha256 != order.digest:
        raise VerificationError("receipt: of another order or study than the file's")
    if (record.order_sha256, record.phase, record.round) != (order.digest, said.phase, said.round):
        raise VerificationError("record: of another round than the receipt")
    if (said.site, receipt.digest) not in {(a.site, a.receipt_sha256) for a in record.accepted}:
        raise VerificationError("record: does not accept this receipt, so no model was made of it")
    work.step(f"round {said.round} of {ordered.study_id}: the hub accepted {said.site}'s receipt")
    if cohort.commitment(bytes.fromhex(file.root), file.places) != said.cohort_commitment:
        raise CohortProofError("root: not what the receipt commits to")
    text = parse_proof(str(file.receipt["proof"])).checkpoint
    log = note.parse_checkpoint(text)  # its signature was verified with the receipt's bundle
    return _Read(file=file, study=study, order=order, receipt=receipt, place=place, log=log)


def _leases(work: Work, read: _Read) -> list[Held]:
    """The lease under which the cohort was drawn up, and the one under which the answer left."""
    file, said = read.file, read.receipt.subject
    start = open_as(Lease, file.lease, work.trust)
    end = open_as(Lease, file.release_lease, work.trust)
    if (start.digest, end.digest) != (said.lease_sha256, said.release_lease_sha256):
        raise VerificationError("lease: not the ones that the receipt names")
    if not start.subject.log_size <= end.subject.log_size <= read.place.index:
        raise VerificationError("lease: of a log that holds the receipt already")
    later = file.heads | {pid: head or "" for pid, head in file.release_heads.items()}
    heads = (file.heads, {pid: head for pid, head in later.items() if head})
    # Whatever the hospital's clock said when it asked: within the lease, and before it signed.
    asked = (
        (start.at, start.at + start.subject.seconds, read.receipt.at),
        (read.receipt.at,),
    )
    held = []
    for lease, vouched, instants in zip((start, end), heads, asked, strict=True):
        if lease.subject.site != said.site or heads_digest(vouched) != lease.subject.heads_sha256:
            raise VerificationError("lease: for another hospital, or it vouches for other heads")
        held.append(
            Held(
                log_size=lease.subject.log_size,
                cosigned_size=_cosigned(work.trust, lease.subject),
                heads=vouched,
                requests=[_request(read, at) for at in instants],
            )
        )
    work.step("leases: the hub's, for this hospital, and the chain heads are those they vouch for")
    return held


def _cosigned(trust: Trust, lease: Lease) -> int:
    """The size of the log that enough other hospitals had seen."""
    if trust.k == 0:
        return lease.log_size
    seen = note.open_checkpoint(lease.checkpoint, origin=trust.origin, log_did=trust.log)
    others = {name: did for name, did in trust.sites.items() if name != lease.site}
    return seen.size if len(note.cosigners(lease.checkpoint, others)) >= trust.k else 0


def _request(read: _Read, at: int) -> Request:
    study = read.study.subject
    action = _ACTIONS[read.receipt.subject.phase]
    return question_of(study, action, at, epsilon_micro=study.budget.epsilon_micro)  # type: ignore[arg-type]  # one of the two


def _challenge(work: Work, read: _Read, chosen: str | None) -> bytes:
    text = parse_proof(str(read.file.receipt["proof"])).checkpoint
    site, trust = read.receipt.subject.site, work.trust
    others = sorted(read.place.cosigners - {site})
    if len(others) < trust.k:
        raise ChallengeError(
            f"challenge: only {len(others)} of {trust.k} other hospitals cosigned its checkpoint"
        )
    if chosen is not None and note.parse_checkpoint(chosen).body != read.log.body:
        raise ChallengeError("challenge: from another checkpoint than the one you chose")
    after = read.log.size - read.place.index - 1
    by = ", ".join(others) or "nobody: the hub alone could try out which members it names"
    work.step(
        f"challenge: from the log of {read.log.size}, {after} entries after the receipt, "
        f"cosigned by {by}"
    )
    lines = [line.text for line in note.signature_lines(text) if line.name in others]
    if chosen is None:
        work.step("that no other checkpoint was tried before: NOT CHECKED, give --checkpoint")
    else:
        # Which cosignatures are on it is part of the draw: leaving some out would be a new draw.
        named = set(trust.sites) - {site}
        given = {line.text for line in note.signature_lines(chosen) if line.name in named}
        if given != set(lines):
            raise ChallengeError("challenge: from other cosignatures than those you chose")
    committed = read.receipt.subject.cohort_commitment
    return cohort.challenge(committed, read.receipt.digest, read.log.body, lines)


def _opened(read: _Read, drawn: bytes, members: int) -> Iterator[tuple[int, Opening]]:
    """The openings with their places, checked against the commitment."""
    file, root = read.file, bytes.fromhex(read.file.root)
    given = iter(file.openings)
    pids: set[str] = set()
    wanted = cohort.places_of(drawn, file.places)
    for _ in range(cohort.places_max(file.places, members)):
        if len(pids) == members:
            break
        place, one = next(wanted), next(given, None)
        if one is None:
            raise CohortProofError("openings: fewer than the challenge asks for")
        named = one.member
        leaf = Leaf(salt=one.salt) if named is None else _leaf(one)
        proof = [note.from_base64(part) for part in one.proof]
        verify_inclusion(leaf.hashed(), place, file.places, proof, root)
        if named is not None and named.pid in pids:
            raise CohortProofError(f"place {place}: opens to somebody who was opened before")
        pids |= {named.pid} if named is not None else set()
        yield place, one
    if next(given, None) is not None:
        raise CohortProofError("openings: more than the challenge asks for")


def _leaf(one: Opening) -> Leaf:
    named = one.member
    return Leaf(
        salt=one.salt,
        pid=named.pid if named else None,
        consent=named.consent if named else None,
    )


def _facts(work: Work, read: _Read, places: int, members: int, *, chosen: bool) -> dict[str, Json]:
    said, size = read.receipt.subject, read.file.places
    everybody = places == size
    at_most = size - (places - members)
    caught: int | None = MICRO if everybody else None
    share = None
    if chosen and not everybody:
        caught = cohort.caught_micro(members, at_most, _ONE_PERCENT)
        share = cohort.surely_found(members, at_most, _CONFIDENCE_MICRO)
    if everybody:
        work.step("every member was opened: a single one without a permit would have been found")
    elif caught is None:
        work.step(
            "how likely it would have failed: NOT STATED, whoever chooses the checkpoint chooses "
            "whom to open; give --checkpoint"
        )
    else:
        work.step(
            f"had 1 % or more of the cohort had no permit, this audit would have failed with a "
            f"probability of {_percent(caught)} or more"
        )
        if share is not None:
            work.step(f"it would have failed with 95 % or more from {_tenths(share)} % on")
    work.step("that the hospital computed with these members and no others: CANNOT BE SHOWN")
    return {
        "site": said.site,
        "study_id": read.study.subject.study_id,
        "version": read.study.subject.version,
        "order_sha256": said.order_sha256,
        "phase": said.phase,
        "round": said.round,
        "receipt_sha256": read.receipt.digest,
        "challenge_size": read.log.size,
        "places": size,
        "opened": places,
        "members": members,
        "everybody": everybody,
        "one_percent_found_micro": caught,
        "found_at_permille": share,
    }


def _percent(micro: int) -> str:
    """Rounded down, so that it stays a promise."""
    return f"{micro // 10_000}.{micro // 1000 % 10} %"


def _tenths(permille: int) -> str:
    return f"{permille // 10}.{permille % 10}"
