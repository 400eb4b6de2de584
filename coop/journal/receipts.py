"""Receipts: a signed document and the proof that it stands in the cosigned log.

The proof is a C2SP `tlog-proof`. A bundle is checked against a trust file alone, offline. Every
byte of it is covered by a signature, a hash or a strict form, so a bundle with any byte changed
does not verify.

Core: pure, no I/O.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from coop.canonical import Json, document_digest
from coop.errors import InvalidInputError, Kind
from coop.journal import note
from coop.journal.commitments import SALT_BYTES, Logged, commitment_of_digest, leaf_of
from coop.journal.merkle import PROOF_HASHES_MAX, leaf_hash, verify_inclusion
from coop.journal.trust import Trust
from coop.passkeys import verify_signed

_HEADER: Final = "c2sp.org/tlog-proof@v1"
_MEMBERS: Final = {"v", "kind", "document", "salt", "proof"}
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")
_SALT: Final = re.compile(rf"[0-9a-f]{{{2 * SALT_BYTES}}}")


class BadReceiptError(InvalidInputError):
    """The receipt is malformed or does not prove what it claims."""

    code: ClassVar[str] = "receipt.invalid"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class TlogProof:
    """The parts of a `.tlog-proof`, unverified."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a leaf verifiably stands in the log."""

    index: int
    size: int
    """Of the log under the checkpoint in the proof."""
    root: bytes
    cosigners: frozenset[str]
    """Hospitals of the trust file that saw the log grow to here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A document that verifiably stands in the log."""

    kind: str
    document: dict[str, Json]
    digest: str
    issuer: str
    """Who signed it. Whether they may say this is the caller's to decide."""
    salt: str
    index: int
    size: int
    """Of the log under the checkpoint in the receipt."""
    root: bytes
    cosigners: frozenset[str]
    """Hospitals of the trust file that saw the log grow to here."""


def proof_text(index: int, hashes: Sequence[bytes], checkpoint: str) -> str:
    """The text of a `.tlog-proof`."""
    lines = [_HEADER, f"index {index}", *(note.to_base64(part) for part in hashes), "", checkpoint]
    return "\n".join(lines)


def parse_proof(text: str) -> TlogProof:
    """Read a `.tlog-proof`.

    Raises:
        BadReceiptError: Not in the form that `proof_text` writes.
    """
    head, blank, checkpoint = text.partition("\n\n")
    header, *lines = head.split("\n")
    found = _INDEX.fullmatch(lines[0]) if lines else None
    if not blank or header != _HEADER or found is None or len(lines) - 1 > PROOF_HASHES_MAX:
        raise BadReceiptError(f"proof: must begin with {_HEADER}, the index and the hashes")
    hashes = tuple(note.from_base64(line) for line in lines[1:])
    return TlogProof(index=int(found[1]), hashes=hashes, checkpoint=checkpoint)


def bundle_of(
    kind: str,
    document: Mapping[str, Json],
    logged: Logged,
    proof: Sequence[bytes],
    checkpoint: str,
) -> dict[str, Json]:
    """The receipt bundle of a logged document."""
    return {
        "v": 1,
        "kind": kind,
        "document": dict(document),
        "salt": logged.salt,
        "proof": proof_text(logged.index, proof, checkpoint),
    }


def foreign_form(bundle: Mapping[str, Json]) -> tuple[bytes, bytes]:
    """(leaf, `.tlog-proof`) of a receipt that was verified: all that a foreign tool needs."""
    document = bundle["document"]
    if not isinstance(document, dict):
        raise BadReceiptError("receipt: document must be an object")
    salt = bytes.fromhex(str(bundle["salt"]))
    leaf = leaf_of(str(bundle["kind"]), commitment_of_digest(salt, document_digest(document)))
    return leaf, str(bundle["proof"]).encode()


def check_bundle(bundle: Mapping[str, Json], trust: Trust) -> Verified:
    """Verify a receipt against the trust file alone.

    Steps:
      (1) the bundle has exactly its members, in their strict forms;
      (2) the log of the trust file signed the checkpoint;
      (3) the leaf made from kind, salt and document is in the tree of that checkpoint;
      (4) every further signature is a cosignature of a hospital in the trust file and verifies;
      (5) the document's own proof verifies. **The caller** decides whether its issuer may say this.

    Raises:
        BadReceiptError: (1) or (4) fails.
        NoteError: (2) fails.
        JournalProofError: (3) fails.
        BadSignatureError: (5) fails.
    """
    # (1)
    kind, document, salt = bundle.get("kind"), bundle.get("document"), bundle.get("salt")
    version = bundle.get("v")
    if set(bundle) != _MEMBERS or version != 1 or isinstance(version, bool):
        raise BadReceiptError(f"receipt: needs v=1 and exactly {sorted(_MEMBERS)}")
    if not isinstance(kind, str) or not isinstance(document, dict):
        raise BadReceiptError("receipt: kind must be a text and document an object")
    if not isinstance(salt, str) or not _SALT.fullmatch(salt):
        raise BadReceiptError("receipt: salt must be 64 hex digits")
    digest = document_digest(document)
    leaf = leaf_of(kind, commitment_of_digest(bytes.fromhex(salt), digest))
    # (2), (3), (4)
    place = check_entry(str(bundle["proof"]), leaf, trust)
    # (5)
    issuer = verify_signed(document, trust.passkeys)
    return Verified(
        kind=kind,
        document=document,
        digest=digest,
        issuer=issuer,
        salt=salt,
        index=place.index,
        size=place.size,
        root=place.root,
        cosigners=place.cosigners,
    )


def check_entry(text: str, leaf: bytes, trust: Trust) -> Entry:
    """Verify a `.tlog-proof` of `leaf` against the trust file alone: (2) to (4) of `check_bundle`.

    Raises:
        BadReceiptError, NoteError, JournalProofError: It does not show that the log holds the leaf.
    """
    proof = parse_proof(text)
    # (2)
    checkpoint = note.open_checkpoint(proof.checkpoint, origin=trust.origin, log_did=trust.log)
    # (3)
    verify_inclusion(leaf_hash(leaf), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    # (4)
    cosigners = checked_cosigners(proof.checkpoint, trust)
    return Entry(index=proof.index, size=checkpoint.size, root=checkpoint.root, cosigners=cosigners)


def checked_cosigners(text: str, trust: Trust) -> frozenset[str]:
    """Who of the trust file cosigned; a signature by anyone else, or a broken one, is refused.

    Stricter than a witness network's notes, where unknown lines are skipped: a receipt must hold
    nothing that its reader cannot verify.
    """
    found = note.cosigners(text, trust.sites)
    names = [line.name for line in note.signature_lines(text)]
    for name in names:
        if name != trust.origin and name not in found:
            raise BadReceiptError(
                f"checkpoint: the signature of {name!r} does not verify under your trust file; "
                "the receipt was changed, or the file does not know this member"
            )
    if len(set(names)) != len(names):
        raise BadReceiptError("checkpoint: someone signed twice")
    return frozenset(found)
