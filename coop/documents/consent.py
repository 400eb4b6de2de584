"""Enrolment and consent: what a hospital says about a key, what a patient says about her record."""

from typing import ClassVar, Literal

from pydantic import Field

from coop.canonical import b64u, jcs
from coop.documents.envelope import Subject, issue
from coop.documents.provision import Policy
from coop.documents.study import Name, Part, Sha256
from coop.keys import SigningKey

Pid = Field(pattern=r"^[a-z2-7]{26}$")


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


class UseRequest(Subject):
    """A patient's word that she wants her list of uses now; only her enrolled key can say it."""

    kind: ClassVar[str] = "use-request"

    site: str = Name
    pid: str = Pid


class UseStatement(Subject):
    """A hospital's signed list of what used one patient's record."""

    kind: ClassVar[str] = "use-statement"
    bytes_max: ClassVar[int] = 1_048_576  # the hub's limit of a body: 4000 uses

    site: str = Name
    pid: str = Pid
    uses: list[Use]
    excluded_from: int | None = None
    """UTC seconds of the withdrawal in force; nothing later may appear in `uses`."""


def request_uses(key: SigningKey, site: str, pid: str, now: int) -> str:
    """The `signed` of `GET /v1/me/uses`: a UseRequest that the record's key signs now."""
    return b64u(jcs(issue(UseRequest(site=site, pid=pid), key, now)))
