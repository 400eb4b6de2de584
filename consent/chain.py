"""One patient's consent chain at one hospital: folded event by event, the same at hub and node.

    none ──grant──▶ active ──amend──▶ active ──suspend──▶ suspended ──resume──▶ active
    active, suspended ──revoke──▶ revoked ──grant──▶ active

Restricting (revoke, suspend) is open to whoever is entitled; widening (grant, amend, resume) only
to the record's own key and to recorded representatives (`consent.speakers`). So a hub can narrow
and never widen.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from consent.decide import Standing, State
from consent.policy import check
from consent.speakers import Role, Speaker, Speakers
from coop.canonical import digest
from coop.documents.consent import Consent
from coop.documents.envelope import Opened
from coop.documents.provision import TIME_MAX, Policy
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
_ACTORS: Final[Mapping[Role, frozenset[str]]] = {
    Role.PATIENT: frozenset({"patient"}),
    Role.CUSTODIAN: frozenset({"custodian"}),
    Role.REPRESENTATIVE: frozenset({"representative"}),
    Role.GUARDIAN: frozenset({"guardian"}),
    Role.REGISTRY: frozenset({"session", "registrar"}),
    Role.HOSPITAL: frozenset({"session", "registrar"}),
}
"""What each may call itself."""
_HEADS_TAG: Final = b"coop/heads/v1"
_WITNESSES: Final = 2  # of three and more sites: one careless witness is not enough


class ConsentChainError(CoopError):
    """The event does not continue this chain: someone was faster, or it is not allowed here."""

    code = "consent.chain"
    kind = Kind.CONFLICT


class ConsentSignerError(CoopError):
    """The signer may not say this: widening needs the record's key or a representative's."""

    code = "consent.wrong-key"
    kind = Kind.FORBIDDEN


def apply(
    standing: Standing | None,
    opened: Opened[Consent],
    *,
    speaker: Speaker | None,
    log_index: int = -1,
) -> Standing:
    """The standing after `opened`, whose signature the caller has verified.

    Steps: (1) it is the next event of this chain; (2) the state allows it; (3) its signer may say
    it; (4) it carries a policy exactly when it must, and a valid one.

    What a speaker gives counts only while that speaker may give (`Standing.starts_at`, `ends_at`):
    a waiting key and an expired representative are no fault in the chain, they permit nothing.

    Args:
        standing: Before the event; None at the start.
        opened: The event.
        speaker: As what its signer speaks for the record, by the log up to here
            (`consent.speakers.speaker_of`); None if as nobody.
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
    speaker = check_speaker(event, speaker)
    # (4)
    made = Standing(
        state=after,
        policy=_policy_after(standing, event),
        head_digest=opened.digest,
        sequence=sequence,
        log_index=log_index,
        widened_index=log_index,
        starts_at=speaker.starts_at,
        ends_at=speaker.ends_at,
        under=speaker.representation,
    )
    if event.event in WIDENING or standing is None:
        return made
    return replace(
        made,
        widened_index=standing.widened_index,
        starts_at=standing.starts_at,
        ends_at=standing.ends_at,
        under=standing.under,
    )


def check_speaker(event: Consent, speaker: Speaker | None) -> Speaker:
    """The speaker, if it may say this and says as what it speaks.

    Raises:
        ConsentSignerError: It may not.
    """
    widens = event.event in WIDENING
    if speaker is None or (widens and not speaker.may_widen):
        raise ConsentSignerError(
            f"{event.event}: must be signed by the key enrolled for this record, or by a recorded "
            "representative"
        )
    if event.actor not in _ACTORS[speaker.role]:
        raise ConsentSignerError("actor: does not fit the key that signed")
    custodian = speaker.role is Role.CUSTODIAN
    if (event.capture is not None and not custodian) or (
        event.capture is None and custodian and widens
    ):
        raise ConsentSignerError("capture: what a custodian gives needs its paper; nobody else has")
    return speaker


def bounded(standing: Standing, before: Speakers, after: Speakers, at: int) -> Standing:
    """The standing once who may speak for the record has changed.

    What was given under a representation ends with it. What a recovered key gave and what had not
    begun to count when the record was closed or got another key never begins.

    Args:
        standing: Before.
        before: Who could speak.
        after: Who can.
        at: When this house saw the change, UTC seconds.
    """
    under = after.representative(standing.under)
    if under is not None and under.ended:
        standing = replace(standing, ends_at=min(standing.ends_at, at))
    displaced = after.waits_until != before.waits_until or (after.closed and not before.closed)
    if displaced and standing.starts_at > at and (under is None or under.by_key):
        standing = replace(standing, starts_at=TIME_MAX)
    return standing


def heads_digest(heads: Mapping[str, str]) -> str:
    """Hex digest of a site's sorted (pid, chain head) pairs: what a lease vouches for.

    A record for which more was said about who may speak than one enrolment has a second pair,
    named `keys_of(pid)`, with the newest such document.
    """
    lines = "".join(f"{pid} {heads[pid]}\n" for pid in sorted(heads))
    return digest(_HEADS_TAG, lines).hex()


def keys_of(pid: str) -> str:
    """The name under which a lease vouches for who may speak for a record."""
    return f"{pid}.keys"


def cosigners_needed(sites: int) -> int:
    """How many *other* sites must have cosigned the log before a grant counts.

    Two of three and more sites, the one other of two; a single site is alone (labelled
    "unwitnessed").
    """
    return min(max(sites - 1, 0), _WITNESSES)


def _policy_after(standing: Standing | None, event: Consent) -> Policy | None:
    if event.event not in {"grant", "amend"}:
        if event.policy is not None:
            raise ConsentChainError(f"policy: must be absent from {event.event}")
        return standing.policy if standing else None
    if event.policy is None:
        raise ConsentChainError(f"policy: must be present in {event.event}")
    check(event.policy)
    return event.policy
