"""The keys of a masked sum: what each hospital signs before anybody masks anything."""

from typing import ClassVar

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import Name, Part, Sha256

PublicKey = Sha256  # 32 bytes in hex, as a digest is


class RoundKey(Part):
    """One round's public mask key, and the commitment to the seed of the sender's own mask."""

    round: int = Field(ge=1)
    mask_key: str = PublicKey
    seed_sha256: str = Sha256


class MaskKeys(Subject):
    """A hospital's fresh X25519 keys for one set-up of one order: good for its rounds only."""

    kind: ClassVar[str] = "mask-keys"

    order_sha256: str = Sha256
    setup: int = Field(ge=1)
    """Counts the set-ups of this order; keys are never used in two."""
    fresh: bool
    """The first of the rounds is drawn anew, whatever left of it before: it pays once more."""
    site: str = Name
    seal_key: str = PublicKey
    """Shares for this hospital are sealed to it."""
    rounds: list[RoundKey] = Field(min_length=1, max_length=1000)
