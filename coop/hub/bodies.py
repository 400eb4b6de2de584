"""The base of every request and answer body of the hub's own routes."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """No unknown members, no conversions: `true` is no number and `"1"` is none either."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DocumentBody(Body):
    """One signed document."""

    document: dict[str, Any]


Text = Field(min_length=1, max_length=200)
