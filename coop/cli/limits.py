"""`coop hospital limits`: when the node trains, how much of the machine, who signs approvals.

It belongs to the group in `coop.cli.hospital`, which is loaded through `coop.cli.proofs`.
"""

import time
from pathlib import Path
from typing import Annotated

import typer

from coop.cli.desk import app
from coop.cli.hospital import HERE, Json, State, _open
from coop.cli.output import show, told

__all__ = ["app"]


@app.command()
def limits(  # noqa: PLR0913  (each limit is one thing the hospital decides)
    *,
    hours: Annotated[
        list[str] | None,
        typer.Option(help="When it trains: 'mon-fri 20:00-06:00', may repeat; 'always' for all."),
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Time zone of the hours.")] = None,
    cpus: Annotated[int | None, typer.Option(min=0, help="Processors at most; 0: all.")] = None,
    memory_mib: Annotated[
        int | None, typer.Option("--memory-mib", min=0, help="Memory at most, MiB; 0: all.")
    ] = None,
    nice: Annotated[int | None, typer.Option(min=0, max=19, help="19 yields to all else.")] = None,
    approver: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DID", help="Whose yes an approval needs, two of them; 'none'."),
    ] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Show or change when the node trains, what of the machine it takes, and who approves.

    Hours and approvers hold at once, the caps when the node is started again.
    """
    from federated import control

    site = _open(state)
    with site.database.reading() as connection:
        wanted = control.control_of(connection).model_dump(mode="json")
    kept = dict(wanted)
    if hours:
        wanted["hours"] = [] if hours == ["always"] else hours
    if zone is not None:
        wanted["zone"] = zone
    for name, value in (("cpus", cpus), ("memory_mib", memory_mib), ("nice", nice)):
        if value is not None:
            wanted[name] = value if name == "nice" else value or None
    if approver:
        wanted["approvers"] = {} if approver == ["none"] else dict(map(_named, approver))
    if wanted != kept:
        control.save(site, control.read_control(wanted))
    facts = control.facts(site, int(time.time()))
    site.close()
    show(facts, as_json, told(facts))


def _named(text: str) -> tuple[str, str]:
    name, _, did = text.partition("=")
    if not name or not did.startswith("did:key:"):
        raise typer.BadParameter("must be like NAME=did:key:…", param_hint="--approver")
    return name, did


@app.command("approver-key")
def approver_key(
    file: Annotated[Path, typer.Argument(help="A new file for the key; it stays with you.")],
    as_json: Json = False,
) -> None:
    """For one approver, on her own machine or stick: make the key her approvals need."""
    from coop.keys import SigningKey

    if file.exists():
        raise typer.BadParameter(f"{file} exists; it stays as it is", param_hint="FILE")
    key = SigningKey.generate()
    key.save(file)
    text = f"{key.did}\nregister it: coop hospital limits --approver NAME={key.did} (two or more)"
    show({"did": key.did, "file": str(file)}, as_json, text)
