"""`coop hospital accept|checkpoint|cosign`: which hospitals count here, and how this one counts."""

import time
from pathlib import Path
from typing import Annotated

import typer

from coop.cli.hospital import HERE, Json, State, _hub, _open
from coop.cli.limits import app
from coop.cli.output import show

__all__ = ["app"]


@app.command()
def accept(
    hospitals: Annotated[
        list[str], typer.Argument(metavar="NAME=DID...", help="As they told you themselves.")
    ],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Count hospitals that joined later as witnesses, once you have compared their keys with them.

    The hub lists the members, and one that lies could list hospitals that do not exist. Each
    hospital reads its own did to you from `coop hospital status`.
    """
    from federated import witnesses

    named = dict(text.split("=", 1) for text in hospitals if "=" in text)
    if len(named) != len(hospitals):
        raise typer.BadParameter("must be like bern=did:key:z6Mk…, each hospital once")
    site = _open(state)
    known = witnesses.accept(site, named)
    site.close()
    show({"witnesses": known}, as_json, f"witnesses: {', '.join(known)}")


@app.command()
def checkpoint(
    out: Annotated[Path, typer.Option(help="The file to hand over, by mail or on a stick.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """For a hospital that was restored: how far the log grew, with this hospital's signature."""
    from federated import cosigning

    site = _open(state)
    out.write_text(cosigning.statement(site, int(time.time())))
    site.close()
    show({"file": str(out)}, as_json, f"hand {out} to the restored hospital, not through the hub")


@app.command()
def cosign(
    checkpoint_file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, help="From another hospital, by hand."
        ),
    ],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """After a restore: cosign the log again, once it holds what another hospital has seen."""
    from federated import cosigning
    from federated.mirror import Mirror

    site = _open(state)
    with _hub(site) as hub:
        Mirror(site, hub).witness()
    voucher = cosigning.resume(site, checkpoint_file.read_text(), int(time.time()))
    site.close()
    show({"vouched_by": voucher}, as_json, f"cosigns again: {voucher} has seen the same log")
