"""`coop patient`: enrol, decide, withdraw and look, with a key file that never leaves this machine.

One key speaks for one record at one hospital. Everything that comes back is verified against a
trust file (`--trust`, `COOP_TRUST_FILE`): without one it is shown and marked NOT VERIFIED.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from coop.cli.output import day, privacy_spent, show
from coop.errors import CoopError, Kind

if TYPE_CHECKING:
    from coop.client import Client
    from coop.journal.trust import Trust
    from coop.keys import SigningKey

app = typer.Typer(add_completion=False, no_args_is_help=True)
KeyFile = Annotated[Path, typer.Option("--key", help="Your key file; keep it, and keep a copy.")]
TrustFile = Annotated[
    Path | None, typer.Option("--trust", help="Keys to trust; default COOP_TRUST_FILE.")
]
Record = Annotated[
    str | None,
    typer.Option("--record", help="The record's pid, if your key speaks for more than one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
HERE: Final = Path("patient.key")
_POLL_S: Final = 1.0


class NotEnrolledYetError(CoopError):
    """The hospital has not answered the redemption, or refused it."""

    code = "patient.not-enrolled"
    kind = Kind.CONFLICT


class AmbiguousRecordError(CoopError):
    """The key speaks for several records, and the command is about one."""

    code = "patient.several-records"
    kind = Kind.CONFLICT


class ConsentRefusedError(CoopError):
    """The registry refused the signed event."""

    code = "patient.refused"
    kind = Kind.CONFLICT


@app.command()
def new(  # noqa: PLR0913, PLR0917  (one per option of the command)
    code: Annotated[str, typer.Option(help="The enrolment code from your hospital.")],
    letter: Annotated[
        str | None, typer.Option(help="If your record had a key: what the letter says.")
    ] = None,
    key: KeyFile = HERE,
    guardian: Annotated[list[str] | None, typer.Option(help="Can recover your key: a did.")] = None,
    threshold: Annotated[int, typer.Option(min=1, help="How many guardians it takes.")] = 1,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for the hospital.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Make a key for the record your code names and have your hospital enrol it.

    The code's secret stays here, and so does FILE.next, the key that may follow. A repeat goes on.
    """
    from coop.cli.keys import wishes
    from coop.enrolment import joined, parse_code, redemption
    from coop.keys import SigningKey

    whole = joined(code, letter)
    parse_code(whole)  # refused before a key is made
    if not key.exists():
        SigningKey.generate().save(key)
    signing = SigningKey.load(key)
    with hub_client(signing) as client:
        sent = {"redemptions": [redemption(whole, signing, wishes(key, guardian, threshold))]}
        result = client.post("/v1/enrolments:redeem", sent)["results"][0]
        raise_if_refused(result.get("problem"))
        until = time.monotonic() + wait
        pid = _pid_or_none(client)
        state = str(result["state"])
        while pid is None and state == "pending" and time.monotonic() < until:
            time.sleep(_POLL_S)
            state = str(client.get(f"/v1/enrolments/{result['code_id']}")["state"])
            pid = _pid_or_none(client)
    if state == "refused":
        raise NotEnrolledYetError("code: your hospital refused it; ask at its desk for a new one")
    facts = {
        "code_id": result["code_id"],
        "site": result["site"],
        "did": signing.did,
        "key_file": str(key),
        "state": "enrolled" if pid else state,
        "pid": pid,
    }
    text = f"key in {key}; {result['site']} has enrolled it for your record"
    if pid is None:
        text = f"key in {key}; {result['site']} has not answered yet: run this again later"
    show(facts, as_json, text)


@app.command()
def receipts(  # noqa: PLR0913, PLR0917  (one per option of the command)
    key: KeyFile = HERE,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to keep each receipt in, for coop verify.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="Also as fhir, fhir-r5, dpv (ISO 27560) or kantara."),
    ] = None,
    jurisdiction: Annotated[
        str | None, typer.Option(help="Whose law applies, like EU; Kantara needs it.")
    ] = None,
    record: Record = None,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Every decision of yours with its proof, verified."""
    import orjson

    from coop.cli.receipt_forms import exports
    from coop.verify import verify_consent

    pinned = trusted(trust)
    with hub_client(load_key(key)) as client:
        pid, _ = record_of(client, record)
        events = list(client.pages(f"/v1/consents/{pid}/history", "events"))
        standing = client.get(f"/v1/consents/{pid}")
    others = exports(form, events, standing, jurisdiction, int(time.time())) if form else None
    for event in events:
        report = verify_consent(event["proof"], pinned) if pinned else None
        event["verified"] = report is not None
        event["witnessed"] = report.witnessed if report else False
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            event["file"] = str(out / f"consent-{event['sequence']:04d}.json")
            Path(event["file"]).write_bytes(orjson.dumps(event["proof"]))
        if others is not None:
            event[str(form)] = others[event["sequence"]]
            if out is not None and event[str(form)] is not None:
                other = out / f"consent-{event['sequence']:04d}.{form}.json"
                other.write_bytes(orjson.dumps(event[str(form)]))
    lines = [
        f"{event['sequence']:>3} {event['event']:8} entry {event['log_index']:<7} "
        f"{'verified' if event['verified'] else 'NOT VERIFIED'}"
        f"{', seen by other hospitals' if event['witnessed'] else ''}"
        for event in events
    ]
    if others is not None and out is None:
        lines = [orjson.dumps(other).decode() for other in others.values() if other is not None]
    show({"pid": pid, "events": events}, as_json, "\n".join(lines) or "no decision yet")


@app.command()
def statement(
    key: KeyFile = HERE, record: Record = None, trust: TrustFile = None, as_json: AsJson = False
) -> None:
    """What used your record: your hospital's own signed list, relayed and kept nowhere."""
    from coop.documents.consent import UseStatement, request_uses
    from coop.verify import open_as

    pinned = trusted(trust)
    signing = load_key(key)
    with hub_client(signing) as client:
        pid, site = record_of(client, record)
        signed = request_uses(signing, site, pid, int(time.time()))
        document = client.get("/v1/me/uses", pid=pid, headers=signed)
    document = document.get("document", document)
    if pinned:
        opened = open_as(UseStatement, document, pinned).subject
        if opened.pid != pid:
            raise ConsentRefusedError("statement: it is about another record")
    said = document["credentialSubject"]
    lines = [
        f"{use['what']:15} study {use['study_id']} v{use['version']} "
        f"{'round ' + str(use['round']) if use.get('round') else ''}"
        for use in said["uses"]
    ]
    lines += [
        f"{study['title']} v{study['version']} by {study['organisation']}: used {study['used']} "
        f"times, kept out by your choice {study['refused']} times"
        for study in said.get("studies", [])
    ]
    lines += privacy_spent(said)
    until = said.get("excluded_from")
    lines.append(f"withdrawn since {day(until)}" if until else "not withdrawn")
    lines.append(f"signed by {said['site']}" if pinned else "signatures: NOT VERIFIED")
    show({"verified": pinned is not None, "statement": document}, as_json, "\n".join(lines))


def load_key(path: Path) -> "SigningKey":
    """The key in a file."""
    from coop.keys import SigningKey

    if not path.exists():
        raise NotEnrolledYetError(
            f"key file {path} is missing; name yours with --key; coop patient new makes one"
        )
    return SigningKey.load(path)


def hub_client(signing: "SigningKey") -> "Client":
    """To the hub, as whoever has this key."""
    from coop.client import Client
    from coop.settings import Settings

    settings = Settings()
    return Client(settings.hub_url, settings.ca_file, key=signing)


def trusted(path: Path | None) -> "Trust | None":
    """The pinned keys; None, and a word about it, without any."""
    from coop.settings import Settings
    from coop.verify import Trust

    chosen = path or Settings().trust_file
    if chosen is None:
        print(
            "no trust file (--trust, COOP_TRUST_FILE): nothing that comes back can be verified",
            file=sys.stderr,
        )
        return None
    return Trust.load(chosen)


def _pid_or_none(client: "Client") -> str | None:
    pids = [one["pid"] for one in client.get("/v1/me")["pids"] if one["own"]]
    return str(pids[0]) if pids else None


def record_of(client: "Client", record: str | None = None) -> tuple[str, str]:
    """(pid, hospital) of the record named, else of the key's own, else of the only other one."""
    pids = client.get("/v1/me")["pids"]
    if not pids:
        raise NotEnrolledYetError("key: your hospital has not enrolled it; coop patient new --code")
    # Without a name it is her own: that somebody named her a proxy changes no command of hers.
    own = [one for one in pids if one["own"]]
    found = [one for one in pids if one["pid"] == record] if record else own or pids
    if not found:
        raise NotEnrolledYetError("--record: this key speaks for no such record")
    if len(found) > 1:
        listed = ", ".join(f"{one['pid']} at {one['site']}" for one in found)
        raise AmbiguousRecordError(f"--record: your key speaks for several; name one of {listed}")
    return str(found[0]["pid"]), str(found[0]["site"])


def raise_if_refused(problem: Mapping[str, Any] | None) -> None:
    """Say why the registry refused a document, if it did."""
    if problem is not None:
        raise ConsentRefusedError(f"{problem['code']}: {problem['detail']}")
