"""`coop patient hide`: a receipt in two halves, so that she opens it to whom she likes.

It belongs to the group in `coop.cli.patient`, which is loaded through this module.
"""

from pathlib import Path
from typing import Annotated, Final

import typer

from coop.cli.output import show
from coop.cli.patient import AsJson, app

__all__ = ["app"]

_FILE_BYTES_MAX: Final = 16_777_216  # a decision with every change of keys before it


@app.command()
def hide(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, help="Of `coop patient receipts --out`."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Split a decision's proof: what shows that you decided something, and what you decided.

    Writes FILE.hidden.json, which names neither you nor your decision, and FILE.opening.json, which
    opens it. Both are checked with `coop verify consent`.
    """
    from coop.canonical import jcs, parse_object
    from coop.verify.hidden import hide as halves

    hidden, opening = halves(parse_object(file.read_bytes(), bytes_max=_FILE_BYTES_MAX))
    facts = {}
    for name, value in (("hidden", hidden), ("opening", opening)):
        made = file.with_suffix(f".{name}.json")
        made.write_bytes(jcs(value) + b"\n")
        facts[name] = str(made)
    text = f"give {facts['hidden']} to anybody, and {facts['opening']} to whom you trust with it"
    show(facts, as_json, text)
