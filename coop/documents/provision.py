"""The policy a patient signs, as data: a tree of provisions and her own limits.

Core: pure, no I/O. It stands apart from the signed documents so that what decides consent depends
on nothing that signs, stores or sends. A policy never changes once it is made, all the way down: a
list given to it is kept as a tuple.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

TIME_MAX = 2**53 - 1
"""The open end of a period."""

_Codes = Annotated[Sequence[str], AfterValidator(tuple)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Provision(_Part):
    """A rule with exceptions. An empty list means "any"; periods are half-open [start, end).

    `start` and `end` say when the rule is in force; `data_start` and `data_end` say which of her
    data it lets out, by the date each of them bears. The two are never mixed: she may permit from
    today on the use of what was recorded ten years ago, and the other way round.
    """

    type: Literal["permit", "deny"]
    start: int = Field(default=0, ge=0)
    end: int = Field(default=TIME_MAX, ge=0, le=TIME_MAX)
    actions: _Codes = Field(default=(), max_length=64)
    purposes: _Codes = Field(default=(), max_length=64)
    classes: _Codes = Field(default=(), max_length=64)
    actors: _Codes = Field(default=(), max_length=64)
    """Study ids, organisation names, or the word `commercial`."""
    data_start: int = Field(default=0, ge=0, le=TIME_MAX)
    data_end: int = Field(default=TIME_MAX, ge=0, le=TIME_MAX)
    children: Annotated[Sequence["Provision"], AfterValidator(tuple)] = Field(
        default=(), max_length=64
    )


class Policy(_Part):
    """What the patient signs: the provision tree and her own limits."""

    provision: Provision
    epsilon_cap_micro: int | None = Field(default=None, ge=0, le=TIME_MAX)
    min_cohort: int | None = Field(default=None, ge=1, le=TIME_MAX)
    """The smallest number of people she wants to be among."""
