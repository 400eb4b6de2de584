"""Who may speak for a record, in a patient's words: from the hub's JSON to what the page shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ui import wording
from ui.viewmodels import day

_PASSKEY: Final = "did:key:zDn"  # P-256; an Ed25519 key begins otherwise
_LAST_DATE: Final = 253_402_300_799  # of the year 9999; documents may say later for "no end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who may decide, or could once."""

    digest: str
    title: str
    detail: str
    may_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCard:
    """One record's key and people."""

    pid: str
    title: str
    kind: str
    """What sort of key it is; for a hospital's key this says that the hospital signs."""
    did: str
    warnings: list[str]
    lines: list[str]
    pending: str
    """What was allowed and does not count yet; empty where nothing is."""
    may_stop_pending: bool
    people: list[Person]
    close_title: str
    may_close: bool
    is_new: bool
    """Whether the key waits: the time to object to it."""
    has_commands: bool


def key_card(record: Mapping[str, Any], consent: Mapping[str, Any], now: int) -> KeyCard:
    """The card of one record.

    Args:
        record: Of `GET /v1/me/keys`.
        consent: Of `GET /v1/me/consents`, for the same record.
        now: UTC seconds.
    """
    key = record["key"]
    own = key["custody"] == "self"
    kind = "passkey" if own and str(key["did"]).startswith(_PASSKEY) else str(key["custody"])
    is_new = bool(record["waits_until"]) and not record["closed"]
    pending = _pending(consent)
    death = wording.ON_DEATH.get(str(consent.get("on_death")))
    since = f"In force since {day(key['since'])}."
    return KeyCard(
        pid=str(record["pid"]),
        title=f"Your record at {record['site']}",
        kind=wording.KEY_KINDS.get(kind, kind),
        did=str(key["did"]),
        warnings=_warnings(record),
        lines=[since, *_ways_to_a_new_key(record), *([death] if death else [])],
        pending=pending,
        may_stop_pending=bool(pending) and pending != wording.PENDING_NEVER,
        people=[_person(one, now) for one in record["representatives"]],
        close_title=wording.OBJECT_KEY_TITLE if is_new else wording.CLOSE_TITLE,
        may_close=not record["closed"],
        is_new=is_new,
        has_commands=kind in {"self", "demo"} and not record["closed"],
    )


def replaced_line(record: Mapping[str, Any]) -> str:
    """What the holder of an earlier key is told."""
    since = day(record["key"]["since"])
    return wording.REPLACED_TEXT.format(site=record["site"], day=since)


def _warnings(record: Mapping[str, Any]) -> list[str]:
    found = []
    if record["closed"]:
        found.append(wording.KEY_CLOSED)
    elif record["waits_until"]:
        found.append(wording.KEY_WAITS.format(day=day(record["waits_until"])))
    if record["votes"]:
        found.append(wording.KEY_VOTES.format(count=len(record["votes"])))
    return found


def _ways_to_a_new_key(record: Mapping[str, Any]) -> list[str]:
    if record["key"]["custody"] == "custodial":
        return []  # the hospital's key; hers comes with a code from the desk
    guardians = len(record["guardians"])
    told = wording.KEY_GUARDIANS.format(threshold=record["threshold"], count=guardians)
    return [
        wording.KEY_NEXT if record["next_key_committed"] else wording.KEY_NO_NEXT,
        told if guardians else wording.KEY_NO_GUARDIANS,
    ]


def _pending(consent: Mapping[str, Any]) -> str:
    if consent.get("state") != "waiting":
        return ""
    if consent["starts_at"] > _LAST_DATE:
        return wording.PENDING_NEVER
    return wording.PENDING.format(day=day(consent["starts_at"]))


def _person(one: Mapping[str, Any], now: int) -> Person:
    role = wording.ROLES.get(str(one["role"]), str(one["role"]))
    named = wording.NAMED_BY[str(one["named_by"])]
    over = one["valid_until"] <= now
    # An executor ends things and allows nothing.
    may = "may stop everything" if one["role"] == "executor" else "may decide"
    if one["ended_at"]:
        detail = f"ended on {day(one['ended_at'])}"
    elif over:
        detail = f"ran out on {day(one['valid_until'])}"
    elif one["in_force"]:
        detail = f"{may} {_until(one['valid_until'])}"
    else:
        detail = f"{may} from {day(one['valid_from'])} {_until(one['valid_until'])}"
    return Person(
        digest=str(one["digest"]),
        title=f"{role}, {named}",
        detail=f"{detail}; key {one['did']}",
        may_end=not one["ended_at"] and not over,
    )


def _until(seconds: int) -> str:
    return "with no last day" if seconds > _LAST_DATE else f"until {day(seconds)}"
