"""The hub's arithmetic on updates, and the one encoding of weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coop.documents.study import Recipe
from coop.errors import InvariantError
from coop.families.logistic import WEIGHT
from federated.models import (
    WrongWeightsError,
    check,
    from_safetensors,
    initial,
    predict,
    to_safetensors,
    weights_digest,
)
from federated.step import apply_round, average

RECIPE = Recipe(
    family="logistic-regression",
    rounds=20,
    learning_rate_micro=2_000_000,
    clip_micro=500_000,
    average_last=10,
    population=100,
)


def vector(*numbers: float) -> dict[str, np.ndarray]:
    return {WEIGHT: np.array(numbers, np.float32)}


def test_a_step_moves_against_the_mean_of_the_public_population():
    moved = apply_round(vector(1, 1), {"a": vector(10, 0), "b": vector(0, -20)}, RECIPE)
    assert np.allclose(moved[WEIGHT], [0.8, 1.4])
    assert moved[WEIGHT].dtype == np.float32


@given(st.permutations(["budapest", "cleveland", "longbeach", "zurich"]))
def test_the_order_of_arrival_changes_no_bit(order: list[str]):
    # Floating-point sums depend on order: (1e30 + 100) - 1e30 = 0, (1e30 - 1e30) + 100 = 100.
    numbers = {"budapest": 1e30, "cleveland": 100, "longbeach": -1e30, "zurich": 50}
    updates = {name: vector(number, -number) for name, number in numbers.items()}
    shuffled = {name: updates[name] for name in order}
    first, second = (apply_round(initial(2), each, RECIPE) for each in (updates, shuffled))
    assert first[WEIGHT].tobytes() == second[WEIGHT].tobytes()


def test_the_input_is_left_alone():
    weights, updates = vector(1, 2), {"a": vector(3, 4)}
    apply_round(weights, updates, RECIPE)
    assert weights[WEIGHT].tolist() == [1, 2]
    assert updates["a"][WEIGHT].tolist() == [3, 4]


def test_a_round_of_nobody_is_a_bug():
    with pytest.raises(InvariantError):
        apply_round(initial(2), {}, RECIPE)
    with pytest.raises(InvariantError):
        average([], 10)


def test_the_release_is_the_mean_of_the_last_iterates():
    iterates = [vector(n, 2 * n) for n in range(20)]
    assert average(iterates, 10)[WEIGHT].tolist() == [14.5, 29]
    assert average(iterates[:3], 10)[WEIGHT].tolist() == [1, 2]


def test_training_starts_from_zeros():
    assert not initial(7)[WEIGHT].any()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_weights_survive_their_file_bit_for_bit(numbers: list[float]):
    weights = vector(*numbers)
    data = to_safetensors(weights)
    read = from_safetensors(data, len(numbers))
    assert read[WEIGHT].tobytes() == weights[WEIGHT].tobytes()
    assert to_safetensors(read) == data
    assert weights_digest(read) == weights_digest(weights)


def test_another_bit_is_another_digest():
    assert weights_digest(vector(1, 2)) != weights_digest(vector(1, np.nextafter(np.float32(2), 3)))


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"bias": np.zeros(2, np.float32)},
        {**vector(0, 0), "more": np.zeros(1, np.float32)},
        vector(0, 0, 0),
        {WEIGHT: np.zeros(2)},
        {WEIGHT: np.zeros((1, 2), np.float32)},
        vector(0, np.nan),
        vector(0, np.inf),
        vector(0, 2e6),
    ],
    ids=["none", "name", "extra", "length", "float64", "matrix", "nan", "inf", "huge"],
)
def test_wrong_weights_are_refused(weights: dict):
    with pytest.raises(WrongWeightsError):
        check(weights, 2)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_weights_are_refused(data: bytes):
    with pytest.raises(WrongWeightsError):
        from_safetensors(data, 2)


def test_a_file_without_end_is_refused():
    with pytest.raises(WrongWeightsError, match="longer"):
        from_safetensors(bytes(500_000), 2)


def test_a_prediction_is_a_probability_even_far_out():
    x = np.array([[0, 1], [1e4, 1], [-1e4, 1]], np.float32)
    assert predict(vector(1e6, 0), x).tolist() == [0.5, 1, 0]
