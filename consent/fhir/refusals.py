"""Why a FHIR document is refused: stable reasons, each with the element it is about.

Core: pure, no I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from coop.errors import ForbiddenError, InvalidInputError, Kind
from coop.outcome import Issue, IssuesError


class Why(StrEnum):
    """A reason to refuse a FHIR Consent."""

    INVALID = "fhir.invalid"
    """A value has not the form its element must have."""
    UNKNOWN_ELEMENT = "fhir.unknown-element"
    """The element is none of a Consent of this version, or an extension nobody here knows."""
    UNKNOWN_MODIFIER = "fhir.unknown-modifier"
    """A modifier extension or implicit rules: what else is said may mean something else."""
    NOT_RESEARCH = "fhir.not-research"
    """Not a research consent: a consent to care or disclosure says nothing about research."""
    NOT_IN_FORCE = "fhir.not-in-force"
    """A draft, proposal, rejection or entry in error is nobody's decision."""
    MISSING_BASE_RULE = "fhir.missing-base-rule"
    """Whether everything else is permitted or denied stands nowhere."""
    CONTRADICTION = "fhir.contradiction"
    """Two elements say the opposite of each other."""
    UNTYPED_ROOT = "fhir.untyped-root"
    """A root provision with conditions and no type: exception or condition? HL7's own examples
    mean both."""
    UNTYPED_RULE = "fhir.untyped-rule"
    """A nested provision does not say whether it permits or denies."""
    UNKNOWN_CODE = "fhir.unknown-code"
    """A code in a rule that nobody here can obey; leaving it out would change the rule."""
    UNKNOWN_ACTOR = "fhir.unknown-actor"
    """A rule about somebody this cooperative does not know by that name."""
    UNSUPPORTED = "fhir.unsupported-restriction"
    """A restriction that cannot be kept here: a label, a single resource, an expression."""
    REPRESENTATIVE = "fhir.representative"
    """Somebody else decided for the patient; here she or her recorded representative signs."""
    NOT_VERIFIED = "fhir.not-verified"
    """The document says of itself that it was not verified."""
    OUTSIDE_POLICY = "fhir.outside-policy"
    """It refers to further rules written elsewhere."""
    TIME = "fhir.unusable-time"
    """A time outside 1970 to 9999, finer than a second, or a period that is empty."""
    DATA_WINDOW = "fhir.unclear-data-window"
    """MII: which data may be used does not follow from the codes."""
    GROUP_CODE = "fhir.group-code"
    """MII: the name of a group of codes stands where a code must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a document; never a value of it."""

    why: Why
    where: str
    """FHIRPath of the element."""
    message: str


class UnreadableConsentError(IssuesError):
    """The FHIR Consent is ambiguous, or says something that cannot be kept here."""

    code = "fhir.unreadable"
    kind = Kind.UNPROCESSABLE

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{first.where}: {first.message}{more}", reason=str(first.why))
        self.problems = tuple(problems)
        self.issues = tuple(_issue(problem) for problem in problems)


class NotExpressibleError(InvalidInputError):
    """The policy says something that this format has no words for."""

    code = "fhir.not-expressible"
    kind = Kind.UNPROCESSABLE


class UnsignedConsentError(InvalidInputError):
    """The FHIR Consent carries no envelope that the patient signed."""

    code = "fhir.unsigned"
    kind = Kind.UNPROCESSABLE


class NotWhatIsSignedError(ForbiddenError):
    """The FHIR Consent says something else than the envelope it carries."""

    code = "fhir.not-what-is-signed"


class BadSearchError(InvalidInputError):
    """A search parameter is unknown, or its value has not the form it must have."""

    code = "fhir.bad-search"


class UnsupportedVersionError(InvalidInputError):
    """FHIR R4 (4.0) and R5 (5.0) are spoken here, as JSON."""

    code = "fhir.unsupported-version"


def _issue(problem: Problem) -> Issue:
    malformed = problem.why in {Why.INVALID, Why.UNKNOWN_ELEMENT}
    return Issue(
        kind="structure" if malformed else "business-rule",
        code=str(problem.why),
        where=problem.where,
        message=problem.message,
    )
