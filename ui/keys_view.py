"""Who may speak for a record, in a patient's words: from the hub's JSON to what the page shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ui import wording
from ui.viewmodels import day

_PASSKEY = "did:key:zDn"  # P-256; an Ed25519 key begins otherwise


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
    people: list[Person]
    may_close: bool


def key_card(record: Mapping[str, Any]) -> KeyCard:
    """The card of one record of `GET /v1/me/keys`."""
    key = record["key"]
    own = key["custody"] == "self"
    kind = "passkey" if own and str(key["did"]).startswith(_PASSKEY) else str(key["custody"])
    return KeyCard(
        pid=str(record["pid"]),
        title=f"Your record at {record['site']}",
        kind=wording.KEY_KINDS.get(kind, kind),
        did=str(key["did"]),
        warnings=_warnings(record),
        lines=[f"In force since {day(key['since'])}.", *_ways_to_a_new_key(record)],
        people=[_person(one) for one in record["representatives"]],
        may_close=not record["closed"],
    )


def replaced_line(record: Mapping[str, Any]) -> str:
    """What the holder of an earlier key is told."""
    since = day(record["key"]["since"])
    return wording.REPLACED_TEXT.format(site=record["site"], day=since)


def _warnings(record: Mapping[str, Any]) -> list[str]:
    found = []
    if record["closed"]:
        found.append(wording.KEY_CLOSED)
    if record["waits_until"]:
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


def _person(one: Mapping[str, Any]) -> Person:
    role = wording.ROLES.get(str(one["role"]), str(one["role"]))
    named = wording.NAMED_BY[str(one["named_by"])]
    if one["ended_at"]:
        detail = f"ended on {day(one['ended_at'])}"
    elif one["in_force"]:
        detail = f"may decide until {day(one['valid_until'])}"
    else:
        detail = f"from {day(one['valid_from'])} until {day(one['valid_until'])}; not in force now"
    return Person(
        digest=str(one["digest"]),
        title=f"{role}, {named}",
        detail=f"{detail}; key {one['did']}",
        may_end=not one["ended_at"],
    )
