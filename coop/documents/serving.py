"""Cohort questions, their answers at the hospitals, and the receipt of every inference."""

from typing import ClassVar, Literal

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import Name, Part, Sha256


class Predicate(Part):
    """One condition of a cohort question; all of them must hold."""

    field: str = Name
    operator: Literal["at-least", "below", "is"]
    number: int | None = None
    text: str | None = Field(default=None, max_length=100)


class CohortQuery(Part):
    """A question from the closed grammar: noisy count, and mean risk under a released model."""

    where: list[Predicate] = Field(max_length=16)
    release: Literal["count", "count-and-mean-risk"]
    model_id: str | None = None
    rho_nano: int = Field(gt=0)


class CohortJob(Subject):
    """The gateway's signed order to one hospital."""

    kind: ClassVar[str] = "cohort-job"

    job_id: str
    site: str = Name
    study_sha256: str = Sha256
    study_id: str
    version: int
    query: CohortQuery
    not_after: int


class CohortAnswer(Subject):
    """A hospital's noised answer; the same job always gets the same bytes."""

    kind: ClassVar[str] = "cohort-answer"

    job_id: str
    job_sha256: str = Sha256
    site: str = Name
    lease_sha256: str = Sha256
    count_noised: int
    risk_sum_noised_micro: int | None = None
    sigma_count_micro: int
    sigma_risk_micro: int | None = None
    rho_nano: int
    debit_sequence: int
    data_version: int
    cohort_commitment: str = Sha256


class InferenceReceipt(Subject):
    """What was asked, what was answered, under which model, consent state and price."""

    kind: ClassVar[str] = "inference-receipt"

    receipt_id: str
    mode: Literal["point", "cohort"]
    model_id: str | None = None
    passport_sha256: str | None = None
    training_root: str | None = None
    study_id: str
    purpose: str
    request_commitment: str = Sha256
    """HMAC-SHA256(nonce, canonical request); the nonce goes to the researcher only."""
    result_sha256: str = Sha256
    answers: list[str]
    """Digests of the hospitals' signed answers; empty in mode point."""
    checkpoint: str
    fee_nano: int
    journal_id: int
