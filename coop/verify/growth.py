"""Verifying the log itself: that it extends what it showed before, and that it holds a leaf."""

from collections.abc import Mapping

from coop.canonical import Json, from_b64u
from coop.journal import note
from coop.journal.commitments import kind_of_leaf
from coop.journal.merkle import JournalProofError, leaf_hash, root_of
from coop.journal.receipts import BadReceiptError, check_entry, checked_cosigners
from coop.journal.trust import Trust
from coop.verify.bundles import Report, Work, list_of, verify_log


def verify_growth(export: Mapping[str, Json], older: str, trust: Trust) -> Report:
    """Verify a whole exported log, and that it only grew since an older checkpoint.

    Steps: (1) all of `verify_log`; (2) the log signed the older checkpoint, and every cosignature
    on it is a hospital's; (3) the log is not smaller now; (4) the entries below the older size hash
    to the older root.

    Raises:
        JournalProofError: (3) or (4) fails. The two notes, both signed by the log, convict it.
    """
    # (1)
    report = verify_log(export, trust)
    work = Work(trust=trust, steps=report.steps, waiting=report.waiting)
    # (2)
    seen = note.open_checkpoint(older, origin=trust.origin, log_did=trust.log)
    cosigned = len(checked_cosigners(older, trust))
    work.step(f"older checkpoint: at {seen.size}, signed by the log, cosigned by {cosigned}")
    # (3)
    leaves = list_of(export["entries"], "entries")
    if seen.size > len(leaves):
        raise JournalProofError(
            f"log: had {seen.size} entries and now has {len(leaves)}; keep both files"
        )
    # (4)
    hashed = (leaf_hash(from_b64u(str(leaf))) for leaf in leaves[: seen.size])
    if root_of(hashed) != seen.root:
        raise JournalProofError(
            f"log: its first {seen.size} entries are not those of the older checkpoint; the log "
            "signed both, so keep both files: together they convict it"
        )
    work.step(f"the log of {len(leaves)} extends the log of {seen.size}, entry by entry")
    return work.report("log", {**report.facts, "extends": seen.size})


def verify_entry(proof: bytes, leaf: bytes, trust: Trust) -> Report:
    """Verify a `.tlog-proof` without its document: that the log holds this leaf, and who saw it.

    Steps: (1) the leaf is a kind and a commitment and nothing else; (2) it stands in the log; (3)
    enough hospitals have cosigned, or that is waited for.
    """
    work = Work(trust=trust)
    # (1)
    kind = kind_of_leaf(leaf)
    work.step(f"leaf: a {kind}, and a commitment that hides the rest")
    # (2)
    try:
        text = proof.decode()
    except UnicodeDecodeError as error:
        raise BadReceiptError("proof: is not UTF-8 text") from error
    place = check_entry(text, leaf, trust)
    cosigned = len(place.cosigners)
    work.step(f"leaf: entry {place.index} of the log of {place.size}, cosigned by {cosigned}")
    # (3)
    if cosigned < trust.k:
        work.wait(kind, cosigned)
    facts: dict[str, Json] = {
        "kind": kind,
        "index": place.index,
        "size": place.size,
        "cosigners": sorted(place.cosigners),
    }
    return work.report("entry", facts)
