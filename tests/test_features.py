"""Features: public constants only, the same numbers at the node and at the gateway."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coop.documents.study import FeatureSchema, Label
from coop.features import WrongValueError, columns, encode, label, labelled, training_matrix

SCHEMA = FeatureSchema.model_validate(
    {
        "features": [
            {"kind": "number", "name": "age", "center_micro": 54_000_000, "scale_micro": 9_000_000,
             "clip_micro": 2_500_000, "gain_micro": 500_000, "missing": "indicator"},
            {"kind": "category", "name": "sex", "values": ["male"], "missing": "refuse"},
            {"kind": "flag", "name": "angina", "missing": "zero"},
        ],
        "site_intercepts": ["cleveland", "zurich"],
    }
)  # fmt: skip
RULE = Label(field="severity", above=0)
NUMBERS = st.none() | st.floats() | st.integers(min_value=-(2**60), max_value=2**60)
ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "age": NUMBERS.filter(lambda n: n is None or math.isnan(n) or math.isfinite(n)),
            "sex": st.sampled_from(["male", "female", "other", None]),
            "angina": st.sampled_from([True, False, None]),
        },
    ),
    max_size=20,
)


def one(row: dict[str, object], site: str | None = None) -> list[float]:
    matrix, kept = encode([row], SCHEMA, site)
    assert kept[0]
    return [round(float(value), 6) for value in matrix[0]]


def test_columns_are_named_in_the_order_of_the_matrix():
    assert columns(SCHEMA) == [
        "age", "age?", "sex=male", "angina", "site=cleveland", "site=zurich", "one",
    ]  # fmt: skip


def test_a_number_is_scaled_by_public_constants_and_clipped():
    assert one({"age": 63, "sex": "male"})[0] == 0.5
    assert one({"age": 1000, "sex": "male"})[0] == 1.25
    assert one({"age": -1000.0, "sex": "male"})[0] == -1.25


def test_a_patient_is_encoded_alike_whoever_else_is_in_the_batch():
    first, others = {"age": 60, "sex": "male"}, [{"age": 99, "sex": "x"}, {"sex": "male"}]
    alone, _ = encode([first], SCHEMA, "zurich")
    together, _ = encode([first, *others], SCHEMA, "zurich")
    assert np.array_equal(alone[0], together[0])


def test_missing_is_zero_or_told_or_refused():
    assert one({"sex": "female"}) == [0, 1, 0, 0, 0, 0, 1]
    assert one({"age": math.nan, "sex": "male", "angina": None}) == [0, 1, 1, 0, 0, 0, 1]
    matrix, kept = encode([{"age": 63}], SCHEMA, "zurich")
    assert kept.tolist() == [False]
    assert not matrix.any(), "a refused row must not train even a caller who forgets the mask"


def test_an_unlisted_site_or_value_is_all_zeros():
    assert one({"age": 54, "sex": "male"}, "zurich")[4:6] == [0, 1]
    assert one({"age": 54, "sex": "male"}, "elsewhere")[4:6] == [0, 0]
    assert one({"age": 54, "sex": "unknown"})[2] == 0


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"age": "63", "sex": "male"}, "age"),
        ({"age": True, "sex": "male"}, "age"),
        ({"age": math.inf, "sex": "male"}, "age"),
        ({"age": 10**400, "sex": "male"}, "age"),
        ({"age": 63, "sex": 1}, "sex"),
        ({"age": 63, "sex": "male", "angina": "true"}, "angina"),
        ({"age": 63, "sex": "male", "angina": 1}, "angina"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_field_name_only(row: dict, field: str):
    with pytest.raises(WrongValueError) as refused:
        encode([row], SCHEMA, None)
    assert refused.value.message.startswith(f"{field}: ")
    assert "63" not in refused.value.message


def test_the_outcome_is_above_the_threshold_not_at_it():
    assert label([{"severity": 0}, {"severity": 1}, {"severity": 0.5}], RULE).tolist() == [0, 1, 1]
    assert labelled([{"severity": 0}, {}, {"severity": None}], RULE).tolist() == [
        True,
        False,
        False,
    ]
    with pytest.raises(WrongValueError, match="severity"):
        label([{}], RULE)


def test_rows_without_outcome_do_not_train():
    rows = [{"sex": "male", "severity": 1}, {"sex": "male"}, {"severity": 1}]
    x, y, kept = training_matrix(rows, SCHEMA, RULE, "zurich")
    assert kept.tolist() == [True, False, False]
    assert x.shape == (1, 7)
    assert y.tolist() == [1]


def test_no_rows_give_an_empty_matrix_of_the_right_width():
    x, y, kept = training_matrix([], SCHEMA, RULE, None)
    assert (x.shape, y.shape, kept.shape) == ((0, 7), (0,), (0,))
    assert x.dtype == y.dtype == np.float32


@given(ROWS, st.sampled_from(["cleveland", "elsewhere", None]))
def test_every_matrix_is_finite_and_bounded_whatever_the_rows(rows: list, site: str | None):
    matrix, kept = encode(rows, SCHEMA, site)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(rows), len(columns(SCHEMA)))
    assert np.isfinite(matrix).all()
    assert (np.abs(matrix) <= 1.25).all()
    assert (matrix[kept, -1] == 1).all()
