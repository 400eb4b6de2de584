"""A hospital's staff set a document of the log aside that does not verify there."""

from typing import ClassVar, Literal

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import Name, Sha256


class Quarantine(Subject):
    """What was set aside, why it did not verify, and what the staff found out; kept at the site."""

    kind: ClassVar[str] = "quarantine"

    site: str = Name
    log_index: int = Field(ge=0)
    document_kind: Literal[
        "consent", "enrolment", "key-event", "representation", "representation-end", "erasure"
    ]
    document_sha256: str = Sha256
    """What the log commits to at this index."""
    salt: str = Field(pattern=r"^[0-9a-f]{64}$")
    pid: str = Field(max_length=26)
    """Whom the document names, so who is denied from here on; empty if it names nobody."""
    code: str = Field(max_length=64)
    """Why it did not verify."""
    reason: str = Field(min_length=3, max_length=500)
    """In the words of the staff."""
