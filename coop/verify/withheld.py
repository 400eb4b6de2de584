"""The case against a hub that withheld what a patient said: its own two signatures contradict.

In her receipt the hub says that her word stands in the log at an entry; in a lease it says which
word of hers is the newest in a log that holds that entry. If the one it names is older, no honest
hub has signed both, whatever the clocks were.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from consent.chain import OF_THE_HOSPITAL, RESTRICTING, WIDENING, heads_digest, keys_of
from coop.canonical import Json, document_digest
from coop.documents.consent import Consent, ConsentReceipt
from coop.documents.envelope import Opened
from coop.documents.training import Lease
from coop.errors import InvalidInputError, Kind
from coop.journal.receipts import check_bundle
from coop.journal.trust import Trust
from coop.keys import iso
from coop.verify.bundles import Report, VerificationError, Work, object_of, open_as

_EVENTS: Final = WIDENING | RESTRICTING | OF_THE_HOSPITAL
"""Of a consent chain; whatever else is acknowledged says who may speak."""
_MEMBERS: Final = {"v", "lease", "heads"}


class NotConvictedError(InvalidInputError):
    """Receipt and evidence are genuine and do not contradict each other, or not provably."""

    code: ClassVar[str] = "verify.not-convicted"
    kind: ClassVar[Kind] = Kind.CONFLICT


def verify_withheld(
    receipt: Mapping[str, Json], evidence: Mapping[str, Json], trust: Trust
) -> Report:
    """Verify that the hub withheld what a patient said from her hospital.

    Args:
        receipt: The registry's receipt bundle for what she said, or the proof file of that event.
        evidence: What her hospital exports (`coop hospital evidence`).
        trust: Whose word counts for what.

    Steps: (1) the hub signed her receipt; (2) the hub signed the lease, for her hospital; (3) the
    list of heads is the one the lease vouches for; (4) the lease's log holds her entry; (5) the
    head it names for her is older than her entry, or it names only the other of her two: what she
    decided, and who may speak for her. A lease that names nothing of hers convicts nobody.

    Returns:
        The conviction.

    Raises:
        VerificationError: (1), (2) or (3) fails: nobody is convicted by that.
        NotConvictedError: (4) or (5) fails.
    """
    work = Work(trust=trust)
    # (1) A hub that lies may refuse the proof that the log holds it; its word is enough against it.
    said = open_as(ConsentReceipt, _receipt_in(receipt), trust)
    acknowledged = said.subject
    work.step(f"receipt: the hub says {acknowledged.event} stands at entry {acknowledged.index}")
    # (2)
    if not _MEMBERS <= set(evidence) <= _MEMBERS | {"head"} or evidence["v"] != 1:
        raise VerificationError("evidence: needs v=1, lease and heads")
    lease = open_as(Lease, object_of(evidence["lease"], "lease"), trust)
    if lease.subject.site != acknowledged.site:
        raise VerificationError("evidence: a lease for another hospital than the receipt's")
    size = lease.subject.log_size
    work.step(f"lease: the hub signed for {lease.subject.site} at {size} entries")
    # (3)
    heads = {name: str(head) for name, head in object_of(evidence["heads"], "heads").items()}
    if heads_digest(heads) != lease.subject.heads_sha256:
        raise VerificationError("heads: not those that the lease vouches for")
    work.step("heads: those that the lease vouches for")
    # (4)
    if acknowledged.index >= size:
        raise NotConvictedError(f"lease: of {size} entries, before her entry; it need not know it")
    # (5)
    own = acknowledged.pid if acknowledged.event in _EVENTS else keys_of(acknowledged.pid)
    head = heads.get(own)
    if not {acknowledged.pid, keys_of(acknowledged.pid)} & heads.keys():
        raise NotConvictedError(
            "head: the lease names nothing of hers, so the hospital may use nothing of hers; an "
            "erased record looks the same"
        )
    if head is not None:
        _check_older(work, head, said, receipt, evidence)
    work.step("head: older than her entry" if head else "head: the lease names none for her")
    facts: dict[str, Json] = {
        "withheld": acknowledged.event,
        "site": acknowledged.site,
        "pid": acknowledged.pid,
        "index": acknowledged.index,
        "acknowledged_at": said.at,
        "lease_sha256": lease.digest,
        "lease_at": lease.at,
        "log_size": size,
        "head_sha256": head,
    }
    work.step(
        f"the hub acknowledged {acknowledged.event} at {iso(said.at)} and withheld it from "
        f"{acknowledged.site} at {iso(lease.at)}"
    )
    return work.report("withheld", facts)


def _check_older(
    work: Work,
    head: str,
    said: Opened[ConsentReceipt],
    receipt: Mapping[str, Json],
    evidence: Mapping[str, Json],
) -> None:
    """Return if `head` is provably older than what the receipt acknowledges.

    Either the evidence holds that head's document at its place in the log, or the patient's own
    signed event names it as the one before.

    Raises:
        NotConvictedError: It is that event or a later one, or nothing shows which is older.
    """
    if head == said.subject.consent_sha256:
        raise NotConvictedError("head: is exactly what she said; nothing was withheld")
    if "head" in evidence and said.subject.event in _EVENTS:
        shown = check_bundle(object_of(evidence["head"], "head"), work.trust)
        if shown.digest != head:
            raise VerificationError("head: another document than the lease names for her")
        if shown.index > said.subject.index:
            raise NotConvictedError("head: is newer than what she said; nothing was withheld")
        return
    document = receipt.get("document")
    if isinstance(document, dict) and document_digest(document) == said.subject.consent_sha256:
        event = open_as(Consent, document, work.trust, also={str(document.get("issuer"))})
        if event.subject.previous == head:
            return
    raise NotConvictedError(
        "head: nothing here shows whether it is older; ask the hospital for the evidence with --pid"
    )


def _receipt_in(file: Mapping[str, Json]) -> dict[str, Json]:
    inner = file
    if file.get("kind") == Consent.kind:
        inner = object_of(file.get("receipt"), "receipt")
    return object_of(inner.get("document"), "receipt.document")
