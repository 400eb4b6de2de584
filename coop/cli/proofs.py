"""`coop hospital evidence`: what a hospital shows to others, by hand and file by file.

It belongs to the group in `coop.cli.hospital`, which is loaded through this module.
"""

from pathlib import Path
from typing import Annotated

import typer

from coop.cli.desk import app
from coop.cli.hospital import HERE, Json, State, _open
from coop.cli.output import show

__all__ = ["app"]


@app.command()
def evidence(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the evidence is written.")],
    lease: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="The lease; the newest by default.")
    ] = None,
    pid: Annotated[str | None, typer.Option(help="Whose case it is: adds her document.")] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Write what the hub vouched for in a lease, for `coop verify withheld`; names every pid."""
    from coop.canonical import jcs
    from federated.evidence import of_lease

    site = _open(state)
    found = of_lease(site, lease, pid)
    site.close()
    out.write_bytes(jcs(found) + b"\n")
    said = found["lease"]["credentialSubject"]
    facts = {"file": str(out), "log_size": said["log_size"], "heads": len(found["heads"])}
    text = f"{facts['heads']} heads of the lease at {facts['log_size']} entries in {out}"
    show(facts, as_json, text)
