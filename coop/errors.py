"""The one family of errors: every refusal and failure has a stable code and says what to do.

A `CoopError` crosses every border of the system: the command line prints its code and exits 1, the
web edge turns it into an RFC 9457 problem (`coop.problems`), a hospital node sends only its code.
Messages are for the person who can act on them and never contain anything about a patient.
"""

from enum import StrEnum
from typing import ClassVar, NoReturn


class Kind(StrEnum):
    """What sort of refusal it is; `coop.problems` gives each its HTTP status."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    UNPAID = "unpaid"
    FORBIDDEN = "forbidden"
    ABSENT = "absent"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    UNPROCESSABLE = "unprocessable"
    TOO_MANY = "too-many"
    UNAVAILABLE = "unavailable"
    BUG = "bug"


class CoopError(Exception):
    """A refusal or failure with a stable `code`.

    Args:
        message: One sentence naming the field and the fix.
        facts: Machine-readable extras, shown beside the message (never personal data).
    """

    code: ClassVar[str] = "coop.failed"
    kind: ClassVar[Kind] = Kind.INVALID

    def __init__(self, message: str, **facts: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InvariantError(CoopError):
    """A bug: something that cannot happen did. Nothing may continue from here."""

    code = "coop.invariant"
    kind = Kind.BUG


class InvalidInputError(CoopError):
    """The input has a wrong shape or value; the message names the field."""

    code = "coop.invalid-input"
    kind = Kind.INVALID


class NotFoundError(CoopError):
    """Absent, or not yours: from outside the two look the same."""

    code = "coop.not-found"
    kind = Kind.ABSENT


class ConflictError(CoopError):
    """Someone was faster, or the same key was used for something else."""

    code = "coop.conflict"
    kind = Kind.CONFLICT


class ForbiddenError(CoopError):
    """You are known, and you may not."""

    code = "coop.forbidden"
    kind = Kind.FORBIDDEN


class UnavailableError(CoopError):
    """A part this depends on does not answer; trying again later may help."""

    code = "coop.unavailable"
    kind = Kind.UNAVAILABLE


def broken(message: str) -> NoReturn:
    """Stop at a broken invariant."""
    raise InvariantError(message)
