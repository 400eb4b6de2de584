"""What a noised table says: quantiles and a mean, or a Kaplan-Meier curve.

Core: pure, no I/O. All of it is arithmetic on numbers that were noised at the hospitals, so it
costs no further privacy. Counted in people: a table of fewer than `PEOPLE_MIN`, by its own noised
sum, is not read at all, and a point of a curve with fewer at risk is left out. Integers in the
result are millionths where the name says so.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

from coop.canonical import Json
from coop.documents.serving import CohortQuery
from coop.documents.study import MICRO

PEOPLE_MIN: Final = 10
_QUANTILES: Final = (10, 25, 50, 75, 90)


def read(cells: Sequence[int], query: CohortQuery, *, cell_sd_micro: int) -> dict[str, Json]:
    """The table in the form people use.

    Args:
        cells: Summed over the hospitals, noise and all.
        query: What was asked.
        cell_sd_micro: The noise's standard deviation in each cell.
    """
    shown: list[Json] = list(cells)
    edges: list[Json] = list(query.edges or [])
    found: dict[str, Json] = {"edges": edges, "cells": shown, "cell_sd_micro": cell_sd_micro}
    if sum(cells) < PEOPLE_MIN:
        return {**found, "suppressed": f"fewer than {PEOPLE_MIN} people"}
    if query.release == "histogram":
        return {**found, **_histogram(cells, query.edges or [])}
    return {**found, "survival": _survival(cells, query.edges or [])}


def _histogram(cells: Sequence[int], edges: Sequence[int]) -> dict[str, Json]:
    """Quantiles and mean of what lies between the outer edges; the open ends have no width."""
    people = [max(cell, 0) for cell in cells]
    inner = people[1:-1]
    total = sum(people)
    quantiles: dict[str, Json] = {}
    upto = list(accumulate(people))
    for percent in _QUANTILES:
        wanted = total * percent / 100
        place = next((at for at, so_far in enumerate(upto) if so_far >= wanted), len(people) - 1)
        if total == 0 or place == 0 or place == len(people) - 1:
            quantiles[str(percent)] = None  # in an open end: only that it is outside is known
            continue
        low, high = edges[place - 1], edges[place]
        share = (wanted - upto[place - 1]) / max(people[place], 1)
        quantiles[str(percent)] = round((low + share * (high - low)) * MICRO)
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    mean = None
    if sum(inner) >= PEOPLE_MIN:
        weighed = sum(n * middle for n, middle in zip(inner, middles, strict=True))
        mean = round(weighed / sum(inner) * MICRO)
    return {"quantiles_micro": quantiles, "mean_between_edges_micro": mean}


def _survival(cells: Sequence[int], edges: Sequence[int]) -> list[Json]:
    """The share without the event up to each edge (Kaplan & Meier 1958, on interval counts)."""
    intervals = len(edges) + 1
    events = [max(cell, 0) for cell in cells[:intervals]]
    others = [max(cell, 0) for cell in cells[intervals:]]
    at_risk = sum(events) + sum(others)
    share, curve = 1.0, list[Json]()
    for edge, event, other in zip(edges, events, others, strict=False):
        if at_risk < PEOPLE_MIN:
            break
        share *= max(1 - event / at_risk, 0.0)
        point: dict[str, Json] = {
            "until": edge,
            "at_risk": at_risk,
            "surviving_micro": round(share * MICRO),
        }
        curve.append(point)
        at_risk -= event + other
    return curve
