"""How many patients of a hospital permit a study, in a form that anybody can add up."""

from typing import ClassVar, Literal

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import Name, Sha256


class Tally(Subject):
    """The registry's count for one study at one hospital and one size of the log.

    One row a patient, in which her answer is hidden, proves that it is yes or no; `consented` and
    `blinding` open the sum of all rows and no single one (`consent.proofs.tally`).
    """

    kind: ClassVar[str] = "tally"

    log: str
    """did of the log's key."""
    checkpoint: str
    """Signed note of the log at the size that was counted."""
    site: str = Name
    study_sha256: str = Sha256
    study_id: str
    version: int
    action: Literal["train-federated"]
    at: int
    """UTC seconds of the decisions."""
    patients: int = Field(ge=1)
    """M: everybody who has ever signed a decision here, whatever it says now."""
    consented: int = Field(ge=0)
    """N: who of them permits the study."""
    blinding: str = Sha256
    """R, the sum of all blindings: hex, little-endian."""
    rows_sha256: str = Sha256
