"""One way for commands to answer: a JSON document for programs, or text for people."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import typer


def show(facts: Mapping[str, object], as_json: bool, text: str) -> None:
    """Print `facts` as one JSON document with `--json`, else `text`."""
    print(orjson.dumps(facts).decode() if as_json else text)


def told(facts: Mapping[str, object], indent: str = "") -> str:
    """`facts` as lines of name and value, nothing left out; what lies deeper is indented."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}", told(value, f"{indent}  ")]
        elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            lines.append(f"{indent}{name}")
            lines += [f"{indent}  - {_said(each)}" for each in value]
        else:
            said = day(value) if name == "at" and isinstance(value, int) else _said(value)
            lines.append(f"{indent}{name:<{max(0, 24 - len(indent))}} {said}")
    return "\n".join(lines)


_DAY_S: Final = 86_400
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
_LAST_DATE: Final = 253_402_300_799  # of the year 9999; documents say later for "no end"


def day(seconds: int) -> str:
    """A time as people in every zone read it: `2026-11-25 04:12:07 UTC`."""
    from coop.keys import iso

    if seconds > _LAST_DATE:
        return "no last day"
    return iso(seconds).replace("T", " ").replace("Z", " UTC")


def instant(text: str | None, option: str, *, now: int) -> int:
    """UTC seconds at which a day that was typed begins, or of a time with its zone."""
    return _ahead(_instant(text, option)[0], option, now)


def last_second(text: str, option: str, *, now: int) -> int:
    """UTC seconds at which what holds until a day (that day included) or a time has ended."""
    at, whole_day = _instant(text, option)
    return _ahead(at + _DAY_S if whole_day else at, option, now)


def _ahead(at: int, option: str, now: int) -> int:
    if at <= now:
        raise typer.BadParameter("must lie in the future", param_hint=option)
    return at


def _instant(text: str | None, option: str) -> tuple[int, bool]:
    typed = text or ""
    whole_day = _DAY.fullmatch(typed) is not None
    try:
        at = datetime.fromisoformat(typed)
    except ValueError:
        at = None
    if at is None or (at.tzinfo is None) != whole_day:
        raise typer.BadParameter(
            "must be a day like 2031-05-04 (in UTC), or a time with its zone like "
            "2031-05-04T10:00:00+02:00",
            param_hint=option,
        )
    return int((at.replace(tzinfo=UTC) if whole_day else at).timestamp()), whole_day


def micro(text: str | None) -> int | None:
    """Millionths of what was typed for --epsilon-cap; None stays None."""
    from decimal import Decimal, InvalidOperation

    from coop.errors import InvalidInputError

    if text is None:
        return None
    try:
        exact = Decimal(text) * 1_000_000
    except InvalidOperation as error:
        raise InvalidInputError("--epsilon-cap: must be a number like 0.5") from error
    if not exact.is_finite() or exact < 0 or exact != int(exact):
        raise InvalidInputError("--epsilon-cap: must be a number like 0.5, at most six places")
    return int(exact)


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def privacy_spent(statement: Mapping[str, Any]) -> list[str]:
    """The odometer in a statement of uses, in words."""
    spent = statement.get("privacy")
    if spent is None:
        return []
    micro = 1_000_000
    line = (
        f"privacy used here: epsilon {spent['epsilon_micro'] / micro:.3f} of at most "
        f"{spent['limit_epsilon_micro'] / micro:g} in a lifetime"
    )
    alone = spent["alone_epsilon_micro"]
    if alone > spent["epsilon_micro"]:
        line += f" ({alone / micro:.3f} if no other hospital's noise counted)"
    return [line]
