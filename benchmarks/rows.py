"""Rows of a benchmark: a printed table and `.coop/bench/NAME.json` (DESIGN §8).

Every row names its input, and a row exists only if its result was checked in the same run: `add`
takes the outcome of that check and refuses a failed one.
"""

import sys
from pathlib import Path
from typing import Literal

import orjson
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent.parent / ".coop" / "bench"

# A script's folder comes first on the path: benchmarks/federated.py would hide the package of that
# name. Every benchmark imports this module before any package of ours.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]

Better = Literal["lower", "higher"]
Number = float | int


class Rows:
    """The rows of one benchmark.

    Args:
        name: `federated` makes `.coop/bench/federated.json`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[dict[str, object]] = []

    def add(  # noqa: PLR0913  (a row has so many members)
        self,
        name: str,
        value: Number,
        unit: str,
        *,
        input: str,  # noqa: A002  (the row's own word)
        target: Number | None = None,
        better: Better = "higher",
        checked: bool = True,
    ) -> None:
        """Add a row.

        Args:
            name: What is measured.
            value: The measured value, from the shipped code path.
            unit: Of the value.
            input: Size, distribution and seed of what it was measured on.
            target: Bound the value must keep; None: for information.
            better: Which direction is good.
            checked: Whether the result was verified to be correct in this run.
        """
        if not checked:
            sys.exit(f"{self.name}: {name}: the result was wrong, so its speed says nothing")
        met = target is None or (value >= target if better == "higher" else value <= target)
        self.rows.append(
            {
                "name": name,
                "input": input,
                "value": value,
                "unit": unit,
                "target": target,
                "better": better,
                "met": met,
            }
        )

    def finish(self) -> None:
        """Write the file, print the table, and exit 1 if a target was missed."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        content = orjson.dumps(self.rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (FOLDER / f"{self.name}.json").write_bytes(content)
        table = Table("what", "value", "unit", "target", "met", "input", title=self.name)
        for row in self.rows:
            bound = "≥" if row["better"] == "higher" else "≤"
            target = "" if row["target"] is None else f"{bound} {row['target']:,.4g}"
            mark = "yes" if row["met"] else "NO"
            value = f"{row['value']:,.4g}"
            cells = (row["name"], value, row["unit"], target, mark, row["input"])
            table.add_row(*(str(cell) for cell in cells))
        Console(width=None if sys.stdout.isatty() else 180).print(table)
        sys.exit(0 if all(row["met"] for row in self.rows) else 1)
