"""Refusals as FHIR says them: an OperationOutcome with the same stable codes as everywhere else.

Core: pure, no I/O.
"""

from dataclasses import dataclass
from typing import Final

from coop.errors import CoopError, Kind

MEDIA_TYPE: Final = "application/fhir+json"
CODES: Final = "urn:coop:problem"
_ISSUES_MAX: Final = 50  # a document with more is not one somebody corrects by hand
_KINDS: Final = {
    Kind.INVALID: "invalid",
    Kind.UNAUTHENTICATED: "login",
    Kind.UNPAID: "business-rule",
    Kind.FORBIDDEN: "forbidden",
    Kind.ABSENT: "not-found",
    Kind.CONFLICT: "conflict",
    Kind.TOO_LARGE: "too-costly",
    Kind.UNPROCESSABLE: "processing",
    Kind.TOO_MANY: "throttled",
    Kind.UNAVAILABLE: "transient",
    Kind.BUG: "exception",
}
"""By kind of error: a code of FHIR's issue-type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One thing wrong with a document; never a value of it."""

    kind: str
    """Of FHIR's issue-type: `structure`, `business-rule` …"""
    code: str
    """Stable, ours."""
    where: str
    """FHIRPath of the element."""
    message: str


class IssuesError(CoopError):
    """A document with several things wrong, each of which can be named."""

    code = "coop.issues"
    issues: tuple[Issue, ...] = ()


def outcome(error: CoopError, detail: object) -> dict[str, object]:
    """The OperationOutcome of an error.

    Args:
        error: What went wrong.
        detail: Its words for the caller (those of a bug are kept inside).
    """
    if isinstance(error, IssuesError) and error.issues:
        issues = [_located(issue) for issue in error.issues[:_ISSUES_MAX]]
    else:
        severity = "fatal" if error.kind is Kind.BUG else "error"
        issues = [_issue(_KINDS[error.kind], error.code, str(detail), severity=severity)]
    return {"resourceType": "OperationOutcome", "issue": issues}


def _located(issue: Issue) -> dict[str, object]:
    text = f"{issue.where}: {issue.message}"
    return {**_issue(issue.kind, issue.code, text), "expression": [issue.where]}


def _issue(kind: str, code: str, text: str, *, severity: str = "error") -> dict[str, object]:
    return {
        "severity": severity,
        "code": kind,
        "details": {"coding": [{"system": CODES, "code": code}], "text": text},
        "diagnostics": text,
    }
