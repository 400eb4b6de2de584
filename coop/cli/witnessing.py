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
        list[str] | None, typer.Argument(metavar="NAME=DID...", help="As they told you.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--end", metavar="NAME", help="Count this one no longer.")
    ] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Count hospitals that joined later as witnesses, once you have compared their keys with them.

    The hub lists the members, and one that lies could list hospitals that do not exist. Each
    hospital reads its own did to you from `coop hospital status`. One that has left is taken back
    with --end: its cosignature would be waited for.
    """
    from federated import witnesses

    named = dict(text.split("=", 1) for text in hospitals or [] if "=" in text)
    if len(named) != len(hospitals or []) or bool(named) == (end is not None):
        raise typer.BadParameter("say NAME=DID, each hospital once, or --end NAME")
    site = _open(state)
    if end is not None:
        known = witnesses.end(site, end)
    else:
        with _hub(site) as hub:
            known = witnesses.accept(site, hub, named)
    site.close()
    show({"witnesses": known}, as_json, f"witnesses: {', '.join(known) or 'none'}")


@app.command()
def checkpoint(
    out: Annotated[Path, typer.Option(help="The file to hand over, by mail or on a stick.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """For a hospital that was restored: how far the log grew, with this hospital's signature."""
    from federated import cosigning
    from federated.mirror import Mirror

    site = _open(state)
    with _hub(site) as hub:
        Mirror(site, hub).witness()  # what counts is how far the log has grown by now
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
        mirror = Mirror(site, hub)
        mirror.witness()
        mirror.sync()
    voucher = cosigning.resume(site, checkpoint_file.read_text(), int(time.time()))
    site.close()
    show({"vouched_by": voucher}, as_json, f"cosigns again: {voucher} has seen the same log")
