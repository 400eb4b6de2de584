"""`coop hospital`: join, import, enrol, approve, run. Acts on the hospital's own folder."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coop.cli.output import show, told
from coop.errors import CoopError

if TYPE_CHECKING:
    from federated.site import Site

app = typer.Typer(no_args_is_help=True, add_completion=False)

State = Annotated[Path, typer.Option("--state", help="The hospital's folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
HERE = Path(".coop/hospital")


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="Name of the hospital, a-z first.")],
    hub: Annotated[
        Path | None, typer.Option("--hub-folder", help="The hub's folder; COOP_STATE by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """At the hub: make a single-use token with which the hospital NAME joins within a day."""
    from coop.db import Database
    from coop.hub.folder import HubFolder
    from coop.members import create_invite
    from coop.settings import Settings

    settings = Settings(state=hub) if hub else Settings()
    HubFolder.open(settings.state)  # refused here, before an empty database is made
    database = Database(settings.database())
    with database.unit_of_work() as connection:
        token = create_invite(connection, name, now=int(time.time()))
    database.close()
    show({"name": name, "token": token}, as_json, f"{token}")


@app.command()
def join(
    token: Annotated[str, typer.Argument(help="The token the cooperative gave you.")],
    name: Annotated[str, typer.Option(help="The name the token was made for.")],
    hub: Annotated[str, typer.Option("--hub", help="https:// address of the hub.")],
    ca: Annotated[Path | None, typer.Option(help="The hub's certificate authority file.")] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Join a cooperative: make this hospital's keys, show the public halves, pin the hub's."""
    from federated.join import join as join_hub

    if not hub.startswith("https://"):
        raise typer.BadParameter("must be like https://host:8440", param_hint="--hub")
    site = join_hub(state, name, token=token, hub_url=hub, ca_file=ca)
    facts = {"name": site.name, "did": site.key.did, "hub": site.trust.hub, "folder": str(state)}
    site.close()
    show(
        facts,
        as_json,
        f"{name} joined as {facts['did']}\nthe hub's key, now pinned: {facts['hub']}",
    )


@app.command()
def enrol(
    record_key: Annotated[str, typer.Argument(help="The patient's record number.")],
    method: Annotated[str, typer.Option(help="desk, post or custodial.")] = "desk",
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Print a single-use code for a patient whose identity you have checked.

    For a record that had a key before it comes in two parts: one to hand over, one to send by
    letter to the address you have. She needs both.

    With `--method custodial` there is no code: this hospital makes and holds a key for a patient
    who cannot, and every consent signed with it says so.
    """
    from federated import custody, desk

    if method not in {"desk", "post", "custodial"}:
        raise typer.BadParameter("must be desk, post or custodial", param_hint="--method")
    site = _open(state)
    if method == "custodial":
        with _hub(site) as hub:
            held = custody.enrol(site, hub, record_key, now=int(time.time()))
        site.close()
        show(held, as_json, f"this hospital holds the key of {held['pid']}: {held['did']}")
        return
    made = desk.enrol(site, [record_key], method=method, now=int(time.time()))  # type: ignore[arg-type]  # checked above
    codes, letters = desk.hand_over(site, made)
    site.close()
    letter = letters.get(record_key)
    text = f"{codes[record_key]}\nsingle use, valid for seven days; it is shown only now"
    if letter is not None:
        text += f"\nby letter, to the address you have: {letter}\n(she had a key; both parts count)"
    show({"code": codes[record_key], "letter": letter}, as_json, text)


@app.command()
def uses(
    record_key: Annotated[str, typer.Argument(help="The patient's record number.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """For a patient at the desk: the signed list of what used her record."""
    from federated.uses import statement

    site = _open(state)
    document = statement(site, site.pid_of(record_key), int(time.time()))
    site.close()
    said = document["credentialSubject"]
    show({"statement": document}, as_json, told(said))


@app.command()
def doctor(state: State = HERE, as_json: Json = False) -> None:
    """Check this node; exit 1 if something needs mending."""
    from federated.doctor import checks

    site = _open(state)
    report = checks(site)
    site.close()
    lines = []
    for name, entry in report["checks"].items():
        lines.append(f"{'ok  ' if entry['ok'] else 'FAIL'} {name:16} {entry['found']}")
        if not entry["ok"] and entry.get("fix"):
            lines.append(f"     fix: {entry['fix']}")
    if report["set_aside"]:
        lines.append(told({"set aside": report["set_aside"]}))
    show(report, as_json, "\n".join(lines))
    raise typer.Exit(0 if report["ok"] else 1)


@app.command()
def quarantine(
    index: Annotated[int, typer.Argument(help="The log entry that `coop hospital doctor` names.")],
    reason: Annotated[str, typer.Option(help="What you found out, for whoever reads it later.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Set aside a document that does not verify: its patient is denied until she signs again."""
    from federated import quarantine as documents
    from federated.mirror import Mirror

    site = _open(state)
    signed = documents.set_aside(site, index, reason, now=int(time.time()))
    try:
        with _hub(site) as hub:
            Mirror(site, hub).sync()
    except CoopError as error:
        lease = f"no lease yet ({error.code}); see `coop hospital doctor`"
    else:
        lease = "leases are possible again"
    site.close()
    pid = signed["credentialSubject"]["pid"]
    whose = f"{pid} is denied until she signs a choice again" if pid else "it names nobody here"
    show(
        {"quarantine": signed, "lease": lease},
        as_json,
        f"entry {index} is set aside: {whose}\n{lease}",
    )


@app.command("dry-run")
def dry_run(
    study: Annotated[str, typer.Argument(help="Study id.")],
    version: Annotated[
        int | None, typer.Option(help="Study version; the newest if not given.")
    ] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Show what approving STUDY would sign and how many records it could use; signs nothing."""
    from coop.documents.study import Study
    from federated import approval, coverage
    from federated.mirror import Mirror

    site = _open(state)
    hub, now = _hub(site), int(time.time())
    review = approval.review(site, hub, study, version, now=now)
    mirror = Mirror(site, hub)
    mirror.sync()
    review["records"] = coverage.of_study(
        site, mirror, Study.model_validate(review["study"]), now=now
    )
    site.close()
    show(review, as_json, told(review))


@app.command()
def approve(
    study: Annotated[str, typer.Argument(help="Study id.")],
    version: Annotated[
        int | None, typer.Option(help="Study version; the newest if not given.")
    ] = None,
    epsilon_cap: Annotated[
        str, typer.Option(help="This hospital's limit for epsilon, at most 3.")
    ] = "1",
    by: Annotated[
        Path | None, typer.Option(help="Your approver's key, where two must approve.")
    ] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Sign STUDY with this hospital's key: only then does the node accept its orders."""
    from coop.keys import SigningKey
    from federated import approval

    site = _open(state)
    signed = approval.approve(
        site,
        _hub(site),
        study,
        version=version,
        epsilon_cap=epsilon_cap,
        by=SigningKey.load(by) if by else None,
        now=int(time.time()),
    )
    site.close()
    named = f"{study} v{signed['credentialSubject']['version']}"
    show({"approval": signed}, as_json, f"approved {named} with the key of {site.name}")


@app.command()
def run(
    state: State = HERE,
    port: Annotated[
        int, typer.Option(help="Loopback port of the console's API; 0 picks one.")
    ] = 8450,
) -> None:
    """Run this hospital's node until Ctrl-C. It only dials out; the API is for this house."""
    from coop import logs
    from coop.alone import alone
    from federated.control import cap_process, control_of
    from federated.local_api import serve_local
    from federated.node import Node, staff_token

    logs.configure()
    site = _open(state)
    with site.database.reading() as connection:
        cap_process(control_of(connection))
    with alone(state):
        staff_token(site.folder)
        token = site.folder / "staff.token"
        print(f"{site.name}: node starts; staff token in {token}", file=sys.stderr)
        Node(site).run(lambda node: serve_local(node, port))


@app.command()
def status(state: State = HERE, as_json: Json = False) -> None:
    """What the running node says of itself."""
    facts = _local(state).get("/local/v1/status")
    show(facts, as_json, told(facts))


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A new folder for the copy.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Copy this hospital's database and keys while the node runs; keep the copy as safe as keys."""
    from coop.backup import backup_folder

    report = backup_folder(state, target, database="node.sqlite")
    show(report, as_json, f"{report['files']} files in {target}")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder made by backup.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Put a backup into a new folder. What was spent after it is unknown: every patient is charged.

    Every approval ends and each study needs a new version. Nothing can be approved before the
    cooperative was asked which approvals came after the backup.
    """
    from coop.backup import restore_folder
    from federated import after_restore, approval

    now, ended = int(time.time()), 0

    def distrust(folder: Path) -> None:
        nonlocal ended
        site = _open(folder)
        ended = approval.distrust_budgets(site, now=now)
        site.close()

    report = restore_folder(source, state, needs="site.key", prepare=distrust)
    site = _open(state)
    try:
        with _hub(site) as hub:
            approval.settle_restore(site, hub, now=now)
    except CoopError as error:
        settled = str(error)
    else:
        settled = "whatever was approved since then is charged for, too"
    erased = _erased_again(site)
    facts = after_restore.facts(site)
    site.close()
    text = (
        f"{report['files']} files in {state}\n{ended} approvals ended; every patient is charged "
        f"{facts['charged_rho']} rho for what they may have spent since\n{settled}\n{erased}"
    )
    show({**report, "approvals_ended": ended, **facts}, as_json, text)


def _erased_again(site: "Site") -> str:
    """Erase what was erased after the backup: the log says which; no record is used before that."""
    from federated.mirror import Mirror

    try:
        with _hub(site) as hub:
            Mirror(site, hub).sync()
    except CoopError as error:
        return f"what was erased since then is erased again with the first lease ({error.code})"
    return "whatever was erased since then is erased again"


def _open(state: Path) -> "Site":
    from federated.site import Site

    return Site.open(state)


def _hub(site: "Site") -> Any:  # noqa: ANN401  (imported only where a command needs it)
    from coop.client import Client

    return Client(site.hub_url, site.ca_file, key=site.key)


def _local(state: Path) -> Any:  # noqa: ANN401  (imported only where a command needs it)
    from coop.client import Client
    from coop.errors import UnavailableError
    from federated.node import staff_token

    address = state / "local.url"
    if not address.exists():
        raise UnavailableError(f"{state}: no node runs here; start it with `coop hospital run`")
    return Client(address.read_text().strip(), token=staff_token(state))
