"""Enrolment and consent: what a hospital says about a key, what a patient says about her record."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from coop.canonical import Json, b64u, jcs
from coop.documents.envelope import Subject, issue
from coop.documents.people import check_guardians
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


class Capture(Part):
    """A decision made on paper, signed for her by the hospital's custodian of her key."""

    paper_sha256: str = Sha256
    """Of the scan, which stays at the hospital."""
    registrar: str = Sha256
    """A keyed digest of the registrar's name that only her hospital can open."""
    language: str = Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
    """Of the form, as a BCP 47 tag."""


class Correction(Part):
    """Why a chain was entered in error: four eyes at the hospital, by keyed digests of names."""

    reason: str = Field(min_length=1, max_length=500)
    """In the hospital's words; about the recording, never about health."""
    registrar: str = Sha256
    second: str = Sha256

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.registrar == self.second:
            raise ValueError("second: must be somebody else than the registrar")
        return self


class Enrolment(Subject):
    """A hospital's word that `key` speaks for `pid`."""

    kind: ClassVar[str] = "enrolment"

    site: str = Name
    pid: str = Pid
    key: str
    method: Literal["desk", "post", "custodial", "demo"]
    custody: Literal["self", "custodial", "demo"]
    code_id: str
    next_key_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the key that may replace this one (`coop.documents.people.committed`)."""
    guardians: list[str] | None = None
    """Dids who can together give the record a new key when hers is lost."""
    threshold: int | None = None
    """How many of them it takes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_guardians(self.guardians, self.threshold)
        return self


class Consent(Subject):
    """One event of a patient's consent chain at one hospital.

    Signed by the record's key or a recorded representative's; a *restriction* (revoke, suspend) may
    instead be signed by a guardian, or by the registry or the hospital for whoever was entitled
    (`actor`). Who may say what is `consent.speakers`.
    """

    kind: ClassVar[str] = "consent"

    pid: str = Pid
    site: str = Name
    domain: Literal["research"]
    sequence: int = Field(ge=1)
    previous: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    event: Literal[
        "grant",
        "amend",
        "resume",
        "lift",
        "suspend",
        "revoke",
        "reject",
        "object",
        "propose",
        "deceased",
        "void",
    ]
    """What was said; `consent.chain` says what follows from it."""
    policy: Policy | None = None
    """Present in grant, amend and propose, absent otherwise."""
    notice: Notice | None = None
    on_death: Literal["stop", "continue"] | None = None
    """In grant and amend: what she wants once she has died; without it, stop."""
    actor: Literal["patient", "custodian", "representative", "guardian", "session", "registrar"] = (
        "patient"
    )
    representation: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The representation under which a representative speaks."""
    capture: Capture | None = None
    """The paper behind a custodian's signature."""
    correction: Correction | None = None
    """Present in void, absent otherwise."""


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

    what: Literal["training round", "evaluation", "cohort answer", "emergency", "audit"]
    study_id: str
    version: int
    document_sha256: str = Sha256
    """The round receipt, cohort answer or break-glass that used it; the receipt of a round whose
    audit showed an auditor that she took part, and what she had signed."""
    salt: str
    at: int
    round: int | None = None
    model_id: str | None = None


class StudyUse(Part):
    """What became of one record in one study at its hospital: by whom, what for, how often."""

    study_id: str
    version: int
    title: str
    organisation: str
    commercial: bool
    purpose: str
    disease: str | None = None
    used: int = Field(ge=0)
    """Computations with her record, those included whose result never left."""
    refused: int = Field(ge=0)
    """Computations without it, since it was enrolled, because she did not permit them."""
    not_needed: int = Field(ge=0)
    """Computations she permitted that left her record out for another reason."""
    last_at: int


class UseRequest(Subject):
    """A patient's word that she wants her list of uses now; only her enrolled key can say it."""

    kind: ClassVar[str] = "use-request"

    site: str = Name
    pid: str = Pid


class PrivacySpent(Part):
    """What all uses of one record cost her in privacy at this hospital, composed exactly."""

    epsilon_micro: int
    """What her lifetime limit is held against."""
    alone_epsilon_micro: int
    """The same if no other hospital's noise counted: larger where studies trained in mode B."""
    delta_pico: int
    limit_epsilon_micro: int
    """Before it her record is left out, for good."""


class UseStatement(Subject):
    """A hospital's signed list of what used one patient's record."""

    kind: ClassVar[str] = "use-statement"
    bytes_max: ClassVar[int] = 1_048_576  # the hub's limit of a body: 4000 uses

    site: str = Name
    pid: str = Pid
    uses: list[Use]
    studies: list[StudyUse] = Field(default_factory=list)
    """Every study that drew on this hospital's records since hers was enrolled, newest first."""
    privacy: PrivacySpent | None = None
    """For her eyes: the hospital and she alone may know it."""
    excluded_from: int | None = None
    """UTC seconds since when she permits nothing; nothing later may appear in `uses`, but an
    emergency, and an audit of what was done before."""


def use_request_header(signed: Mapping[str, Json]) -> dict[str, str]:
    """The header of `GET /v1/me/uses`: a signed UseRequest, outside the address that logs keep."""
    return {"Coop-Use-Request": b64u(jcs(dict(signed)))}


def request_uses(key: SigningKey, site: str, pid: str, now: int) -> dict[str, str]:
    """The same header, of a UseRequest that the record's key signs now."""
    return use_request_header(issue(UseRequest(site=site, pid=pid), key, now))
