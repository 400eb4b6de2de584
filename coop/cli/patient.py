"""`coop patient`: enrol, decide, withdraw and look, with a key file that never leaves this machine.

One key speaks for one record at one hospital. Everything that comes back is verified against a
trust file (`--trust`, `COOP_TRUST_FILE`): without one it is shown and marked NOT VERIFIED.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from coop.cli.output import day, micro, privacy_spent, show
from coop.errors import CoopError, Kind

if TYPE_CHECKING:
    from coop.client import Client
    from coop.documents.consent import Notice
    from coop.documents.provision import Policy
    from coop.journal.trust import Trust
    from coop.keys import SigningKey

    Choice = tuple[Policy | None, Notice | None, Literal["decide", "object", "lift"]]

app = typer.Typer(add_completion=False, no_args_is_help=True)
KeyFile = Annotated[Path, typer.Option("--key", help="Your key file; keep it, and keep a copy.")]
TrustFile = Annotated[
    Path | None, typer.Option("--trust", help="Keys to trust; default COOP_TRUST_FILE.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
HERE: Final = Path("patient.key")
_POLL_S: Final = 1.0
_MOVED_ON: Final = "consent.chain"
_IN_FORCE: Final = frozenset({"active", "suspended", "expired", "waiting"})
_TRIES: Final = 3  # the chain may grow between reading and signing (a suspension at the desk)


class NotEnrolledYetError(CoopError):
    """The hospital has not answered the redemption, or refused it."""

    code = "patient.not-enrolled"
    kind = Kind.CONFLICT


class ConsentRefusedError(CoopError):
    """The registry refused the signed event."""

    code = "patient.refused"
    kind = Kind.CONFLICT


@app.command()
def new(
    code: Annotated[str, typer.Option(help="The enrolment code from your hospital.")],
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
    from coop.enrolment import parse_code, redemption
    from coop.keys import SigningKey

    parse_code(code)  # refused before a key is made
    if not key.exists():
        SigningKey.generate().save(key)
    signing = SigningKey.load(key)
    with _client(signing) as client:
        sent = {"redemptions": [redemption(code, signing, wishes(key, guardian, threshold))]}
        result = client.post("/v1/enrolments:redeem", sent)["results"][0]
        _raise_if_refused(result.get("problem"))
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
def consent(  # noqa: PLR0913, PLR0917  (one per option of the command)
    preset: Annotated[
        str,
        typer.Option(
            help="all-research, with-companies, no-companies, train-only, disease-only, "
            "this-study or refuse."
        ),
    ],
    key: KeyFile = HERE,
    data_class: Annotated[str, typer.Option(help="The kind of data.")] = "cardiology",
    disease: Annotated[str | None, typer.Option(help="MONDO code, for disease-only.")] = None,
    study: Annotated[str | None, typer.Option(help="Study id, for this-study.")] = None,
    epsilon_cap: Annotated[
        str | None, typer.Option(help="Your own limit of privacy cost per study, like 0.5.")
    ] = None,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Decide: sign a policy for your record. A later decision replaces an earlier one."""
    from consent.policy import preset as ready_made

    policy = ready_made(
        preset,
        data_class=data_class,
        disease=disease,
        study_id=study,
        epsilon_cap_micro=micro(epsilon_cap),
    )
    _decide(key, trust, policy, as_json=as_json)


@app.command("object")
def object_to_all(
    key: KeyFile = HERE,
    lift: Annotated[bool, typer.Option("--lift", help="End the objection instead.")] = False,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Object to all research with your record, whatever else you allow; or end that with --lift."""
    _decide(key, trust, None, event="lift" if lift else "object", as_json=as_json)


@app.command()
def withdraw(key: KeyFile = HERE, trust: TrustFile = None, as_json: AsJson = False) -> None:
    """Withdraw: from a minute from now on, nothing new uses your record."""
    _decide(key, trust, None, as_json=as_json)


@app.command()
def receipts(
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
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Every decision of yours with its proof, verified."""
    import orjson

    from coop.cli.receipt_forms import exports
    from coop.verify import verify_consent

    pinned = _trusted(trust)
    with _client(_key(key)) as client:
        pid = _pid(client)
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
def statement(key: KeyFile = HERE, trust: TrustFile = None, as_json: AsJson = False) -> None:
    """What used your record: your hospital's own signed list, relayed and kept nowhere."""
    from coop.documents.consent import UseStatement, request_uses
    from coop.verify import open_as

    pinned = _trusted(trust)
    signing = _key(key)
    with _client(signing) as client:
        pid, site = _record(client)
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


def _decide(
    key_file: Path,
    trust: Path | None,
    policy: "Policy | None",
    *,
    event: Literal["decide", "object", "lift"] = "decide",
    as_json: bool,
) -> None:
    from coop.cli.acting import told_before

    pinned = _trusted(trust)
    signing = _key(key_file)
    with _client(signing) as client:
        pid = _pid(client)
        notice = None if policy is None else told_before(client, quiet=as_json)
        found = _submitted(client, signing, pid, (policy, notice, event))
    if found is None:
        facts: dict[str, Any] = {"pid": pid, "event": None}
        show(facts, as_json, "nothing to do: it is so already")
        return
    document, result = found
    facts = {
        "pid": pid,
        "event": document["credentialSubject"]["event"],
        "effective_by": result["effective_by"],
        "fresh": result["fresh"],
        "receipt": result["receipt"],
        **_checked(result["receipt"], document, pinned),
    }
    text = (
        f"{facts['event']} recorded at entry {facts['index']}, in force everywhere by "
        f"{day(facts['effective_by'])}\n"
        f"receipt: {'verified' if facts['verified'] else 'NOT VERIFIED'}"
    )
    show(facts, as_json, text)


def _submitted(
    client: "Client", signing: "SigningKey", pid: str, choice: "Choice"
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The event that was sent and the registry's answer; None when there is nothing to withdraw."""
    from coop.cli.acting import acting

    problem: Mapping[str, Any] | None = None
    for _ in range(_TRIES):
        standing = client.get(f"/v1/consents/{pid}")
        document = _event(signing, standing, choice, acting(client, signing, standing))
        if document is None:
            return None
        result = client.post("/v1/consents", {"documents": [document]})["results"][0]
        problem = result.get("problem")
        if problem is None:
            return document, result
        if problem["code"] != _MOVED_ON:
            break
    _raise_if_refused(problem)
    return None


def _event(
    signing: "SigningKey", standing: Mapping[str, Any], choice: "Choice", speaks: dict[str, Any]
) -> dict[str, Any] | None:
    """The next event of the chain, signed; None when there is nothing to withdraw."""
    from coop.documents.consent import Consent
    from coop.documents.envelope import issue

    state = standing["state"]
    policy, notice, asked = choice
    if asked == "decide" and policy is None and state not in _IN_FORCE:
        return None
    if asked != "decide" and standing["objected"] == (asked == "object"):
        return None
    decided = "amend" if state in _IN_FORCE - {"suspended"} else "grant"
    subject = Consent(
        pid=standing["pid"],
        site=standing["site"],
        domain="research",
        sequence=standing["sequence"] + 1,
        previous=standing["head_sha256"],
        event=asked if asked != "decide" else "revoke" if policy is None else decided,  # type: ignore[arg-type]  # Consent checks it
        policy=policy,
        notice=notice,
        **speaks,
    )
    return dict(issue(subject, signing, int(time.time())))


def _checked(
    bundle: Mapping[str, Any], document: Mapping[str, Any], pinned: "Trust | None"
) -> dict[str, Any]:
    """Whether the receipt acknowledges exactly this event, under the pinned keys."""
    from coop.canonical import document_digest
    from coop.verify import verify_consent

    said = bundle["document"]["credentialSubject"]
    if said["consent_sha256"] != document_digest(document):
        raise ConsentRefusedError("receipt: it acknowledges another event than the one sent")
    if pinned is None:
        return {"index": said["index"], "verified": False, "witnessed": False}
    report = verify_consent(bundle, pinned)
    return {"index": said["index"], "verified": True, "witnessed": report.witnessed}


def _key(path: Path) -> "SigningKey":
    from coop.keys import SigningKey

    if not path.exists():
        raise NotEnrolledYetError(
            f"key file {path} is missing; name yours with --key; coop patient new makes one"
        )
    return SigningKey.load(path)


def _client(signing: "SigningKey") -> "Client":
    from coop.client import Client
    from coop.settings import Settings

    settings = Settings()
    return Client(settings.hub_url, settings.ca_file, key=signing)


def _trusted(path: Path | None) -> "Trust | None":
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
    pids = client.get("/v1/me")["pids"]
    return str(pids[0]["pid"]) if pids else None


def _record(client: "Client") -> tuple[str, str]:
    """The pid of the key's record, and its hospital."""
    pids = client.get("/v1/me")["pids"]
    if not pids:
        raise NotEnrolledYetError("key: your hospital has not enrolled it; coop patient new --code")
    return str(pids[0]["pid"]), str(pids[0]["site"])


def _pid(client: "Client") -> str:
    return _record(client)[0]


def _raise_if_refused(problem: Mapping[str, Any] | None) -> None:
    if problem is not None:
        raise ConsentRefusedError(f"{problem['code']}: {problem['detail']}")
