"""A few bad hospitals move a model no further than honest ones disagree."""

import numpy as np
import pytest
from budget import budget
from coop_world import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from coop.documents.study import MICRO, Study
from coop.families.logistic import WEIGHT
from coop.studyfile import load_study
from federated.gate import Expected, GateError, check_tensors
from federated.models import to_safetensors
from federated.private_training import private_gradient
from federated.robust import TRIM, TooFewForRuleError, combined
from federated.simulate import train
from federated.step import apply_round

RULES = ("trimmed-mean", "median")
NAMES = [f"h{k}" for k in range(10)]
finite = st.floats(-1e6, 1e6, width=32)


def study(**changes):
    values = load_study(ROOT / "examples" / "heart-disease" / "study.yaml")
    values["hospitals_quorum"] = 4
    values["recipe"] |= changes
    return Study.model_validate(values)


@st.composite
def rounds(draw, bad: int = 0):
    """Means and registered counts of ten hospitals, and what the bad ones send."""
    means = draw(hnp.arrays(np.float64, (10, 3), elements=finite))
    counts = draw(st.lists(st.integers(1, 5000), min_size=10, max_size=10))
    updates = {n: m * c for n, m, c in zip(NAMES, means, counts, strict=True)}
    for name in NAMES[:bad]:
        updates[name] = draw(hnp.arrays(np.float64, 3, elements=st.floats(-1e30, 1e30)))
    return updates, dict(zip(NAMES, counts, strict=True)), means[bad:]


@pytest.mark.parametrize("rule", RULES)
@given(made=rounds(bad=int(TRIM * 10)))
@settings(max_examples=budget(40, 2000))
def test_whatever_three_of_ten_send_every_coordinate_stays_between_honest_hospitals(rule, made):
    updates, counts, honest = made
    mean = combined(rule, updates, counts) / sum(counts.values())
    slack = 1e-6 * (1 + np.abs(honest).max())
    assert (mean >= honest.min(axis=0) - slack).all()
    assert (mean <= honest.max(axis=0) + slack).all()


@pytest.mark.parametrize("rule", RULES)
@given(mean=hnp.arrays(np.float64, 3, elements=finite), made=rounds())
@settings(max_examples=budget(30, 500))
def test_where_all_agree_a_rule_gives_the_sum(rule, mean, made):
    _, counts, _ = made
    updates = {name: mean * count for name, count in counts.items()}
    total = combined("sum", updates)
    assert np.allclose(combined(rule, updates, counts), total, rtol=1e-9, atol=1e-3)


@pytest.mark.parametrize("rule", ["sum", *RULES])
@given(made=rounds(), order=st.permutations(NAMES))
@settings(max_examples=budget(20, 300))
def test_the_order_of_arrival_changes_no_bit(rule, made, order):
    updates, counts, _ = made
    again = {name: updates[name] for name in order}
    assert combined(rule, updates, counts).tobytes() == combined(rule, again, counts).tobytes()


def test_a_count_that_a_hospital_claims_changes_nothing_and_the_registrys_does():
    updates = {name: np.full(2, float(k)) for k, name in enumerate(NAMES)}
    counts = dict.fromkeys(NAMES, 100)
    # An answer has no place for a count; a larger update is a larger mean, and is cut off.
    boosted = updates | {"h9": updates["h9"] * 1e9}
    same = combined("trimmed-mean", updates, counts)
    assert combined("trimmed-mean", boosted, counts).tobytes() == same.tobytes()
    assert combined("trimmed-mean", updates, counts | {"h5": 10_000}).tobytes() != same.tobytes()


def test_a_hospital_without_registered_consents_has_no_say():
    updates = {name: np.full(2, 1.0) for name in NAMES[:5]}
    counts = dict.fromkeys(NAMES[:5], 10)
    alone = combined("median", {n: updates[n] for n in NAMES[:4]}, counts)
    weightless = combined("median", updates | {"h4": np.full(2, 1e9)}, counts | {"h4": 0})
    assert alone.tobytes() == weightless.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_three_hospitals_are_too_few_for_a_rule(rule):
    updates = {name: np.ones(2) for name in NAMES[:3]}
    with pytest.raises(TooFewForRuleError):
        combined(rule, updates, dict.fromkeys(NAMES, 10))
    with pytest.raises(TooFewForRuleError):
        combined(rule, updates)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"recipe": {"mode": "B", "honest": 3, "aggregation": "median"}}, "mode B"),
        ({"recipe": {"aggregation": "trimmed-mean"}, "hospitals_quorum": 3}, "hospitals_quorum"),
        ({"recipe": {"aggregation": "krum"}}, "aggregation"),
    ],
)
def test_a_study_that_asks_for_a_rule_that_cannot_hold_is_none(wrong, says):
    values = load_study(ROOT / "examples" / "heart-disease" / "study.yaml")
    values["hospitals_quorum"] = wrong.get("hospitals_quorum", 4)
    values["recipe"] |= wrong["recipe"]
    with pytest.raises(ValidationError, match=says):
        Study.model_validate(values)


def test_the_gates_bound_refuses_no_honest_answer_and_every_boosted_one():
    x, y = np.eye(8, dtype=np.float32)[:3], np.ones(3, np.float32)
    weights = {WEIGHT: np.zeros(8, np.float32)}
    expected = Expected(
        order_sha256="",
        phase="train",
        round=1,
        request_sha256="",
        dids={},
        sigma_micro=10 * MICRO,
        clip_micro=MICRO,
        tensors={WEIGHT: ((8,), "float32")},
        population=3,
    )
    for _ in range(budget(200, 10_000)):
        sent = private_gradient(weights, x, y, clip=1.0, sigma=10.0)
        assert check_tensors(to_safetensors(sent), expected)
    for factor in (100, float("nan"), float("inf")):
        bad = {WEIGHT: np.full(8, np.float32(factor) * 10, np.float32)}
        with pytest.raises(GateError):
            check_tensors(to_safetensors(bad), expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_training_whose_rule_holds_learns_beside_three_hospitals_that_push_the_other_way(rule):
    recipe = study(aggregation=rule, population=1000, rounds=15).recipe
    generator = np.random.default_rng(5)
    x = generator.normal(size=(1000, 3)).astype(np.float32)
    y = (x @ [2, -1, 0.5] + generator.normal(size=1000) > 0).astype(np.float32)
    parts = {n: (x[k::10], y[k::10]) for k, n in enumerate(NAMES)}
    clean = train(parts, recipe, None)
    weights = {WEIGHT: np.zeros(3, np.float32)}
    counts = {name: len(part[1]) for name, part in parts.items()}
    for _ in range(recipe.rounds):
        updates = {
            name: private_gradient(weights, *part, clip=5.0, sigma=1e-3)
            for name, part in parts.items()
        }
        for name in NAMES[:3]:
            updates[name] = {WEIGHT: -50 * updates[name][WEIGHT]}
        weights = apply_round(weights, updates, recipe, counts)
    assert np.sign(weights[WEIGHT]).tolist() == np.sign(clean[WEIGHT]).tolist() == [1, -1, 1]
