"""What a lease vouched for, in a form that others can check: for a patient's case against the hub.

The hub signs in every lease a digest of all chain heads here. Held against a patient's receipt,
which the hub signed too, a head that is older than the receipt convicts the hub of having withheld
what she said (`coop verify withheld`). The file names every pseudonym at this hospital with the
digest of its newest document, as the hub knows them; it goes to whoever judges the case, by hand.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import sqlalchemy as sa

from coop.canonical import Json, parse_object
from coop.documents.envelope import open_document
from coop.documents.training import Lease
from coop.errors import NotFoundError
from coop.journal import note
from coop.journal.commitments import Logged
from coop.journal.receipts import bundle_of
from federated import mirror_store
from federated.envelopes import Envelope, Fold
from federated.erased import record_digest
from federated.mirror_store import mirror_lease
from federated.quarantine import Aside, asides, take
from federated.site import Site


class NoEvidenceError(NotFoundError):
    """This hospital held no such lease, or no longer has what it vouched for."""

    code = "evidence.none"


def of_lease(site: Site, digest: str | None = None, pid: str | None = None) -> dict[str, Any]:
    """A lease this hospital held, with the chain heads it vouched for.

    Args:
        site: This hospital.
        digest: The lease, as round receipts name it; the newest by default.
        pid: Whose case it is: her head's document is added, with its place in the log.

    Returns:
        {"v", "lease", "heads" (digest by pid), "head" (a receipt bundle, or absent)}.

    Raises:
        NoEvidenceError: No such lease, or no such head.
    """
    with site.database.reading() as connection:
        query = sa.select(mirror_lease).order_by(mirror_lease.c.sequence.desc()).limit(1)
        if digest is not None:
            query = query.where(mirror_lease.c.digest == digest)
        row = connection.execute(query).one_or_none()
    if row is None:
        raise NoEvidenceError("lease: this hospital held no such lease")
    document = parse_object(row.document)
    lease = open_document(Lease, document, issuers=None).subject
    known: dict[int, Envelope | Aside] = {
        envelope.index: envelope for envelope in mirror_store.stored_envelopes(site, row.sequence)
    }
    known |= asides(site)
    fold = Fold(
        site=site.name,
        site_did=site.key.did,
        hub_did=site.trust.hub,
        passkeys=site.trust.passkeys,
        record_of=partial(record_digest, site),
    )
    for index in sorted(known):
        if index < lease.log_size:
            take(fold, known[index])
    heads = fold.heads_of(lease.heads_sha256)
    if heads is None:
        raise NoEvidenceError("lease: the documents it vouched for are not all here any more")
    found: dict[str, Any] = {"v": 1, "lease": document, "heads": heads}
    return found if pid is None else {**found, **_head(site, heads, pid, known)}


def _head(
    site: Site, heads: Mapping[str, str], pid: str, known: Mapping[int, Envelope | Aside]
) -> dict[str, Json]:
    """Her head's document at its place in the log; nothing if the lease names none."""
    for index, envelope in known.items():
        if isinstance(envelope, Envelope) and envelope.digest == heads.get(pid):
            text = mirror_store.newest_note(site)  # before the tree, which only grows
            size = note.parse_checkpoint(text).size
            proof = mirror_store.stored_tree(site).inclusion(index, size)
            logged = Logged(index=index, digest=envelope.digest, salt=envelope.salt)
            return {"head": bundle_of(envelope.kind, envelope.document, logged, proof, text)}
    return {}
