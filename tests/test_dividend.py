"""Dividend arithmetic: nothing is lost, everyone is treated alike, anyone can recompute it."""

from fractions import Fraction

import pytest
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.dividend import DIVIDEND_RULE, Pool, distribute, owed, resize, window_split
from coop.errors import InvariantError
from coop.money import NanoCredits

MODEL = "heart-v1-0123abcd"
SITES = ["budapest", "cleveland", "longbeach", "zurich"]
amounts = st.integers(0, 2**62)
some_weights = st.fixed_dictionaries({site: st.integers(0, 10**6) for site in SITES})
some_shares = st.fixed_dictionaries({site: st.integers(0, 3) for site in SITES})


def split(revenue: int, weights: dict[str, int], shares: dict[str, int]) -> dict[str, NanoCredits]:
    return window_split(
        NanoCredits(revenue), model_id=MODEL, rule=DIVIDEND_RULE, weights=weights, shares=shares
    )


def test_the_rule_in_force_pays_half_to_patients():
    weights = {"cleveland": 3, "zurich": 1}
    assert split(1000, weights, {"cleveland": 3, "zurich": 1}) == {
        "commons": 100,
        "operations": 150,
        "hospital:cleveland": 188,
        "hospital:zurich": 62,
        f"pool:{MODEL}:cleveland": 375,
        f"pool:{MODEL}:zurich": 125,
    }


def test_the_part_of_a_pool_with_nobody_in_it_goes_to_the_commons():
    weights = {"cleveland": 3, "zurich": 1}
    parts = split(1000, weights, {"cleveland": 0, "zurich": 1})
    assert parts["commons"] == 100 + 375
    assert f"pool:{MODEL}:cleveland" not in parts


def test_without_any_weight_the_hospitals_and_patients_part_goes_to_the_commons():
    assert split(1000, {}, {}) == {"commons": 850, "operations": 150}
    assert split(1000, {"zurich": 0}, {"zurich": 9}) == {"commons": 850, "operations": 150}


def test_a_rule_that_is_not_a_hundred_percent_is_refused():
    with pytest.raises(InvariantError):
        window_split(
            NanoCredits(1),
            model_id=MODEL,
            rule={**DIVIDEND_RULE, "commons_percent": 11},
            weights={},
            shares={},
        )


@given(amounts, some_weights, some_shares)
def test_a_window_gives_away_exactly_what_came_in(
    revenue: int, weights: dict[str, int], shares: dict[str, int]
):
    parts = split(revenue, weights, shares)
    assert sum(parts.values()) == revenue
    assert all(amount > 0 for amount in parts.values())


@given(amounts, some_weights, some_shares)
def test_no_payee_is_off_by_two_nano_credits(
    revenue: int, weights: dict[str, int], shares: dict[str, int]
):
    total = sum(weights.values())
    parts = split(revenue, weights, shares)
    for site, weight in weights.items():
        if total:
            exact = Fraction(revenue * weight, 4 * total)
            assert abs(parts.get(f"hospital:{site}", 0) - exact) < 2


@given(st.lists(st.integers(0, 10**12), max_size=30), st.integers(1, 1000))
def test_a_pool_owes_its_holders_to_the_nano_what_came_in(came: list[int], shares: int):
    pool = Pool(shares=shares, acc=0, carry=0)
    for amount in came:
        pool = distribute(pool, NanoCredits(amount))
    # Fairness: at constant shares nobody is more than one nano-credit from the exact share.
    assert abs(owed(pool, shares=1, acc_seen=0) - Fraction(sum(came), shares)) < 1
    assert owed(pool, shares=shares, acc_seen=0) + pool.carry == sum(came)
    assert 0 <= pool.carry < shares


step = st.one_of(
    st.tuples(st.just("in"), st.integers(0, 10**9)),
    st.tuples(st.just("settle"), st.integers(0, 5)),
    st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 4)),
)


@settings(max_examples=budget(100, 2000))
@given(st.lists(step, max_size=60))
def test_a_pool_conserves_whatever_happens_in_whatever_order(steps: list[tuple[object, ...]]):
    pool, balance, commons, paid = Pool(shares=0, acc=0, carry=0), 0, 0, [0] * 6
    held, seen = [0] * 6, [0] * 6

    def settle(who: int) -> None:
        nonlocal balance
        due = owed(pool, shares=held[who], acc_seen=seen[who])
        balance -= due
        paid[who] += due
        seen[who] = pool.acc

    came = 0
    for kind, *rest in steps:
        if kind == "in":
            amount = int(str(rest[0]))
            came += amount
            if pool.shares == 0:
                commons += amount
            else:
                pool, balance = distribute(pool, NanoCredits(amount)), balance + amount
        else:
            who = int(str(rest[0]))
            settle(who)
            if kind == "set":
                # `seen` stays where settling put it: what the change frees from the carry is owed
                # to all who hold shares now, the one who moved included.
                shares = int(str(rest[1]))
                pool, residual = resize(pool, pool.shares - held[who] + shares)
                held[who] = shares
                balance, commons = balance - residual, commons + residual
        outstanding = sum(owed(pool, shares=s, acc_seen=a) for s, a in zip(held, seen, strict=True))
        assert balance == outstanding + pool.carry
        assert 0 <= pool.carry < max(pool.shares, 1)
    assert came == balance + commons + sum(paid)


def test_a_pool_without_holders_refuses_money():
    with pytest.raises(InvariantError):
        distribute(Pool(shares=0, acc=5, carry=0), NanoCredits(1))
    with pytest.raises(InvariantError):
        resize(Pool(shares=1, acc=5, carry=0), -1)
