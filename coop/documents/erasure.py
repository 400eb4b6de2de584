"""A hospital had everything erased that the log holds of one record."""

from typing import ClassVar, Final, Self

from pydantic import Field, model_validator

from coop.documents.envelope import Subject
from coop.documents.study import Name, Sha256

ENTRIES_MAX: Final = 10_000  # of one chain; a person decides some dozens of times in her life


class Erasure(Subject):
    """Signed by the record's own hospital. It names entries of the log and nobody.

    The leaves stay, so every other proof stays; envelopes and salts behind them are gone. `record`
    is what the hospital, and nobody else, knows the record by for ever after (a digest under its
    own secret): nothing of this record counts again.
    """

    kind: ClassVar[str] = "erasure"
    bytes_max: ClassVar[int] = 131_072

    site: str = Name
    record: str = Sha256
    entries: list[int] = Field(max_length=ENTRIES_MAX)
    """Where the log holds this hospital's documents about the record, in order."""
    reason: str = Sha256
    registrar: str = Sha256
    second: str = Sha256
    """Keyed digests: the words and the two names stay at the hospital."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.entries != sorted(set(self.entries)) or any(one < 0 for one in self.entries):
            raise ValueError("entries: each once, in the order of the log")
        if self.registrar == self.second:
            raise ValueError("second: must be another person than registrar")
        return self
