"""One patient's consent chain at one hospital: folded event by event, the same at hub and node.

    none ──grant──▶ active ──amend──▶ active ──suspend──▶ suspended ──resume──▶ active
    active, suspended ──revoke──▶ revoked ──grant──▶ active

Restricting (revoke, suspend) is open to whoever is entitled; widening (grant, amend, resume) only
to the key that the hospital enrolled for this record. So a hub can narrow and never widen.
"""

from collections.abc import Collection, Mapping
from typing import Final

from consent.decide import Standing, State
from consent.policy import check
from coop.canonical import digest
from coop.documents.consent import Consent
from coop.documents.envelope import Opened
from coop.documents.provision import Policy
from coop.errors import CoopError, Kind

WIDENING: Final = frozenset({"grant", "amend", "resume"})
RESTRICTING: Final = frozenset({"suspend", "revoke"})
_NEXT: Final[Mapping[tuple[State, str], State]] = {
    (State.NONE, "grant"): State.ACTIVE,
    (State.REVOKED, "grant"): State.ACTIVE,
    (State.ACTIVE, "amend"): State.ACTIVE,
    (State.ACTIVE, "suspend"): State.SUSPENDED,
    (State.ACTIVE, "revoke"): State.REVOKED,
    (State.SUSPENDED, "resume"): State.ACTIVE,
    (State.SUSPENDED, "revoke"): State.REVOKED,
}
_HEADS_TAG: Final = b"coop/heads/v1"
_WITNESSES: Final = 2  # of three and more sites: one careless witness is not enough


class ConsentChainError(CoopError):
    """The event does not continue this chain: someone was faster, or it is not allowed here."""

    code = "consent.chain"
    kind = Kind.CONFLICT


class ConsentSignerError(CoopError):
    """The signer may not say this: widening needs the key enrolled for this record."""

    code = "consent.wrong-key"
    kind = Kind.FORBIDDEN


def apply(
    standing: Standing | None,
    opened: Opened[Consent],
    *,
    patient_did: str,
    restrictors: Collection[str],
    log_index: int = -1,
) -> Standing:
    """The standing after `opened`, whose signature the caller has verified.

    Steps: (1) it is the next event of this chain; (2) the state allows it; (3) its signer may say
    it; (4) it carries a policy exactly when it must, and a valid one.

    Args:
        standing: Before the event; None at the start.
        opened: The event.
        patient_did: The key enrolled for this record.
        restrictors: Dids that may restrict on someone's behalf (registry, hospital).
        log_index: Where the event stands in the log.

    Raises:
        ConsentChainError: (1) or (2) fails.
        ConsentSignerError: (3) fails.
        PolicyError: (4) fails.
    """
    event = opened.subject
    state = standing.state if standing else State.NONE
    # (1)
    sequence = (standing.sequence if standing else 0) + 1
    previous = standing.head_digest if standing else None
    if event.sequence != sequence or event.previous != previous:
        raise ConsentChainError(
            f"sequence: must be {sequence} after the newest event; read the history and sign again",
            sequence=sequence,
        )
    # (2)
    after = _NEXT.get((state, event.event))
    if after is None:
        raise ConsentChainError(f"event: {event.event} is not possible while {state}")
    # (3)
    _check_signer(opened, patient_did, restrictors)
    # (4)
    return Standing(
        state=after,
        policy=_policy_after(standing, event),
        head_digest=opened.digest,
        sequence=sequence,
        log_index=log_index,
        widened_index=log_index
        if event.event in WIDENING
        else (standing.widened_index if standing else -1),
    )


def heads_digest(heads: Mapping[str, str]) -> str:
    """Hex digest of a site's sorted (pid, chain head) pairs: what a lease vouches for."""
    lines = "".join(f"{pid} {heads[pid]}\n" for pid in sorted(heads))
    return digest(_HEADS_TAG, lines).hex()


def cosigners_needed(sites: int) -> int:
    """How many *other* sites must have cosigned the log before a grant counts.

    Two of three and more sites, the one other of two; a single site is alone (labelled
    "unwitnessed").
    """
    return min(max(sites - 1, 0), _WITNESSES)


def _check_signer(opened: Opened[Consent], patient_did: str, restrictors: Collection[str]) -> None:
    by_patient = opened.issuer == patient_did
    if by_patient != (opened.subject.actor == "patient"):
        raise ConsentSignerError("actor: does not fit the key that signed")
    if by_patient:
        return
    if opened.subject.event not in RESTRICTING or opened.issuer not in restrictors:
        raise ConsentSignerError(
            f"{opened.subject.event}: must be signed by the key enrolled for this record"
        )


def _policy_after(standing: Standing | None, event: Consent) -> Policy | None:
    if event.event not in {"grant", "amend"}:
        if event.policy is not None:
            raise ConsentChainError(f"policy: must be absent from {event.event}")
        return standing.policy if standing else None
    if event.policy is None:
        raise ConsentChainError(f"policy: must be present in {event.event}")
    check(event.policy)
    return event.policy
