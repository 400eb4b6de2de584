"""What travels in the four stages of a masked round, beside order, request and weights.

Each stage asks with one small JSON document and is answered with one; bytes are base64url in it.
"""

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coop.canonical import Json, from_b64u, jcs, parse_object
from coop.errors import InvalidInputError, Kind

SETUPS_MAX: Final = 256  # of one order; each can fail at most once
STAGE: Final = "stage"
ABOUT: Final = "about"
KEYS: Final = "keys"
SEALED: Final = "sealed"
REVEALED: Final = "revealed"
"""Names of what the stages answer with, beside receipt and update."""


class MalformedStageError(InvalidInputError):
    """The message is no stage of a masked round, or its document has another form."""

    code = "masked.malformed"
    kind = Kind.UNPROCESSABLE


class Stage(StrEnum):
    """In the order in which they happen."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    REVEAL = "reveal"


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    setup: int = Field(ge=1, le=SETUPS_MAX)


class AskKeys(_Said):
    """Keys for the rounds `first` … `last` of the order; `fresh`: the first is drawn anew."""

    first: int = Field(ge=1)
    last: int = Field(ge=1, le=1000)
    fresh: bool


class AskShares(_Said):
    """The signed keys of everybody who takes part."""

    keys: list[dict[str, object]] = Field(min_length=1, max_length=50)


class AskMasked(_Said):
    """Whose shares arrived, and what they sealed to this hospital."""

    parties: list[str] = Field(min_length=1, max_length=50)
    sealed: dict[str, str] = Field(max_length=50)


class AskReveal(_Said):
    """Whose masked vectors arrived."""

    survivors: list[str] = Field(min_length=1, max_length=50)


class Sealed(BaseModel):
    """A hospital's shares, sealed, by recipient."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sealed: dict[str, str] = Field(max_length=50)


class Revealed(BaseModel):
    """The shares a hospital reveals: of survivors' seeds, of drop-outs' mask keys; in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seeds: dict[str, str] = Field(max_length=50)
    masks: dict[str, str] = Field(max_length=50)


Ask = AskKeys | AskShares | AskMasked | AskReveal
_FORM: Final[dict[Stage, type[Ask]]] = {
    Stage.KEYS: AskKeys,
    Stage.SHARES: AskShares,
    Stage.MASKED: AskMasked,
    Stage.REVEAL: AskReveal,
}


def to_content(ask: Ask) -> dict[str, bytes]:
    """The message's own parts; order, request and weights go beside them."""
    stage = next(stage for stage, form in _FORM.items() if isinstance(ask, form))
    return {STAGE: stage.value.encode(), ABOUT: said(ask)}


def from_content(content: dict[str, object]) -> Ask:
    """The stage a message asks for.

    Raises:
        MalformedStageError: None, or its document has another form.
    """
    stage, about = content.get(STAGE), content.get(ABOUT)
    if not (isinstance(stage, bytes) and isinstance(about, bytes)):
        raise MalformedStageError("message: must name a stage and what it is about")
    try:
        return _FORM[Stage(stage.decode())].model_validate(parse_object(about))
    except (ValueError, UnicodeDecodeError) as error:
        raise MalformedStageError("message: not one of the four stages") from error


def said(model: BaseModel) -> bytes:
    """Canonical bytes of one of these documents."""
    value: dict[str, Json] = model.model_dump(mode="json")
    return jcs(value)


def read(form: type[Sealed] | type[Revealed], data: bytes) -> Sealed | Revealed:
    """A hospital's answer.

    Raises:
        MalformedStageError: It has another form.
    """
    try:
        return form.model_validate(parse_object(data))
    except ValidationError as error:
        raise MalformedStageError("answer: has another form") from error


def boxes(sealed: dict[str, str]) -> dict[str, bytes]:
    """Sealed shares as bytes.

    Raises:
        NotCanonicalError: One is not base64url.
    """
    return {site: from_b64u(text) for site, text in sealed.items()}
