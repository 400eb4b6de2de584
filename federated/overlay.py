"""The hospital's own prohibitions, read from `overlay.cedar` in its folder at every question.

No file, no prohibitions. A file that cannot be read, in whatever way, forbids everything until it
is mended or taken away. A change counts from the next question on, and once more before an answer
leaves; nothing needs to be restarted. What the hub learns is one code, the same for every rule and
for a broken file: which rule it was stands on the hospital's own console.
"""

import time
from typing import Any, Final

from consent.overlay import BYTES_MAX, Facts, Overlay, forbidding, read
from coop.canonical import sha256
from coop.documents.study import Study
from coop.errors import CoopError, InvalidInputError, Kind
from coop.logs import logger
from federated.approval import approved_studies
from federated.site import Site

FILE: Final = "overlay.cedar"
_ACTIONS: Final = ("train-federated", "evaluate", "infer-aggregate")


class OverlayUnreadableError(InvalidInputError):
    """There is an overlay, and it cannot be read as text."""

    code = "overlay.unreadable"


class HouseRuleError(CoopError):
    """The hospital's own rules forbid it."""

    code = "overlay.forbidden"
    kind = Kind.FORBIDDEN


def refuse_if_forbidden(site: Site, study: Study, action: str, at: int) -> None:
    """Return if the hospital's own rules leave the use of its rows open.

    Raises:
        HouseRuleError: They do not, or cannot be read.
    """
    reasons = _reasons(site, Facts(action=action, at=at, study=study))
    if reasons:
        # The node's own log: it never leaves the house.
        logger().warning("own rules forbid", study=study.study_id, reason="; ".join(reasons)[:500])
        raise HouseRuleError("the hospital's own rules forbid this use of its records")


def facts(site: Site, *, now: int) -> dict[str, Any]:
    """How the overlay stands, and which approved studies it forbids what: for the hospital's staff.

    Returns:
        {"ok", "code" (None where it is read), "problem", "sha256", "rules", "forbids": [{
        "study_id", "version", "action", "rules"}]}.
    """
    found: dict[str, Any] = {"ok": True, "code": None, "problem": None, "sha256": None, "rules": []}
    try:
        text = _text(site)
        if text is not None:
            found["sha256"] = sha256(text.encode()).hex()
            found["rules"] = sorted(read(text).rules.values())
    except CoopError as error:
        found |= {"ok": False, "code": error.code, "problem": error.message}
    with site.database.reading() as connection:
        standing = [row for row in approved_studies(connection) if row["revoked_at"] is None]
    found["forbids"] = [
        {
            "study_id": row["study_id"],
            "version": row["version"],
            "action": action,
            "rules": list(reasons),
        }
        for row in standing
        for action in _ACTIONS
        if action in row["study"].uses
        and (reasons := _reasons(site, Facts(action=action, at=now, study=row["study"])))
    ]
    return found


def check(site: Site) -> dict[str, Any]:
    """What `coop hospital doctor` says of it."""
    said = facts(site, now=int(time.time()))
    if said["ok"]:
        count = len(said["rules"])
        words = f"{count} rules that forbid" if said["sha256"] else f"none: there is no {FILE}"
        return {"ok": True, "found": words}
    return {
        "ok": False,
        "found": f"{said['code']}: {said['problem']}",
        "fix": f"all is refused until {FILE} is mended or taken away; see docs/spec/overlay.md",
    }


def _reasons(site: Site, asked: Facts) -> tuple[str, ...]:
    try:
        overlay = _overlay(site)
    except CoopError as error:
        return (error.code,)
    return () if overlay is None else forbidding(overlay, asked)


def _overlay(site: Site) -> Overlay | None:
    text = _text(site)
    return None if text is None else read(text)


def _text(site: Site) -> str | None:
    """The file's text; None if there is no such file.

    Raises:
        OverlayUnreadableError: It cannot be read.
    """
    path = site.folder / FILE
    try:
        if not path.is_symlink() and not path.exists():
            return None
        with path.open("rb") as file:
            raw = file.read(BYTES_MAX + 1)
        if len(raw) > BYTES_MAX:
            raise OverlayUnreadableError(f"{FILE}: longer than {BYTES_MAX} bytes")
        return raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise OverlayUnreadableError(f"{FILE}: {type(error).__name__}") from error
