"""The file with which a hospital answers an audit of a training cohort, for one auditor alone."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError

from coop.canonical import Json
from coop.documents.study import Part, Sha256
from coop.errors import InvalidInputError


class AuditFileError(InvalidInputError):
    """The file is no answer to an audit: a member is missing, unknown or of a wrong form."""

    code: ClassVar[str] = "audit.malformed"


class Shown(Part):
    """One signed document about a member, at its place in the log."""

    kind: str
    index: int = Field(ge=0)
    salt: str = Sha256
    document: dict[str, Any]
    proof: list[str]
    """Hashes that lead from its leaf to the root of the challenge's checkpoint, base64."""


class Member(Part):
    """Whose place it is, and what shows that she permitted it."""

    pid: str = Field(pattern=r"^[a-z2-7]{26}$")
    consent: int = Field(ge=0)
    """Where her newest consent document stood in the log when the cohort was drawn up."""
    documents: list[Shown]
    """Every document of hers up to the release, in the order of the log."""


class Opening(Part):
    """One place of the cohort's tree, opened; a dummy's without `member`."""

    salt: str = Sha256
    proof: list[str]
    """Hashes that lead from its leaf to the cohort's root, base64."""
    member: Member | None = None


class CohortAudit(Part):
    """Everything `coop verify cohort` reads. It names patients by pid: keep it confidential."""

    v: Literal[1]
    study: dict[str, Any]
    order: dict[str, Any]
    record: dict[str, Any]
    """Receipt bundles; the record is the hub's, of the round, and accepts the receipt."""
    receipt: dict[str, Any]
    """The hospital's round receipt, proved under the checkpoint that makes the challenge."""
    lease: dict[str, Any]
    """Under which the cohort was drawn up …"""
    heads: dict[str, str]
    """… and every chain head here that it vouches for."""
    release_lease: dict[str, Any]
    """Under which the answer left …"""
    release_heads: dict[str, str | None]
    """… and the heads that had changed by then; None: is no more."""
    root: str = Sha256
    places: int = Field(ge=1)
    openings: list[Opening]
    """In the order of the challenge."""

    @classmethod
    def read(cls, file: Json) -> Self:
        """The file's parts.

        Raises:
            AuditFileError: It is no such file.
        """
        try:
            return cls.model_validate(file)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise AuditFileError(f"audit: {where}: {error.errors()[0]['msg']}") from error
