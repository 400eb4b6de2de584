"""What is published about dividends: enough for anyone to recompute every one bit for bit."""

from typing import ClassVar

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import Part


class Fee(Part):
    """One fee that reached the revenue of a model, by its entry in the ledger."""

    journal_id: int = Field(gt=0)
    amount_nano: int = Field(gt=0)


class DividendWindow(Subject):
    """One split of a model's revenue: all inputs and the result, signed by the hub and logged."""

    kind: ClassVar[str] = "dividend-window"

    model_id: str
    sequence: int = Field(ge=1)
    journal_id: int
    fees: list[Fee]
    revenue_nano: int
    rule: dict[str, int]
    weights: dict[str, int]
    """Registered consents at training, by site (from the model's passport)."""
    shares: dict[str, int]
    """Shares in each site's pool at this window."""
    parts: dict[str, int]
    """Who got what, by account code."""


class PoolChange(Part):
    """A pool got another number of shares: at its opening, and when somebody withdraws."""

    site: str
    after: int = Field(ge=0)
    """How many windows had been closed before."""
    shares: int = Field(ge=0)
    residual_nano: int = Field(ge=0)
    """The undivided rest that went to the commons when the last holder left."""


class PoolState(Part):
    """A pool as it stands."""

    site: str
    weight: int
    shares: int
    acc: int
    carry: int
    balance_nano: int
    paid_nano: int
    """Drawn by all its holders together."""


class PostedWindow(Part):
    """A window's document and what the ledger really holds for it."""

    document: dict[str, object]
    digest: str
    log_index: int
    split: dict[str, int]
    """Who got what, by account code, read from the ledger's transfers."""


class Dividends(Part):
    """Everything published about one model's dividends; `coop.dividend_audit` checks it."""

    model_id: str
    revenue_nano: int
    """Fees that no window has split yet."""
    fees: list[Fee]
    """Every fee the ledger holds for this model."""
    pools: list[PoolState]
    changes: list[PoolChange]
    windows: list[PostedWindow]
