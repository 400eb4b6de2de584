"""Enrolment and consent: what a hospital says about a key, what a patient says about her record."""

from typing import ClassVar, Literal

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import Name, Part, Sha256

Pid = Field(pattern=r"^[a-z2-7]{26}$")
TIME_MAX = 2**53 - 1
"""The open end of a period."""


class Provision(Part):
    """A rule with exceptions. An empty list means "any"; periods are half-open [start, end)."""

    type: Literal["permit", "deny"]
    start: int = Field(default=0, ge=0)
    end: int = Field(default=TIME_MAX, ge=0, le=TIME_MAX)
    actions: list[str] = Field(default_factory=list, max_length=64)
    purposes: list[str] = Field(default_factory=list, max_length=64)
    classes: list[str] = Field(default_factory=list, max_length=64)
    actors: list[str] = Field(default_factory=list, max_length=64)
    """Study ids, organisation names, or the word `commercial`."""
    children: list["Provision"] = Field(default_factory=list, max_length=64)


class Policy(Part):
    """What the patient signs: the provision tree and her own limits."""

    provision: Provision
    epsilon_cap_micro: int | None = Field(default=None, ge=0)


class Notice(Part):
    """The exact wording shown: what makes consent *informed* provable."""

    uri: str
    language: str
    version: str
    sha256: str = Sha256


class Enrolment(Subject):
    """A hospital's word that `key` speaks for `pid`."""

    kind: ClassVar[str] = "enrolment"

    site: str = Name
    pid: str = Pid
    key: str
    method: Literal["desk", "post", "custodial", "demo"]
    custody: Literal["self", "custodial", "demo"]
    code_id: str


class Consent(Subject):
    """One event of a patient's consent chain at one hospital.

    Signed by the enrolled key; a *restriction* (revoke, suspend) may instead be signed by the
    registry or the hospital for whoever was entitled (`actor`).
    """

    kind: ClassVar[str] = "consent"

    pid: str = Pid
    site: str = Name
    domain: Literal["research"]
    sequence: int = Field(ge=1)
    previous: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    event: Literal["grant", "amend", "revoke", "suspend", "resume"]
    policy: Policy | None = None
    """Present in grant and amend, absent otherwise."""
    notice: Notice | None = None
    actor: Literal["patient", "session", "registrar"] = "patient"


class ConsentReceipt(Subject):
    """The registry's acknowledgement: logged at `index`, effective everywhere by `effective_by`."""

    kind: ClassVar[str] = "consent-receipt"

    pid: str = Pid
    site: str
    consent_sha256: str = Sha256
    event: str
    index: int
    salt: str = Field(pattern=r"^[0-9a-f]{64}$")
    effective_by: int


class Use(Part):
    """One use of one record."""

    what: Literal["training round", "evaluation", "cohort answer"]
    study_id: str
    version: int
    document_sha256: str = Sha256
    """The round receipt or cohort answer that used it."""
    salt: str
    at: int
    round: int | None = None
    model_id: str | None = None


class UseStatement(Subject):
    """A hospital's signed list of what used one patient's record."""

    kind: ClassVar[str] = "use-statement"

    site: str = Name
    pid: str = Pid
    uses: list[Use]
    excluded_from: int | None = None
    """UTC seconds of the withdrawal in force; nothing later may appear in `uses`."""
