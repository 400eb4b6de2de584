"""From a patient's row to the numbers a model reads: public constants only, the same everywhere.

The hospital node trains with it and the inference gateway answers with it; no statistic of any
hospital's data enters. Pure numpy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import (
    MICRO,
    CategoryFeature,
    Feature,
    FeatureSchema,
    FlagFeature,
    Label,
    NumberFeature,
    Outcome,
)
from coop.errors import InvalidInputError, Kind

Row = Mapping[str, object]
"""Field → value of one patient; an absent field, None or NaN is missing."""

CONSTANT: Final = "one"
"""Name of the last column: always 1, its weight is the bias."""


class WrongValueError(InvalidInputError):
    """A field's value is not of the kind the schema says; the message names the field only."""

    code = "features.wrong-value"
    kind = Kind.UNPROCESSABLE


def columns(schema: FeatureSchema) -> list[str]:
    """Names of the model's columns, in order; the last is the constant one."""
    names: list[str] = []
    for feature in schema.features:
        names += _names(feature)
    names += [f"site={site}" for site in schema.site_intercepts]
    return [*names, CONSTANT]


def encode(
    rows: Sequence[Row], schema: FeatureSchema, site: str | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The design matrix of `rows` and which of them are usable.

    Args:
        rows: One per patient.
        schema: The study's.
        site: Whose intercept column is 1; None or an unlisted site leaves all of them 0.

    Returns:
        float32 [n, d] in the order of `columns`, all finite; and `kept` [n], False for rows that
        lack a field whose rule is `refuse`: their line of the matrix is all zeros, so even a caller
        who forgets `kept` trains on nothing of them.

    Raises:
        WrongValueError: A value is of the wrong kind (a text where a number belongs …).
    """
    kept = np.ones(len(rows), dtype=np.bool_)
    blocks: list[NDArray[np.float64]] = []
    for feature in schema.features:
        values = [row.get(feature.name) for row in rows]
        missing = np.array([_is_missing(value) for value in values], dtype=np.bool_)
        if feature.missing == "refuse":
            kept &= ~missing
        blocks += _block(feature, values, missing)
        if feature.missing == "indicator":
            blocks.append(missing.astype(np.float64))
    ones = np.ones(len(rows))
    blocks += [ones * (name == site) for name in schema.site_intercepts]
    matrix = np.column_stack([*blocks, ones]) * kept[:, None]
    return matrix.astype(np.float32), kept


def label(rows: Sequence[Row], rule: Outcome) -> NDArray[np.float32]:
    """The outcome of each row.

    Returns:
        [n]: 1 where the field is greater than `above`, else 0. Of a time to an event [n, 2]: the
        time, and 1 where it happened then, 0 where she was last seen without it.

    Raises:
        WrongValueError: A row lacks a field (see `labelled`), or it is not of its kind.
    """
    if isinstance(rule, Label):
        values = [_number(row.get(rule.field), rule.field) for row in rows]
        return np.array([value > rule.above for value in values], dtype=np.float32)
    pairs = [
        (_duration(row.get(rule.time), rule.time), _happened(row.get(rule.event), rule.event))
        for row in rows
    ]
    return np.array(pairs, dtype=np.float32).reshape(len(pairs), 2)


def labelled(rows: Sequence[Row], rule: Outcome) -> NDArray[np.bool_]:
    """Which rows know their outcome."""
    known = [not any(_is_missing(row.get(name)) for name in rule.fields) for row in rows]
    return np.array(known, dtype=np.bool_)


def training_matrix(
    rows: Sequence[Row], schema: FeatureSchema, rule: Outcome, site: str | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """What one site trains or evaluates on: the usable rows' matrix, their labels, and the mask.

    Returns:
        (X [m, d], y [m] or [m, 2] as `label` gives it, kept [n]) with m = kept.sum(): rows with a
        known outcome and nothing refused, in the order of `rows`.
    """
    matrix, kept = encode(rows, schema, site)
    kept &= labelled(rows, rule)
    usable = [row for row, keep in zip(rows, kept, strict=True) if keep]
    return matrix[kept], label(usable, rule), kept


def _names(feature: Feature) -> list[str]:
    match feature:
        case NumberFeature() | FlagFeature():
            names = [feature.name]
        case CategoryFeature():
            names = [f"{feature.name}={value}" for value in feature.values]
        case _:
            assert_never(feature)
    return [*names, f"{feature.name}?"] if feature.missing == "indicator" else names


def _block(
    feature: Feature, values: list[object], missing: NDArray[np.bool_]
) -> list[NDArray[np.float64]]:
    """The columns of one feature without its indicator; missing values are 0."""
    match feature:
        case NumberFeature():
            raw = [
                0.0 if gap else _number(value, feature.name)
                for value, gap in zip(values, missing, strict=True)
            ]
            scaled = (np.array(raw, dtype=np.float64) * MICRO - feature.center_micro) / (
                feature.scale_micro
            )
            bound = feature.clip_micro / MICRO
            clipped = np.clip(scaled, -bound, bound) * (feature.gain_micro / MICRO)
            return [np.where(missing, 0.0, clipped)]
        case CategoryFeature():
            texts = [
                None if gap else _text(value, feature.name)
                for value, gap in zip(values, missing, strict=True)
            ]
            return [
                np.array([text == value for text in texts], dtype=np.float64)
                for value in feature.values
            ]
        case FlagFeature():
            flags = [
                not gap and _flag(value, feature.name)
                for value, gap in zip(values, missing, strict=True)
            ]
            return [np.array(flags, dtype=np.float64)]
        case _:
            assert_never(feature)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise WrongValueError(f"{name}: must be a finite number")
    try:
        return float(value)
    except OverflowError as error:
        raise WrongValueError(f"{name}: must be a finite number") from error


def _duration(value: object, name: str) -> float:
    duration = _number(value, name)
    if duration < 0:
        raise WrongValueError(f"{name}: must not be negative")
    return duration


def _happened(value: object, name: str) -> bool:
    return value if isinstance(value, bool) else _number(value, name) > 0


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise WrongValueError(f"{name}: must be a text")
    return value


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise WrongValueError(f"{name}: must be true or false")
    return value
