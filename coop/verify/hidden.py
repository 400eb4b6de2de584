"""A receipt in two halves: that something of hers stands in the log, and what it is.

The hidden half holds a salted commitment and its place in the log, and nothing else: whoever gets
it learns that a consent document was logged there, and when others had seen it, and neither whose
it is nor what it says. The other half opens it, to whom the patient gives it. The commitment binds:
no other document and salt fit. Whoever holds document and salt already - the registry, her
hospital - knows the hidden half again.
"""

from collections.abc import Mapping
from typing import Final

from coop.canonical import Json
from coop.documents.consent import Consent
from coop.errors import InvalidInputError
from coop.journal import note
from coop.journal.commitments import commitment, leaf_of
from coop.journal.merkle import leaf_hash, verify_inclusion
from coop.journal.receipts import BadReceiptError, checked_cosigners, parse_proof
from coop.journal.trust import Trust
from coop.keys import iso
from coop.verify.bundles import Report, VerificationError, Work, object_of
from coop.verify.consents import verify_consent

HIDDEN: Final = "hidden-receipt"
_MEMBERS: Final = {"v", "kind", "commitment", "proof"}
_TIME_BYTES: Final = 8  # a cosignature begins with when it was made


def hide(bundle: Mapping[str, Json]) -> tuple[dict[str, Json], dict[str, Json]]:
    """The two halves of a consent's proof file: hidden, and what opens it.

    Raises:
        VerificationError: It is no consent's proof file.
    """
    document, salt, proof = (bundle.get(name) for name in ("document", "salt", "proof"))
    if bundle.get("kind") != Consent.kind or not isinstance(salt, str) or not proof:
        raise VerificationError("file: not the proof file of a decision")
    committed = _commitment(salt, object_of(document, "document"))
    hidden: dict[str, Json] = {"v": 1, "kind": HIDDEN, "commitment": committed, "proof": proof}
    return hidden, {name: value for name, value in bundle.items() if name != "proof"}


def verify_hidden(
    hidden: Mapping[str, Json], trust: Trust, opening: Mapping[str, Json] | None = None
) -> Report:
    """Verify a hidden receipt, and what it says if it is opened.

    Steps: (1) the log signed the checkpoint, and every further signature is a hospital's; (2) the
    commitment stands in that log, as a consent's; (3) `opening` fits the commitment, and both
    together are a consent's proof file that verifies.

    Raises:
        NoteError, BadReceiptError, JournalProofError: (1) or (2) fails, or the opening is another.
        CoopError: (3) fails in another way.
    """
    if set(hidden) != _MEMBERS or hidden["v"] != 1 or hidden["kind"] != HIDDEN:
        raise BadReceiptError(f"hidden receipt: needs v=1 and exactly {sorted(_MEMBERS)}")
    committed = str(hidden["commitment"])
    proof = parse_proof(str(hidden["proof"]))
    # (1)
    seen = note.open_checkpoint(proof.checkpoint, origin=trust.origin, log_did=trust.log)
    cosigners = checked_cosigners(proof.checkpoint, trust)
    # (2)
    leaf = leaf_hash(leaf_of(Consent.kind, committed))
    verify_inclusion(leaf, proof.index, seen.size, proof.hashes, seen.root)
    # (3)
    if opening is not None:
        document = object_of(opening.get("document"), "document")
        if _commitment(str(opening.get("salt")), document) != committed:
            raise BadReceiptError("opening: not what this commitment was made of")
        return verify_consent({**opening, "proof": hidden["proof"]}, trust)
    work = Work(trust=trust)
    times = sorted(
        int.from_bytes(line.signature[:_TIME_BYTES])
        for line in note.signature_lines(proof.checkpoint)
        if line.name in cosigners
    )
    work.step(f"a consent document stands at entry {proof.index} of the log of {seen.size}")
    if len(times) < trust.k:
        work.wait("checkpoint", len(times))
    at = times[max(trust.k, 1) - 1] if len(times) >= max(trust.k, 1) else None
    if at is not None:
        work.step(f"cosigned by {len(times)} (needs {trust.k}), by {iso(at)}")
    work.step("whose it is and what it says: NOT SHOWN, give what opens it with --opening")
    facts: dict[str, Json] = {
        "kind": HIDDEN,
        "index": proof.index,
        "size": seen.size,
        "seen_by": at,
        "cosigners": sorted(cosigners),
    }
    return work.report("consent", facts)


def _commitment(salt: str, document: Mapping[str, Json]) -> str:
    try:
        return commitment(bytes.fromhex(salt), document)
    except ValueError as error:
        raise InvalidInputError("salt: must be 64 hex digits") from error
