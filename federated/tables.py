"""Tables of a cohort: how many patients lie in each interval, with and without an event.

A patient is in one cell or none, so adding or removing her changes the table by 1 in one place.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping

from coop.documents.serving import CohortQuery


def tabulate(rows: Iterable[Mapping[str, object]], query: CohortQuery) -> list[int]:
    """The exact counts of a histogram or survival table; they must not leave without noise.

    Args:
        rows: The patients asked about, a row each; one without the field is in no cell.
        query: What was asked; checked before.
    """
    edges = query.edges or []
    cells = [0] * query.cells
    for row in rows:
        value = _number(row.get(query.field or ""))
        if value is None:
            continue
        place = bisect_right(edges, value)
        if query.release == "survival":
            event = _number(row.get(query.event or ""))
            if event is None:
                continue
            place += 0 if event > 0 else len(edges) + 1
        cells[place] += 1
    return cells


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or value != value:  # noqa: PLR0124  (NaN is missing)
        return None
    return value
