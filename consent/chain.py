"""One patient's consent chain at one hospital: folded event by event, the same at hub and node.

    none, revoked, rejected, in error ──propose──▶ proposed ──reject──▶ rejected
    none, proposed, revoked, rejected, in error ──grant──▶ active ──amend──▶ active
    active ──suspend──▶ suspended ──resume──▶ active
    active, suspended ──revoke──▶ revoked
    active, suspended ──deceased──▶ revoked, or as it was if she chose so; nothing is given after it
    any but none ──void──▶ entered in error

Beside the state stands her objection to all research: `object` sets it in any state, `lift` ends
it, and while it stands nothing is permitted. A draft is no event yet, and an end that comes with
time (expired) none any more.

What gives (grant, amend, resume, lift) is for the record's own key and recorded representatives;
what prepares or corrects (propose, deceased, void) for the hospital alone, and gives nothing;
everything else, which only takes away, for whoever is entitled (`consent.speakers`). So a hub can
narrow and never widen.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from consent.decide import Standing, State
from consent.policy import check
from consent.speakers import Role, Speaker, Speakers
from consent.widening import widens
from coop.canonical import digest
from coop.documents.consent import Consent
from coop.documents.envelope import Opened
from coop.documents.provision import TIME_MAX, Policy
from coop.errors import CoopError, Kind

WIDENING: Final = frozenset({"grant", "amend", "resume", "lift"})
RESTRICTING: Final = frozenset({"suspend", "revoke", "reject", "object"})
OF_THE_HOSPITAL: Final = frozenset({"propose", "deceased", "void"})
DEAD: Final = "dead"
"""`Standing.on_death` once a death was reported; only `void`, the correction, ends it."""
_WITH_POLICY: Final = frozenset({"grant", "amend", "propose"})
_FRESH: Final = (State.NONE, State.REVOKED, State.REJECTED, State.VOID)
"""Where nothing is allowed and nothing waits for an answer."""
_NEXT: Final[Mapping[tuple[State, str], State]] = {
    **{(state, "propose"): State.PROPOSED for state in _FRESH},
    **{(state, "grant"): State.ACTIVE for state in (*_FRESH, State.PROPOSED)},
    **{(state, "void"): State.VOID for state in State if state not in {State.NONE, State.VOID}},
    (State.PROPOSED, "reject"): State.REJECTED,
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
    # (1)
    sequence = (standing.sequence if standing else 0) + 1
    previous = standing.head_digest if standing else None
    if event.sequence != sequence or event.previous != previous:
        raise ConsentChainError(
            f"sequence: must be {sequence} after the newest event; read the history and sign again",
            sequence=sequence,
        )
    # (2)
    after, objected = after_event(standing, event.event)
    # (3)
    speaker = check_speaker(event, speaker)
    # (4)
    _check_parts(event)
    made = Standing(
        state=after,
        policy=_policy_after(standing, event),
        objected=objected,
        on_death=_on_death_after(standing, event),
        head_digest=opened.digest,
        sequence=sequence,
        log_index=log_index,
        widened_index=log_index,
        starts_at=speaker.starts_at,
        ends_at=speaker.ends_at,
        under=speaker.representation,
    )
    if standing is None or event.event in {"grant", "amend", "resume"}:
        if standing is None or gives(event.event, standing, made):
            return made
        # What a change leaves of an older grant rests on that grant, and on who witnessed it.
        return replace(made, widened_index=standing.widened_index)
    if event.event == "lift":
        # It gives back what was given before, within the time of both.
        return replace(
            made,
            starts_at=max(made.starts_at, standing.starts_at),
            ends_at=min(made.ends_at, standing.ends_at),
            under=standing.under or made.under,
        )
    return replace(
        made,
        widened_index=standing.widened_index,
        starts_at=standing.starts_at,
        ends_at=standing.ends_at,
        under=standing.under,
    )


def after_event(standing: Standing | None, event: str) -> tuple[State, bool]:
    """The state and the objection after an event.

    Raises:
        ConsentChainError: The state does not allow it.
    """
    state = standing.state if standing else State.NONE
    objected = standing.objected if standing else False
    dead = standing is not None and standing.on_death == DEAD
    if dead and (event in WIDENING or event in {"deceased", "propose"}):
        raise ConsentChainError(f"event: {event} is not possible: her death was reported")
    if event in {"object", "lift"} and objected == (event == "lift"):
        return state, event == "object"
    if event == "deceased" and state in {State.ACTIVE, State.SUSPENDED}:
        goes_on = standing is not None and standing.on_death == "continue"
        return state if goes_on else State.REVOKED, objected
    if event == "deceased" and state in {State.PROPOSED, State.REVOKED, State.REJECTED}:
        return State.REJECTED if state is State.PROPOSED else state, objected
    after = _NEXT.get((state, event))
    if after is None:
        raise ConsentChainError(f"event: {event} is not possible while {state}")
    return after, objected


def gives(event: str, before: Standing | None, after: Standing) -> bool:
    """Whether an event gives anything: a change of policy that only takes away does not."""
    if event != "amend" or before is None or before.objected:
        return event in WIDENING
    return widens(before, after)


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
    if event.event in OF_THE_HOSPITAL and speaker.role is not Role.HOSPITAL:
        raise ConsentSignerError(f"{event.event}: only the record's own hospital signs it")
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


def _check_parts(event: Consent) -> None:
    """Return if the event carries exactly the parts that belong to it."""
    if (event.policy is not None) != (event.event in _WITH_POLICY):
        must = "present in" if event.policy is None else "absent from"
        raise ConsentChainError(f"policy: must be {must} {event.event}")
    if (event.correction is not None) != (event.event == "void"):
        raise ConsentChainError("correction: belongs to void, and void to it")
    if event.on_death is not None and event.event not in {"grant", "amend"}:
        raise ConsentChainError(f"on_death: must be absent from {event.event}")
    if event.policy is not None:
        check(event.policy)


def _policy_after(standing: Standing | None, event: Consent) -> Policy | None:
    if event.event in _WITH_POLICY:
        return event.policy
    return standing.policy if standing and event.event != "void" else None


def _on_death_after(standing: Standing | None, event: Consent) -> str:
    if event.event in {"grant", "amend"}:
        return event.on_death or "stop"
    if event.event in {"deceased", "void"}:
        return DEAD if event.event == "deceased" else "stop"
    return standing.on_death if standing else "stop"
