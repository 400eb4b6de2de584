"""Integer money: nothing is lost, nothing is created, and the text says it exactly."""

import pytest
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.errors import InvalidInputError, InvariantError
from coop.money import NANO, SUPPLY_MAX_NANO, NanoCredits, from_text, split, to_text

AMOUNTS = st.integers(0, SUPPLY_MAX_NANO).map(NanoCredits)
WEIGHTS = st.dictionaries(st.text(max_size=5), st.integers(0, 10**9), min_size=1).filter(
    lambda weights: any(weights.values())
)


@settings(max_examples=budget(100, 10_000))
@given(AMOUNTS, WEIGHTS)
def test_nothing_is_lost_and_nobody_is_off_by_a_whole_nano_credit(amount, weights):
    shares, total = split(amount, weights), sum(weights.values())
    assert sum(shares.values()) == amount
    assert all(abs(shares[payee] * total - amount * weights[payee]) < total for payee in weights)


@given(AMOUNTS, WEIGHTS)
def test_shares_do_not_depend_on_the_order_of_the_weights(amount, weights):
    assert split(amount, dict(reversed(weights.items()))) == split(amount, weights)


def test_the_leftover_goes_to_the_largest_remainders():
    # exact shares 5.45, 2.72, 1.81: floors are 5, 2, 1 and the two largest remainders get one each
    assert split(NanoCredits(10), {"a": 6, "b": 3, "c": 2}) == {"a": 5, "b": 3, "c": 2}


def test_equal_remainders_are_settled_by_name():
    assert split(NanoCredits(1), {"b": 1, "a": 1}) == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("amount", "weights"), [(-1, {"a": 1}), (1, {"a": 0}), (1, {"a": 2, "b": -1})]
)
def test_a_split_that_cannot_be_is_a_bug(amount, weights):
    with pytest.raises(InvariantError):
        split(NanoCredits(amount), weights)


def test_the_text_has_all_nine_decimals():
    assert to_text(NanoCredits(1_000_000_250)) == "1.000000250"
    assert to_text(NanoCredits(-1)) == "-0.000000001"
    assert to_text(NanoCredits(12 * NANO)) == "12.000000000"


@given(AMOUNTS)
def test_text_reads_back_exactly(amount):
    assert from_text(to_text(amount)) == amount


@pytest.mark.parametrize(
    ("text", "amount"), [("12", 12 * NANO), ("12.5", 12_500_000_000), ("0.000000001", 1)]
)
def test_people_may_leave_decimals_out(text, amount):
    assert from_text(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "1.",
        ".5",
        "1.0000000001",
        "1e3",
        "1,5",
        "٣",
        "1_000",
        " 1",
        "9223372037",
        "NaN",
    ],
)
def test_anything_else_is_no_amount(text):
    with pytest.raises(InvalidInputError):
        from_text(text)


def test_the_supply_fits_the_database():
    assert from_text("9223372036.854775807") == SUPPLY_MAX_NANO
    with pytest.raises(InvalidInputError, match="larger"):
        from_text("9223372036.854775808")
