"""What a study asserts, made ready to be held against consents: every purpose must be covered.

A study asserts one purpose or several. Each is put to a policy by itself (`consent.decide`) and the
worst answer holds, so one purpose nobody consented to is enough to keep a record out. Three things
a machine never does here: guess a purpose that is not stated, judge one that no permission speaks
of, or turn an abstention into a permit. The first two go to people, who answer by a new version of
the study that says what it is for.

    | asserted                                   | reading | reason                     |
    |--------------------------------------------|---------|----------------------------|
    | a word nobody knows, a disease not named   | unknown | request.unknown-purpose    |
    | population, age, sex or control material   | people  | request.for-people         |
    | nothing                                    | people  | request.nothing-asserted   |
    | anything else                              | clear   |                            |

Core: pure, no I/O.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from consent.purposes import DS, METHODS, NOTHING, PEOPLE_JUDGE, READ_AS, closure, is_disease

ASSERTED_MAX: Final = 16  # a study with more purposes than this is several studies
_KEPT: Final = 1024


class Reading(StrEnum):
    """What a machine makes of the purposes a study asserts."""

    CLEAR = "clear"
    PEOPLE = "people"
    """An access committee decides; until it has, nothing is permitted."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asserted:
    """The purposes of a study, read."""

    reading: Reading
    reason: str | None = None
    """Stable code; None when clear."""
    each: tuple[tuple[str, str | None], ...] = ()
    """(purpose, disease) to be covered one by one, when clear."""


@lru_cache(maxsize=_KEPT)
def asserted(purpose: str, disease: str | None = None, further: tuple[str, ...] = ()) -> Asserted:
    """How a machine reads these purposes.

    Args:
        purpose: DUO permission or word for research; nothing if empty or `DUO:0000001`.
        disease: MONDO code, where `purpose` is research on one disease.
        further: Every other purpose: DUO codes, and diseases as MONDO codes.
    """
    stated = [_read(purpose, disease), *(_read(*_named(code)) for code in further)]
    stated = [one for one in dict.fromkeys(stated) if one[0] not in NOTHING]
    judged = [one for one in stated if one[0] not in PEOPLE_JUDGE]
    if len(further) > ASSERTED_MAX or not all(closure(*one) for one in judged):
        return Asserted(reading=Reading.UNKNOWN, reason="request.unknown-purpose")
    if len(judged) < len(stated):
        return Asserted(reading=Reading.PEOPLE, reason="request.for-people")
    if not stated:
        return Asserted(reading=Reading.PEOPLE, reason="request.nothing-asserted")
    # Beside a use that must be covered anyway, developing methods for it asks for nothing more.
    fields = [one for one in stated if one[0] != METHODS]
    return Asserted(reading=Reading.CLEAR, each=tuple(fields or stated))


def _named(code: str) -> tuple[str, str | None]:
    return (DS, code) if is_disease(code) else (code, None)


def _read(purpose: str, disease: str | None) -> tuple[str, str | None]:
    """A purpose as the permission it asks for; a disease counts only where one is asked about."""
    asked = READ_AS.get(purpose, purpose)
    return asked, (disease if asked == DS else None)
