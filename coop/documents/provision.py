"""The policy a patient signs, as data: a tree of provisions and her own limits.

Core: pure, no I/O. It stands apart from the signed documents so that what decides consent depends
on nothing that signs, stores or sends.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TIME_MAX = 2**53 - 1
"""The open end of a period."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Provision(_Part):
    """A rule with exceptions. An empty list means "any"; periods are half-open [start, end)."""

    type: Literal["permit", "deny"]
    start: int = Field(default=0, ge=0)
    end: int = Field(default=TIME_MAX, ge=0, le=TIME_MAX)
    actions: list[str] = Field(default_factory=list, max_length=64)
    purposes: list[str] = Field(default_factory=list, max_length=64)
    classes: list[str] = Field(default_factory=list, max_length=64)
    actors: list[str] = Field(default_factory=list, max_length=64)
    """Study ids, organisation names, or the word `commercial`."""
    children: list["Provision"] = Field(default_factory=list, max_length=64)


class Policy(_Part):
    """What the patient signs: the provision tree and her own limits."""

    provision: Provision
    epsilon_cap_micro: int | None = Field(default=None, ge=0)
