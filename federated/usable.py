"""Which rows a study can use, and as what numbers; a row it cannot read is left out, silently.

An error about one patient's value would be an answer about that patient, so there is none: she is
not in the cohort, pays nothing, and the hospital's own data-quality page shows the field.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import MICRO, Study
from coop.families import family_of
from coop.features import WrongValueError, columns, encode, training_matrix
from federated.models import Weights

Rows = Sequence[tuple[str, dict[str, object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What one site computes on: one line per usable patient, in the order of the pids."""

    pids: list[str]
    x: NDArray[np.float32]
    """[n, d]"""
    y: NDArray[np.float32]
    """As `coop.features.label` gives it: [n], 0 or 1; of a time to an event [n, 2]."""
    groups: list[str | None]
    """[n], each patient's subgroup."""


def examples(rows: Rows, study: Study, site: str) -> Examples:
    """The rows of `rows` with a known outcome, nothing refused and no value of a wrong kind."""
    try:
        x, y, kept = _matrix(rows, study, site)
    except WrongValueError:
        rows = [entry for entry in rows if _is_readable(entry, study, site)]
        x, y, kept = _matrix(rows, study, site)
    used = [entry for entry, keep in zip(rows, kept, strict=True) if keep]
    field = study.evaluation.group_field
    return Examples(
        pids=[pid for pid, _ in used],
        x=x.reshape(len(used), len(columns(study.schema_))),
        y=y,
        groups=[_text(row.get(field)) for _, row in used],
    )


def risk_micro(row: dict[str, object], weights: Weights, study: Study, site: str) -> int | None:
    """One patient's risk in millionths, within [0, 1]; None if the model cannot read her row."""
    try:
        x, kept = encode([row], study.schema_, site)
    except WrongValueError:
        return None
    if not kept[0]:
        return None
    return min(max(round(float(family_of(study).predict(weights, x)[0]) * MICRO), 0), MICRO)


def _matrix(
    rows: Rows, study: Study, site: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    return training_matrix([row for _, row in rows], study.schema_, study.label, site)


def _is_readable(entry: tuple[str, dict[str, object]], study: Study, site: str) -> bool:
    try:
        _matrix([entry], study, site)
    except WrongValueError:
        return False
    return True


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
