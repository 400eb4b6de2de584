"""Drafts: what the portal shows, the browser signs, and the hub verifies over its own copy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from consent.chain import ConsentChainError
from consent.decide import Standing, State
from consent.notice_store import check_shown, published
from consent.policy import summary
from consent.store import Enrolled, consent_draft
from coop.canonical import Json, jcs, parse_object
from coop.documents.consent import Consent, Notice
from coop.documents.envelope import for_signer, with_signature
from coop.documents.provision import Policy
from coop.errors import InvalidInputError, NotFoundError
from coop.keys import random_bytes

DRAFT_SECONDS: Final = 1800  # long enough to read, short enough that the head rarely moves
_WORDS: Final[Mapping[str, str]] = {
    "grant": "Give my decision",
    "amend": "Change my decision",
    "resume": "Take part again, as before",
    "lift": "End my objection to all research",
    "suspend": "Pause",
    "revoke": "Withdraw",
}

_ON_DEATH: Final[Mapping[str, str]] = {
    "stop": "nothing new uses my record",
    "continue": "my decision stays as it is",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the patient is about to say."""

    event: str
    policy: Policy | None = None
    notice: Notice | None = None
    on_death: Literal["stop", "continue"] | None = None


def draft(
    connection: sa.Connection,
    key: Enrolled,
    standing: Standing | None,
    choice: Choice,
    now: int,
) -> dict[str, Any]:
    """Store and return an unsigned consent event that continues the patient's chain.

    A grant over an active consent is an amendment of it, and the other way round.

    Returns:
        {"draft_id", "document", "proof" (options), "summary" [[label, value]…], "expires"}.
    """
    event = _event(choice.event, standing)
    with_policy = event in {"grant", "amend"}
    if with_policy and choice.policy is None:
        raise InvalidInputError("preset: choose what you allow")
    if with_policy:
        named = [choice.notice.sha256] if choice.notice is not None else []
        check_shown(choice.notice, published(connection, named))
    subject = Consent(
        pid=key.pid,
        site=key.site,
        domain="research",
        sequence=standing.sequence + 1 if standing else 1,
        previous=standing.head_digest if standing else None,
        event=event,  # type: ignore[arg-type]  # Consent checks it
        policy=choice.policy if with_policy else None,
        notice=choice.notice,
        on_death=choice.on_death if with_policy else None,
        actor="patient",
    )
    document, proof = for_signer(subject, issuer=key.did, now=now)
    draft_id = random_bytes(16).hex()
    connection.execute(consent_draft.delete().where(consent_draft.c.expires <= now))
    connection.execute(
        consent_draft.insert().values(
            id=draft_id,
            pid=key.pid,
            document=jcs({"document": document, "proof": proof}).decode(),
            expires=now + DRAFT_SECONDS,
        )
    )
    words = [["What I do", _WORDS[event]], ["Hospital", key.site]]
    if with_policy:
        words.append(["When I have died", _ON_DEATH[choice.on_death or "stop"]])
    shown = subject.policy if with_policy else (standing.policy if standing else None)
    return {
        "draft_id": draft_id,
        "document": document,
        "proof": proof,
        "summary": words + summary(shown if event != "revoke" else None),
        "expires": now + DRAFT_SECONDS,
    }


def signed(
    connection: sa.Connection, draft_id: str, did: str, signature: str, now: int
) -> tuple[str, dict[str, Json]]:
    """The pid and the signed document made of the stored draft and the browser's signature.

    Whether it verifies is checked where every consent is checked (`Registry.submit`).

    Raises:
        NotFoundError: No such draft, or it is too old.
        InvalidInputError: The did is not the draft's issuer, or the signature is no signature.
    """
    query = sa.select(consent_draft).where(consent_draft.c.id == draft_id)
    row = connection.execute(query).one_or_none()
    if row is None or row.expires <= now:
        raise NotFoundError("draft_id: unknown or older than 30 minutes; draft it again")
    stored = parse_object(row.document)
    document, proof = stored["document"], stored["proof"]
    if not isinstance(document, dict) or not isinstance(proof, dict):
        raise NotFoundError("draft_id: unknown or older than 30 minutes; draft it again")
    complete = with_signature(document, proof, did, signature)
    connection.execute(
        consent_draft.update()
        .where(consent_draft.c.id == draft_id)
        .values(used_at=sa.func.coalesce(consent_draft.c.used_at, now))
    )
    return row.pid, complete


def _event(asked: str, standing: Standing | None) -> str:
    if asked not in _WORDS:
        raise InvalidInputError(f"event: must be one of {', '.join(_WORDS)}")
    state = standing.state if standing else State.NONE
    if asked in {"grant", "amend"} and state is not State.SUSPENDED:
        return "amend" if state is State.ACTIVE else "grant"
    if state is State.SUSPENDED and asked in {"grant", "amend"}:
        raise ConsentChainError("event: the consent is paused; resume it before changing it")
    return asked
