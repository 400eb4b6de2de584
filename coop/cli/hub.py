"""`coop hub`: make, run, inspect, back up and restore the cooperative's central service."""

import time
from pathlib import Path
from typing import Annotated

import typer

from coop.cli.output import show
from coop.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Folder = Annotated[
    Path | None, typer.Option("--state", help="The hub's folder; COOP_STATE by default.")
]


def _settings(folder: Path | None) -> Settings:
    return Settings(state=folder) if folder else Settings()


@app.command()
def init(
    *,
    legal_mode: Annotated[
        str, typer.Option(help="hipaa, ehds, altruism or strictest: the law it runs under.")
    ],
    origin: Annotated[
        str, typer.Option(help="The log's name, for ever; no one else's may be the same.")
    ] = "coop.example/log",
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Make a hub: its keys, its certificate authority, its database."""
    from coop.db import Database
    from coop.hub.folder import HubFolder, LegalMode

    if legal_mode not in set(LegalMode):
        raise typer.BadParameter(
            f"must be one of {', '.join(LegalMode)}", param_hint="--legal-mode"
        )
    settings = _settings(folder)
    made = HubFolder.init(
        settings, legal_mode=LegalMode(legal_mode), origin=origin, now=int(time.time())
    )
    database = Database(settings.database())
    database.upgrade()
    database.close()
    facts = {
        "folder": str(made.path),
        "hub": made.hub_key.did,
        "log": made.log_key.did,
        "origin": made.origin,
        "hub_url": made.hub_url,
        "legal_mode": str(made.legal_mode),
        "ca_file": str(made.ca_file),
    }
    text = (
        f"hub made in {made.path} ({made.legal_mode})\n"
        f"give hospitals this certificate authority: {made.ca_file}\n"
        "next: coop hub run, then coop hospital invite NAME"
    )
    show(facts, as_json, text)


@app.command()
def run(*, folder: Folder = None, as_json: Json = False) -> None:
    """Serve over HTTPS until stopped; training and the log come with it."""
    import os

    from coop import logs
    from coop.alone import alone
    from coop.hub.app import create_app
    from coop.hub.folder import HubFolder
    from coop.hub.serve import serve

    logs.configure()
    settings = _settings(folder)
    ca_file = HubFolder.open(settings.state).ca_file

    def ready(port: int) -> None:
        url = f"https://{settings.host}:{port}"
        facts = {"url": url, "port": port, "pid": os.getpid(), "ca_file": str(ca_file)}
        show(facts, as_json, f"the hub answers at {url}; Ctrl-C stops it")
        import sys

        sys.stdout.flush()

    with alone(settings.state):
        serve(settings, create_app(settings), ready=ready)


@app.command()
def status(
    *,
    save_trust: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the keys to trust, for COOP_TRUST_FILE."),
    ] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Say who the hub is, who has joined, how far the log is, and whether it answers."""
    from coop import members, studies, tls
    from coop.client import Client
    from coop.db import Database
    from coop.errors import CoopError
    from coop.hub.folder import HubFolder
    from coop.journal.store import Journal

    settings = _settings(folder)
    hub = HubFolder.open(settings.state)
    database = Database(settings.database())
    journal = Journal(database, hub.log_key, hub.origin, lambda: int(time.time()))
    with database.reading() as connection:
        sites = members.sites(connection)
        found = studies.every(connection)
        size = journal.size(connection)
        trust = hub.trust(connection)
    database.close()
    if save_trust is not None:
        trust.save(save_trust)
    try:
        with Client(hub.hub_url, hub.ca_file) as client:
            client.get("/readyz")
        answers = "yes"
    except CoopError as error:
        answers = str(error)
    facts: dict[str, object] = {
        "folder": str(hub.path),
        "hub_url": hub.hub_url,
        "answers": answers,
        "legal_mode": str(hub.legal_mode),
        "certificate_until": tls.valid_until(hub.path / "tls" / "server.crt"),
        "log_size": size,
        "sites": {name: row.did for name, row in sites.items()},
        "studies": [
            {"study_id": row.id, "version": row.version, "state": row.state} for row in found
        ],
        "trust": trust.to_json(),
    }
    text = (
        f"{hub.origin} at {hub.hub_url} ({hub.legal_mode})\n"
        f"answers: {answers}\nlog entries: {size}\n"
        f"hospitals: {', '.join(sites) or 'none; coop hospital invite NAME'}\n"
        f"studies: {', '.join(f'{row.id} v{row.version} {row.state}' for row in found) or 'none'}"
    )
    show(facts, as_json, text)


@app.command()
def notice(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A notice in YAML.")],
    *,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Publish what patients are told before they decide; kept for good (docs/consent.md)."""
    from consent.notice import parse
    from consent.notice_store import publish
    from coop.db import Database
    from coop.hub.folder import HubFolder

    settings = _settings(folder)
    HubFolder.open(settings.state)
    told = parse(file.read_bytes())
    database = Database(settings.database())
    database.upgrade()
    with database.unit_of_work() as connection:
        publish(connection, told, int(time.time()))
    database.close()
    facts = {"notice": told.reference().model_dump(), "text": told.text()}
    text = f"{told.text()}\n{told.language}-{told.version}, SHA-256 {told.sha256}"
    show(facts, as_json, text)


@app.command()
def tally(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Study id.")],
    site: Annotated[str, typer.Option(help="The hospital whose patients are counted.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the tally is written.")],
    *,
    version: Annotated[int | None, typer.Option(help="Its version; the newest by default.")] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Count, in public and provably, how many patients of a hospital permit STUDY; once only."""
    from consent.proofs.counting import Counting
    from coop.canonical import jcs
    from coop.db import Database
    from coop.hub.folder import HubFolder
    from coop.journal.store import Journal

    settings = _settings(folder)
    hub = HubFolder.open(settings.state)
    database = Database(settings.database())
    database.upgrade()
    journal = Journal(database, hub.log_key, hub.origin, lambda: int(time.time()))
    counting = Counting(
        database=database, journal=journal, hub_key=hub.hub_key, now=lambda: int(time.time())
    )
    file = counting.tally(study, version, site)
    database.close()
    out.write_bytes(jcs(file) + b"\n")
    said = file["tally"]["document"]["credentialSubject"]
    text = f"{said['consented']} of {said['patients']} patients of {site} permit {study}\n"
    facts = {**{name: said[name] for name in ("site", "study_id", "version")}, "file": str(out)}
    facts |= {name: said[name] for name in ("consented", "patients")}
    show(facts, as_json, f"{text}check: coop verify tally {out} --trust FILE")


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A new folder. It will hold keys: keep it safe.")],
    *,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Copy the hub into a new folder while it runs."""
    from coop.backup import backup_folder

    settings = _settings(folder)
    report = backup_folder(settings.state, target)
    included = settings.database().startswith("sqlite")
    text = f"{report['files']} files in {report['folder']}; it holds keys: keep it safe"
    if not included:
        text += "\nthe database is elsewhere: back it up with pg_dump at the same time"
    show({**report, "database_included": included}, as_json, text)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that coop hub backup made.")],
    *,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Make a fresh hub folder from a backup, after checking every file and the whole log."""
    from coop.backup import restore_folder
    from coop.db import Database
    from coop.hub.folder import HubFolder
    from coop.journal.audit import audit
    from coop.journal.store import Journal

    settings = _settings(folder)
    report = restore_folder(source, settings.state, needs="hub.json")
    hub = HubFolder.open(settings.state)
    database = Database(settings.database())
    journal = Journal(database, hub.log_key, hub.origin, lambda: int(time.time()))
    with database.reading() as connection:
        checked = audit(connection, journal)
    database.close()
    facts = {**report, "log_entries": checked.entries, "checkpoints": checked.checkpoints}
    text = f"restored to {report['folder']}; the log's {checked.entries} entries verify"
    show(facts, as_json, text)
