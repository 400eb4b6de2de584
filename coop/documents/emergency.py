"""Break-glass: a hospital scored its own patient for her treatment without her permission."""

from typing import ClassVar, Literal

from pydantic import Field

from coop.documents.consent import Pid
from coop.documents.envelope import Subject
from coop.documents.study import Name, Sha256


class BreakGlass(Subject):
    """One score for one patient's treatment at her own hospital; said before her row is read.

    Names and reason stay at the hospital: here stand keyed digests that only it can open.
    """

    kind: ClassVar[str] = "break-glass"

    site: str = Name
    pid: str = Pid
    model_id: str = Field(min_length=1, max_length=128)
    passport_sha256: str = Sha256
    clinician: str = Sha256
    reason: str = Sha256
    review_by: int
    """UTC seconds until when somebody else must have judged it."""


class BreakGlassReview(Subject):
    """What a second person found; signed by the hospital, logged like the act itself."""

    kind: ClassVar[str] = "break-glass-review"

    site: str = Name
    break_glass_sha256: str = Sha256
    verdict: Literal["justified", "not-justified"]
    reviewer: str = Sha256
