"""`coop hospital evidence` and `audit`: what a hospital shows to others, file by file, by hand.

It belongs to the group in `coop.cli.hospital`, which is loaded through this module.
"""

import re
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from coop.cli.hospital import HERE, Json, State, _hub, _open
from coop.cli.output import show
from coop.cli.witnessing import app

__all__ = ["app"]

_NOTE_BYTES_MAX: Final = 16_777_216  # a checkpoint, alone or in a file that holds one


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


@app.command()
def audit(
    round_: Annotated[
        str,
        typer.Argument(metavar="ORDER/NUMBER", help="The round, like b31f…/7, as in its record."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the answer is written.")],
    openings: Annotated[
        int, typer.Option(metavar="K", help="How many members the auditor asked for.")
    ] = 300,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="NOTE", exists=True, dir_okay=False, help="The checkpoint she chose, if so."
        ),
    ] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Answer an audit of a round's cohort, for `coop verify cohort`; for the auditor's eyes only.

    Which members are opened follows from a checkpoint that other hospitals cosigned after this
    hospital's receipt was logged. A round is opened for one such checkpoint and never for another.
    """
    from coop.canonical import jcs
    from coop.verify import checkpoint_in
    from federated.cohort_audit import opened
    from federated.mirror import Mirror

    if not re.fullmatch(r"[0-9a-f]{64}/[1-9][0-9]{0,4}", round_):
        raise typer.BadParameter("must be the order's digest, a slash and the round's number")
    order, _, number = round_.partition("/")
    site = _open(state)
    with _hub(site) as hub:
        Mirror(site, hub).sync()
        chain = hub.get(f"/v1/rounds/{order}/chains/{number}")
    note = None if checkpoint is None else checkpoint_in(checkpoint.read_bytes(), _NOTE_BYTES_MAX)
    file = opened(site, chain, members=openings, checkpoint=note, now=int(time.time()))
    site.close()
    out.touch(mode=0o600)  # it names patients by pid
    out.write_bytes(jcs(file) + b"\n")
    members = sum("member" in one for one in file["openings"])
    facts = {"file": str(out), "members": members, "places": len(file["openings"])}
    text = f"{members} members in {facts['places']} places opened in {out}; for the auditor only"
    show(facts, as_json, text)
