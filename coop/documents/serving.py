"""Cohort questions, their answers at the hospitals, and the receipt of every inference."""

from itertools import pairwise
from typing import ClassVar, Final, Literal

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import CohortGrammar, Name, Part, Sha256

CELLS_MAX: Final = 64  # of a histogram; every one has the noise of a whole count


class Predicate(Part):
    """One condition of a cohort question; all of them must hold."""

    field: str = Name
    operator: Literal["at-least", "below", "is"]
    number: int | None = None
    text: str | None = Field(default=None, max_length=100)


class CohortQuery(Part):
    """A question from the closed grammar.

    A noisy count; with the mean risk under a released model; a histogram of a number, from which
    quantiles and the mean follow; or a survival table, from which the Kaplan-Meier curve follows.
    """

    where: list[Predicate] = Field(max_length=16)
    release: Literal["count", "count-and-mean-risk", "histogram", "survival"]
    model_id: str | None = None
    field: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    """The number of a histogram, or the time of a survival table."""
    event: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    """Of a survival table: above 0 where the event came, else the time is of the last look."""
    edges: list[int] | None = Field(default=None, min_length=1, max_length=CELLS_MAX - 1)
    """Where one interval ends and the next begins, ascending."""
    rho_nano: int = Field(gt=0)

    @property
    def cells(self) -> int:
        """How many counts a table has; 0 for the other releases."""
        intervals = len(self.edges or []) + 1
        return {"histogram": intervals, "survival": 2 * intervals}.get(self.release, 0)

    def table_problem(self, grammar: CohortGrammar) -> str | None:
        """What is wrong with the parts that only a table has; None if nothing is."""
        parts = {"field": self.field, "edges": self.edges, "event": self.event}
        needed = {"histogram": {"field", "edges"}, "survival": {"field", "edges", "event"}}
        wanted = needed.get(self.release, set())
        for name, value in parts.items():
            if (value is not None) != (name in wanted):
                said = "is needed" if name in wanted else "has no meaning"
                return f"query.{name}: {said} with {self.release}"
        for name in ("field", "event"):
            if name in wanted and parts[name] not in grammar.number_fields:
                return f"query.{name}: must be one of {', '.join(grammar.number_fields) or 'none'}"
        if self.edges is not None and any(
            later <= earlier for earlier, later in pairwise(self.edges)
        ):
            return "query.edges: must ascend"
        return None


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
    cells_noised: list[int] | None = Field(default=None, max_length=2 * CELLS_MAX)
    """A histogram's counts in the order of the intervals; a survival table's with the event, then
    without. Each with noise of its own; `count_noised` is their sum."""
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
