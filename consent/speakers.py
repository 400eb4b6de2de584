"""Who may speak for one record at one hospital (`consent.succession` says how that changes).

Whether a signature counts depends on the order of the log alone, so hub and node never disagree
about it. *When* what it gives counts depends on the time at which each house saw a document in the
log: that is in `Speaker.starts_at` and `ends_at`, and only ever gates what was accepted. Everything
is rooted in enrolments that the hospital signed, so a hub can narrow and never widen.

Pure.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

from coop.canonical import jcs
from coop.documents.people import Role as Right
from coop.documents.provision import TIME_MAX

WIDENERS: Final[frozenset[Right]] = frozenset({"parent", "guardian", "proxy"})
"""An executor ends things; what she left to be decided is her own choice on death."""


class Role(StrEnum):
    """As what somebody speaks."""

    PATIENT = "patient"
    CUSTODIAN = "custodian"
    """The hospital, with the key it holds for her."""
    REPRESENTATIVE = "representative"
    GUARDIAN = "guardian"
    """Of her key: can recover it, and restrict."""
    REGISTRY = "registry"
    HOSPITAL = "hospital"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desks:
    """Dids that may restrict on somebody's behalf."""

    registry: str
    hospital: str | None
    """None: the hospital is no member any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """What one signer may say in a consent chain."""

    role: Role
    may_widen: bool = False
    starts_at: int = 0
    """What it gives counts from then on (UTC seconds) …"""
    ends_at: int = TIME_MAX
    """… and before then."""
    representation: str | None = None
    """The representation under which a representative speaks."""

    def gives(self, at: int) -> bool:
        """Whether something given at this time counts at once."""
        return self.may_widen and self.starts_at <= at < self.ends_at


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Vote(_Part):
    """One guardian's word for a new key."""

    guardian: str
    key: str
    next_key_sha256: str | None


class Representative(_Part):
    """Somebody who may decide for the patient."""

    digest: str
    did: str
    role: Right
    since: int
    until: int
    by_key: bool
    """Named by the patient's key, not by the hospital."""
    ended: bool = False

    def speaks(self, at: int) -> bool:
        """Whether this is in force."""
        return not self.ended and self.since <= at < self.until


class Speakers(_Part):
    """Everybody who may speak for one record."""

    key: str
    """The did that speaks for the record; when closed it only restricts."""
    custody: str
    """self, custodial or demo."""
    since: int
    """When this house saw that key in the log."""
    head: str
    """Digest of the enrolment or key event that gave the record this key."""
    sequence: int = 0
    """Key events so far."""
    enrolled_at: int
    """When the hospital signed its newest enrolment, by its own clock …"""
    enrolments: tuple[str, ...]
    """… and its digest; several only within one second."""
    closed: bool = False
    """Nobody widens until the hospital enrols anew."""
    waits_until: int = 0
    """A recovered key widens from then on."""
    former: tuple[str, ...] = ()
    """Keys that a recovery replaced: they can close the record."""
    next_key_sha256: str | None = None
    guardians: tuple[str, ...] = ()
    threshold: int = 0
    votes: tuple[Vote, ...] = ()
    representatives: tuple[Representative, ...] = ()
    newest: str | None = None
    """Digest of the newest document after the first enrolment."""

    def to_text(self) -> str:
        """The state as canonical JSON."""
        return jcs(self.model_dump(mode="json")).decode()

    @classmethod
    def of_text(cls, text: str) -> Self:
        """The inverse of `to_text`."""
        return cls.model_validate_json(text)

    def representative(self, digest: str | None) -> Representative | None:
        """The representation of this digest."""
        return next((one for one in self.representatives if one.digest == digest), None)

    def speaks(self, did: str, at: int) -> bool:
        """Whether this did may act for the record now: its key unless closed, a representative."""
        if did == self.key:
            return not self.closed
        return any(one.did == did and one.speaks(at) for one in self.representatives)


def speaker_of(
    state: Speakers | None, did: str, desks: Desks, representation: str | None = None
) -> Speaker | None:
    """As what this did speaks for the record; None if it may say nothing at all.

    Args:
        state: Before the event in question, in the order of the log.
        did: Who signed.
        desks: Who else may restrict.
        representation: Under which representation it says that it speaks.
    """
    if state is None:
        return None
    if representation is not None:
        return _representing(state, did, representation)
    if did == state.key:
        role = Role.CUSTODIAN if state.custody == "custodial" else Role.PATIENT
        return Speaker(role=role, may_widen=not state.closed, starts_at=state.waits_until)
    helpers = {desks.registry: Role.REGISTRY, desks.hospital: Role.HOSPITAL}
    role_of = dict.fromkeys(state.guardians, Role.GUARDIAN) | helpers
    return Speaker(role=role_of[did]) if did in role_of else None


def _representing(state: Speakers, did: str, representation: str) -> Speaker | None:
    one = state.representative(representation)
    if one is None or one.ended or one.did != did:
        return None
    return Speaker(
        role=Role.REPRESENTATIVE,
        may_widen=one.role in WIDENERS and not state.closed,
        starts_at=one.since,
        ends_at=one.until,
        representation=representation,
    )
