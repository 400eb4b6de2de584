"""An audit of a round's cohort: what this hospital opens, to the auditor the cooperative chose.

The auditor learns which pids here have a consent document and the digest of each one's newest (as
the hub does), whose places the challenge named and what those patients signed, and from the number
of dummies among the places about how large the cohort is. Nobody else learns anything: the file is
handed over by hand, and the receipt in the log stays what it was. A round is opened for one
challenge: with a second one an auditor would see further members, with many of them all.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa

from consent.chain import cosigners_needed
from consent.proofs.cohort import (
    MEMBERS,
    Arranged,
    Leaf,
    arrange,
    challenge,
    places_max,
    places_of,
)
from coop.canonical import Json, parse_object
from coop.db import insert_ignore, metadata
from coop.documents.envelope import Opened, open_document
from coop.documents.training import Lease, RoundReceipt
from coop.errors import CoopError, InvalidInputError, Kind, NotFoundError
from coop.journal import note
from coop.journal.commitments import Logged
from coop.journal.merkle import Tree
from coop.journal.receipts import bundle_of, check_bundle
from federated import answers, budget, mirror_store
from federated.evidence import NoEvidenceError, of_lease
from federated.mirror_store import mirror_document, mirror_lease
from federated.site import Site

cohort_audit = sa.Table(
    "cohort_audit",
    metadata,
    sa.Column("receipt_sha256", sa.String(64), primary_key=True),
    sa.Column("checkpoint", sa.Text, nullable=False),
    sa.Column("members", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
"""What was opened, by the round's receipt: the challenge's checkpoint, for how many members."""

cohort_audit_pid = sa.Table(
    "cohort_audit_pid",
    metadata,
    sa.Column("receipt_sha256", sa.ForeignKey("cohort_audit.receipt_sha256"), primary_key=True),
    sa.Column("pid", sa.String(26), primary_key=True),
    sa.Index("ix_cohort_audit_pid_pid", "pid"),
)
"""Whose membership an auditor was shown: it stands on each one's list of uses."""

MEMBERS_MAX: Final = 10_000  # of one audit: a file of some 50 MB
_LEASES_LOOKED_AT: Final = 2000  # the first lease after a receipt mostly has it


class AuditedBeforeError(CoopError):
    """This round was opened before, for another challenge or for fewer members."""

    code = "audit.answered"
    kind = Kind.CONFLICT


class NotWitnessedYetError(CoopError):
    """No checkpoint after the receipt has been cosigned by enough other hospitals so far."""

    code = "audit.not-witnessed"
    kind = Kind.CONFLICT


def opened(
    site: Site,
    chain: Mapping[str, Any],
    *,
    members: int = MEMBERS,
    checkpoint: str | None = None,
    now: int,
) -> dict[str, Any]:
    """The file that `coop verify cohort` reads, about this hospital's part in one round.

    Args:
        site: This hospital.
        chain: The round's documents, as the hub gives them (`/v1/rounds/{order}/chains/{number}`).
        members: How many members the auditor asked for.
        checkpoint: A signed checkpoint that the auditor chose for the challenge; by default the
            first one after the receipt that enough other hospitals had cosigned.
        now: UTC seconds.

    Steps: (1) find this hospital's receipt and what was stored with its answer; (2) the checkpoint,
    of the log that is mirrored here, and the one for which the round was opened if it was; (3) the
    places that its challenge names; (4) for each member among them, every document of hers.

    Raises:
        NotFoundError: This hospital has no accepted receipt in that round.
        NotWitnessedYetError: (2) There is no such checkpoint yet.
        AuditedBeforeError: (2) It was opened for another, or for fewer members.
        NoEvidenceError: What the leases vouched for is not all here any more.
    """
    if not 1 <= members <= MEMBERS_MAX:
        raise InvalidInputError(f"openings: must be from 1 to {MEMBERS_MAX}")
    # (1)
    receipt, place = _own_receipt(site, chain)
    made = _arranged(site, receipt)
    said = receipt.subject
    # (2)
    tree = mirror_store.stored_tree(site)
    text = _challenging(site, tree, place.index, checkpoint)
    # Durable before anything is opened: a crash here leaves the one challenge that may be answered.
    text = _once(site, receipt.digest, text, members, chosen=checkpoint is not None, now=now)
    seen = note.parse_checkpoint(text)
    # (3)
    cosigners = note.cosigners(text, _others(site))
    lines = [line.text for line in note.signature_lines(text) if line.name in cosigners]
    drawn = challenge(said.cohort_commitment, receipt.digest, seen.body, lines)
    # (4)
    start = of_lease(site, said.lease_sha256)
    end = of_lease(site, said.release_lease_sha256)
    ends_at = end["lease"]["credentialSubject"]["log_size"]
    documents = _Documents(site, tree, seen.size, ends_at)
    before, after = start["heads"], end["heads"]
    proof = tree.inclusion(place.index, seen.size)
    openings, shown = _openings(made, drawn, members, documents)
    # On their lists before anybody sees them: a crash here lists more than was shown, never less.
    with site.database.unit_of_work() as connection:
        for pid in shown:
            row: dict[str, object] = {"receipt_sha256": receipt.digest, "pid": pid}
            insert_ignore(connection, cohort_audit_pid, row)
    return {
        "v": 1,
        "study": chain["study"],
        "order": chain["order"],
        "record": chain["record"],
        "receipt": bundle_of(RoundReceipt.kind, receipt.document, place, proof, text),
        "lease": start["lease"],
        "heads": before,
        "release_lease": end["lease"],
        "release_heads": {
            name: after.get(name)
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        },
        "root": made.tree.root().hex(),
        "places": len(made.leaves),
        "openings": openings,
    }


def _own_receipt(site: Site, chain: Mapping[str, Any]) -> tuple[Opened[RoundReceipt], Logged]:
    receipts = chain.get("receipts")
    for bundle in receipts if isinstance(receipts, list) else ():
        verified = check_bundle(bundle, site.trust)
        if verified.kind == RoundReceipt.kind and verified.issuer == site.key.did:
            receipt = open_document(RoundReceipt, verified.document, issuers={site.key.did})
            place = Logged(index=verified.index, digest=verified.digest, salt=verified.salt)
            return receipt, place
    raise NotFoundError("round: the hub accepted no receipt of this hospital in it")


def _arranged(site: Site, receipt: Opened[RoundReceipt]) -> Arranged:
    with site.database.reading() as connection:
        kept = answers.by_document(connection, receipt.digest)
        if kept is None:
            raise NoEvidenceError("round: its answer is not here; was a backup put back?")
        members = budget.cohort_of(connection, kept.debit_sequence)
    made = arrange(members, kept.places, bytes.fromhex(kept.seed))
    if made.commitment != receipt.subject.cohort_commitment:
        raise NoEvidenceError("round: what is stored here is not what the receipt commits to")
    return made


def _others(site: Site) -> dict[str, str]:
    return {name: did for name, did in site.trust.sites.items() if name != site.name}


def _challenging(site: Site, tree: Tree, index: int, chosen: str | None) -> str:
    """The checkpoint that makes the challenge."""
    others, trust = _others(site), site.trust
    needed = cosigners_needed(len(others) + 1)
    for text in _candidates(site, index) if chosen is None else (chosen,):
        seen = note.open_checkpoint(text, origin=trust.origin, log_did=trust.log)
        if index < seen.size <= tree.size and len(note.cosigners(text, others)) >= needed:
            if tree.root(seen.size) != seen.root:
                raise InvalidInputError("checkpoint: of another log than the one mirrored here")
            return text
    raise NotWitnessedYetError(
        f"checkpoint: needs one that holds entry {index} and that {needed} other hospitals cosigned"
    )


def _candidates(site: Site, index: int) -> Iterator[str]:
    """Checkpoints that came with leases after this entry, oldest first."""
    query = (
        sa.select(mirror_lease.c.document)
        .where(mirror_lease.c.log_size > index)
        .order_by(mirror_lease.c.sequence)
        .limit(_LEASES_LOOKED_AT)
    )
    with site.database.reading() as connection:
        texts = list(connection.execute(query).scalars())
    for text in texts:
        yield open_document(Lease, parse_object(text), issuers=None).subject.checkpoint


def _once(site: Site, receipt: str, text: str, members: int, *, chosen: bool, now: int) -> str:
    """The checkpoint for which this round is opened, now and ever after."""
    with site.database.unit_of_work() as connection:
        values = {"checkpoint": text, "members": members, "at": now}
        insert_ignore(connection, cohort_audit, {"receipt_sha256": receipt, **values})
        same = cohort_audit.c.receipt_sha256 == receipt
        kept = connection.execute(sa.select(cohort_audit).where(same)).one()
    other = note.parse_checkpoint(kept.checkpoint).body != note.parse_checkpoint(text).body
    if members > kept.members or (chosen and other):
        raise AuditedBeforeError(
            f"round: opened before for {kept.members} members; the same can be given again, and "
            "nothing for another checkpoint or for more members"
        )
    return str(kept.checkpoint)


class _Documents:
    """Every document about a record here below one size of the log, with its proof."""

    def __init__(self, site: Site, tree: Tree, size: int, below: int) -> None:
        self._site = site
        self._tree = tree
        self._size = size
        self._below = below

    def of(self, pid: str) -> list[dict[str, Json]]:
        """Those about one record, in the order of the log."""
        query = (
            sa.select(mirror_document)
            .where(mirror_document.c.pid == pid, mirror_document.c.log_index < self._below)
            .order_by(mirror_document.c.log_index)
        )
        with self._site.database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            {
                "kind": row.kind,
                "index": row.log_index,
                "salt": row.salt,
                "document": parse_object(row.document),
                "proof": _texts(self._tree.inclusion(row.log_index, self._size)),
            }
            for row in rows
        ]


def _openings(
    made: Arranged, drawn: bytes, members: int, documents: _Documents
) -> tuple[list[dict[str, Json]], list[str]]:
    """The places opened, and whose they are."""
    given: list[dict[str, Json]] = []
    shown: list[str] = []
    size = len(made.leaves)
    for place in islice(places_of(drawn, size), places_max(size, members)):
        if len(shown) == members:
            break
        leaf = made.leaves[place]
        given.append(_opening(leaf, made.tree.inclusion(place), documents))
        shown += [leaf.pid] if leaf.pid is not None else []
    return given, shown


def _opening(leaf: Leaf, proof: list[Any], documents: _Documents) -> dict[str, Json]:
    one: dict[str, Json] = {"salt": leaf.salt, "proof": _texts(proof)}
    if leaf.pid is None:
        return one
    shown: list[Json] = list(documents.of(leaf.pid))
    return {**one, "member": {"pid": leaf.pid, "consent": leaf.consent, "documents": shown}}


def _texts(hashes: list[Any]) -> list[Json]:
    return [note.to_base64(part) for part in hashes]
