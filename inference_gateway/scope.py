"""Whether this researcher may ask this: the key's scope, the study and the purpose.

A key may be narrowed to one study and to some purposes; a header may narrow further and never
widen. The purpose asked for must be one that the model's own purpose covers.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from consent.purposes import closure
from coop import credentials
from coop.documents.study import Study
from coop.errors import ForbiddenError, InvalidInputError


class UndeclaredUseError(InvalidInputError):
    """The request does not say under which study or for which purpose it asks."""

    code = "gateway.undeclared-use"


class OutOfScopeError(ForbiddenError):
    """The API key, the study or the purpose does not allow this question."""

    code = "gateway.out-of-scope"


class StudyExpiredError(ForbiddenError):
    """The study's time is over: nothing may be asked under it any more."""

    code = "gateway.study-expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, and what the request declares."""

    account_id: int
    key_id: str | None
    study_id: str | None = None
    """Header `Coop-Study`."""
    purpose: str | None = None
    """Header `Coop-Purpose`: a DUO code."""

    @property
    def account(self) -> str:
        """The account that pays."""
        return f"researcher:{self.account_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A declared and admitted use."""

    study_id: str
    purpose: str


def admit(
    connection: sa.Connection, asker: Asker, *, study: Study, purpose: str, now: int
) -> Declared:
    """The use that `asker` declares, if it lies within the key's scope and the study's.

    Args:
        connection: An open transaction.
        asker: With headers; what they leave open is taken from the key if it names exactly one.
        study: Under which is asked.
        purpose: The widest that may be asked for: the passport's or the study's.
        now: UTC seconds.

    Raises:
        UndeclaredUseError: Study or purpose is declared neither by a header nor by the key.
        OutOfScopeError: Beyond the key, another study, or a purpose that is not covered.
        StudyExpiredError: The study is over.
    """
    key_study: str | None = None
    key_purposes: tuple[str, ...] = ()
    if asker.key_id is not None:
        key = credentials.api_key(connection, asker.key_id)
        key_study, key_purposes = key.study_id, key.purposes
    declared = Declared(
        study_id=_declared(asker.study_id, [key_study] if key_study else [], "Coop-Study"),
        purpose=_declared(asker.purpose, list(key_purposes), "Coop-Purpose"),
    )
    if key_study is not None and declared.study_id != key_study:
        raise OutOfScopeError("Coop-Study: this API key is for another study")
    if key_purposes and declared.purpose not in key_purposes:
        raise OutOfScopeError("Coop-Purpose: this API key is not for this purpose")
    if declared.study_id != study.study_id:
        raise OutOfScopeError("Coop-Study: the model was not made in this study")
    covered = declared.purpose == purpose or purpose in closure(declared.purpose, study.disease)
    if not covered:
        raise OutOfScopeError(f"Coop-Purpose: not covered by {purpose}")
    if now >= study.expires:
        raise StudyExpiredError("study: has expired; nothing may be asked under it")
    return declared


def _declared(header: str | None, scope: list[str], name: str) -> str:
    if header is not None:
        return header
    if len(scope) == 1:
        return scope[0]
    raise UndeclaredUseError(f"{name}: say it in this header")
