"""`coop patient keys|rotate|recover|close`: the keys of a record, and who gives it a new one.

The commands belong to the group in `coop.cli.patient`, which is loaded through this module.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from coop.cli import deciding, hidden, patient, proxies
from coop.cli.output import day, show
from coop.cli.patient import HERE, AsJson, KeyFile, app
from coop.errors import CoopError, Kind

if TYPE_CHECKING:
    from coop.client import Client
    from coop.keys import SigningKey

__all__ = ["app", "deciding", "hidden", "proxies"]

NEXT: Final = ".next"
"""The key that may replace this one; the hospital holds its hash since the enrolment."""
_AFTER: Final = ".after"
_OLD: Final = ".old"


class NoNextKeyError(CoopError):
    """There is no key that was committed to before; only a recovery gives the record a new one."""

    code = "patient.no-next-key"
    kind = Kind.CONFLICT


def wishes(key: Path, guardians: list[str] | None, threshold: int) -> dict[str, Any]:
    """What an enrolment names beside the key: the hash of the next one, and who can recover it."""
    from coop.documents.people import committed

    named = {"guardians": guardians, "threshold": threshold} if guardians else {}
    return {"next_key_sha256": committed(_made(key.with_name(key.name + NEXT)).did), **named}


@app.command()
def keys(key: KeyFile = HERE, as_json: AsJson = False) -> None:
    """Which key speaks for your record, who may decide for you, and what waits."""
    with patient.hub_client(patient.load_key(key)) as client:
        said = client.get("/v1/me/keys")
    lines = [line for record in said["records"] for line in _lines(record)]
    show(said, as_json, "\n".join(lines) or "your hospital has not enrolled this key")


@app.command()
def rotate(key: KeyFile = HERE, as_json: AsJson = False) -> None:
    """Replace your key by the next one, which was named at your enrolment; at once.

    FILE.next becomes FILE, the old key is kept as FILE.old. A repeat goes on where it stopped.
    """
    from coop.documents.people import KeyEvent, committed
    from coop.keys import SigningKey

    following = key.with_name(key.name + NEXT)
    after, old = key.with_name(key.name + _AFTER), key.with_name(key.name + _OLD)
    if old.exists() and after.exists() and not (key.exists() and following.exists()):
        # Killed between the moves below: the hub had taken the new key already.
        if not key.exists():
            following.replace(key)
        after.replace(following)
        facts = {"did": SigningKey.load(key).did, "key_file": str(key), "old_key_file": str(old)}
        show(facts, as_json, f"{key} now holds the new key; the old one is {old}")
        return
    if not following.exists():
        raise NoNextKeyError(
            f"key file {following} is missing: ask at your hospital's desk for a new code"
        )
    current, new = patient.load_key(key), SigningKey.load(following)
    later = _made(after)
    with patient.hub_client(current) as client:
        record = _record(client)
    # Rotated before and killed before the files were moved: the hub knows the new key already.
    if record is not None:
        subject = KeyEvent(
            pid=record["pid"],
            site=record["site"],
            sequence=record["sequence"] + 1,
            previous=record["head_sha256"],
            event="rotate",
            key=new.did,
            next_key_sha256=committed(later.did),
        )
        with patient.hub_client(new) as client:
            _submitted(client, subject, new)
    with patient.hub_client(new) as client:
        record = _record(client)
    if record is None or record["key"]["did"] != new.did:
        raise NoNextKeyError("key: neither this key nor the next speaks for a record")
    key.replace(old)
    following.replace(key)
    after.replace(following)
    facts = {"pid": record["pid"], "did": new.did, "key_file": str(key), "old_key_file": str(old)}
    show(facts, as_json, f"{key} now holds the new key; the old one is {old}")


@app.command()
def recover(
    key: KeyFile = HERE,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Make the new key, and print what guardians need.")
    ] = False,
    pid: Annotated[str | None, typer.Option(help="The record that gets a new key.")] = None,
    new_key: Annotated[str | None, typer.Option("--new-key", help="Its did.")] = None,
    next_key: Annotated[
        str | None, typer.Option("--next-key", help="The hash that --prepare printed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a record whose key is lost a new one; enough of its guardians must say the same.

    She who lost it runs --prepare --key NEWFILE; each guardian runs it with her own --key and the
    three values. The new key can stop everything at once, and allow something after seven days.
    """
    from coop.documents.people import KeyEvent, committed

    if prepare:
        made, later = _made(key), _made(key.with_name(key.name + NEXT))
        facts: dict[str, Any] = {"new_key": made.did, "next_key": committed(later.did)}
        show(facts, as_json, f"--new-key {facts['new_key']} --next-key {facts['next_key']}")
        return
    if pid is None or new_key is None or next_key is None:
        raise typer.BadParameter("guardians give --pid, --new-key and --next-key")
    guardian = patient.load_key(key)
    with patient.hub_client(guardian) as client:
        record = client.get(f"/v1/keys/{pid}")
        subject = KeyEvent(
            pid=pid,
            site=record["site"],
            sequence=record["sequence"] + 1,
            previous=record["head_sha256"],
            event="recover",
            key=new_key,
            next_key_sha256=next_key,
        )
        _submitted(client, subject, guardian)
        record = client.get(f"/v1/keys/{pid}")
    done = record["key"]["did"] == new_key
    text = "your word is recorded; another guardian's is needed"
    if done:
        waits = record["waits_until"]
        text = f"the record has its new key; it may allow something from {day(waits)}"
    show({"pid": pid, "recovered": done, "waits_until": record["waits_until"]}, as_json, text)


@app.command()
def close(key: KeyFile = HERE, as_json: AsJson = False) -> None:
    """Nobody can allow anything more with your record until your hospital enrols a new key.

    For a key that somebody else may have; also the key before a recovery may do it.
    """
    with patient.hub_client(patient.load_key(key)) as client:
        said = client.get("/v1/me/keys")
        pids = [record["pid"] for record in (*said["records"], *said["replaced"])]
        if not pids:
            raise patient.NotEnrolledYetError("key: it speaks, or spoke, for no record")
        result = client.post(f"/v1/keys/{pids[0]}/revoke-all", {})
    facts = {"pid": pids[0], "closed": True, "effective_by": result["effective_by"]}
    show(facts, as_json, f"closed; in force everywhere by {day(result['effective_by'])}")


def _made(path: Path) -> "SigningKey":
    """The key in this file, made at the first use."""
    from coop.keys import SigningKey

    if not path.exists():
        SigningKey.generate().save(path)
    return SigningKey.load(path)


def _record(client: "Client") -> dict[str, Any] | None:
    records = client.get("/v1/me/keys")["records"]
    return dict(records[0]) if records else None


def _submitted(client: "Client", subject: Any, key: "SigningKey") -> None:  # noqa: ANN401
    from coop.documents.envelope import issue

    document = issue(subject, key, int(time.time()))
    (result,) = client.post("/v1/keys", {"documents": [document]})["results"]
    patient.raise_if_refused(result["problem"])


def _lines(record: dict[str, Any]) -> list[str]:
    key, waits = record["key"], record["waits_until"]
    since = f"since {day(key['since'])}, custody: {key['custody']}"
    lines = [f"record {record['pid']} at {record['site']}: key {key['did']} ({since})"]
    if record["closed"]:
        lines.append("closed: nobody can allow anything until the hospital enrols a new key")
    if waits:
        lines.append(f"the new key may allow something from {day(waits)}")
    if record["guardians"]:
        lines.append(
            f"{record['threshold']} of {len(record['guardians'])} guardians can give it a new key"
        )
    lines += [
        f"{one['role']} until {day(one['valid_until'])}: {one['did']} (named by {one['named_by']})"
        for one in record["representatives"]
        if one["in_force"]
    ]
    return lines
