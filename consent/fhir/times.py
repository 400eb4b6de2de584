"""Times of FHIR and periods of policies.

A FHIR period includes its end, with everything of the end's own precision; a policy's does not. So
an end of `2026-03-01T09:59:59Z` or `2026-02-28` and an end at the start of the next second or day
are the same. A day without a time is a day in UTC.

Core: pure, no I/O.
"""

import re
from datetime import MAXYEAR, UTC, datetime
from typing import Final

from consent.fhir.elements import Element
from consent.fhir.refusals import Why
from consent.fhir.words import SECONDS
from coop.canonical import Json
from coop.documents.provision import TIME_MAX

YEAR_9999: Final = 253_402_300_799  # the last second a FHIR dateTime can name
_FORM: Final = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(\.0+)?(Z|[+-]\d\d:\d\d))?)?)?",
    re.ASCII,
)
_MONTHS: Final = 12
_DAY: Final = 86_400

Span = tuple[int, int]


def span_of(text: str) -> Span | None:
    """[first second, first second after it] of a FHIR date or dateTime; None if it is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, _, zone = found.groups()
    try:
        if zone is not None:
            offset = _offset(zone)
            at = datetime(
                int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC
            )
            first = int(at.timestamp()) - offset
            return first, first + 1
        start = datetime(int(year), int(month or 1), int(day or 1), tzinfo=UTC)
        return int(start.timestamp()), _after(start, month, day)
    except (ValueError, OverflowError):
        return None


def period(element: Element, *, dates: bool) -> Span:
    """[start, end) of a Period element, with whatever is wrong noted on it.

    Args:
        element: The Period.
        dates: Of data, and not of when a rule is in force: then a start before 1970 is refused,
            since it cannot be told apart from no start at all.
    """
    element.only("start", "end", "_start", "_end", "id")
    start, end = _instant(element, "start"), _instant(element, "end")
    first = start[0] if start else 0
    last = end[1] if end else TIME_MAX
    if first < 0 and dates:
        element.refuse(Why.TIME, "lies before 1970", "start")
    first = max(first, 0)
    if last <= first:
        element.refuse(Why.TIME, "ends before it starts, or before 1970", "end")
        return 0, TIME_MAX
    return first, last


def written(start: int, end: int) -> dict[str, Json] | None:
    """The Period element of [start, end); None if it is open on both sides."""
    found: dict[str, Json] = {}
    if start > 0:
        found |= _member("start", start, start)
    if end < TIME_MAX:
        found |= _member("end", end - 1, end)
    return found or None


def moment(seconds: int) -> str:
    """The dateTime of an instant."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _member(name: str, shown: int, exact: int) -> dict[str, Json]:
    if shown <= YEAR_9999:
        return {name: moment(shown)}
    return {f"_{name}": {"extension": [{"url": SECONDS, "valueString": str(exact)}]}}


def _instant(element: Element, name: str) -> Span | None:
    shadow = element.part(f"_{name}")
    if shadow is not None:
        return _beyond(element, shadow, name)
    text = element.text(name)
    if text is None:
        return None
    span = span_of(text)
    if span is None:
        element.refuse(Why.TIME, "must be a FHIR dateTime in whole seconds, with a zone", name)
    return span


def _beyond(element: Element, shadow: Element, name: str) -> Span | None:
    extensions = list(shadow.parts("extension"))
    if element.has(name) or len(extensions) != 1 or extensions[0].text("url") != SECONDS:
        shadow.refuse(Why.UNKNOWN_ELEMENT, "an extension not understood here")
        return None
    text = extensions[0].text("valueString") or ""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(TIME_MAX))):
        shadow.refuse(Why.TIME, "must be whole seconds")
        return None
    exact = int(text)
    if not YEAR_9999 < exact < TIME_MAX:
        shadow.refuse(Why.TIME, "must lie beyond the year 9999")
        return None
    return exact, exact


def _offset(zone: str) -> int:
    if zone == "Z":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    if hours > 14 or minutes > 59:  # noqa: PLR2004  (the widest zone is +14:00)
        raise ValueError("no such zone")
    return (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)


def _after(start: datetime, month: str | None, day: str | None) -> int:
    if day is not None:
        return int(start.timestamp()) + _DAY
    if start.year == MAXYEAR and (month is None or start.month == _MONTHS):
        return YEAR_9999 + 1
    if month is None:
        return int(start.replace(year=start.year + 1).timestamp())
    year, following = start.year + start.month // _MONTHS, start.month % _MONTHS + 1
    return int(start.replace(year=year, month=following).timestamp())
