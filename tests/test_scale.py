"""A study among many hospitals: patients are dealt once, and all hospitals are in every round."""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.documents.study import Study
from coop.errors import InvalidInputError
from coop.studyfile import load_study
from federated.data import SITES, csv_of
from federated.scale import HOSPITALS_MAX, PATIENTS_MIN, NoRayError, scattered, simulate_many
from federated.simulate import SplitRule, load

ROOT = Path(__file__).parent.parent
STUDY = Study.model_validate(load_study(ROOT / "examples" / "heart-disease" / "study.yaml"))


def patients(*sizes: int):
    """Sites whose every row is a number of its own."""
    ends = np.cumsum([0, *sizes])
    return {
        f"s{k}": (np.arange(a, b, dtype=np.float32)[:, None], np.ones(b - a, np.float32))
        for k, (a, b) in enumerate(pairwise(ends))
    }


@given(st.lists(st.integers(1, 200), min_size=1, max_size=5), st.integers(1, 60))
@settings(max_examples=budget(40, 500))
def test_every_patient_is_at_one_hospital_or_it_is_said_that_some_stand_for_several(sizes, count):
    parts, again = scattered(patients(*sizes), count, np.random.default_rng(1))
    numbers = np.concatenate([x[:, 0] for x, _ in parts])
    assert len(parts) == count
    assert again is (sum(sizes) < count * PATIENTS_MIN)
    if not again:
        assert sorted(numbers) == list(range(sum(sizes)))
    held = [len(y) for _, y in parts]
    assert max(held) - min(held) <= 1
    assert min(held) >= (PATIENTS_MIN if again else 1)


@pytest.mark.parametrize("count", [0, -1, HOSPITALS_MAX + 1])
def test_no_hospital_and_too_many_are_refused(count):
    with pytest.raises(InvalidInputError, match="hospitals"):
        scattered(patients(50), count, np.random.default_rng(1))


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_it_says_what_to_install():
    parts, again = scattered(patients(50), 2, np.random.default_rng(1))
    with pytest.raises(NoRayError, match="simulation"):
        simulate_many(STUDY, parts, rounds=1, drawn_again=again)


@pytest.mark.flow
@pytest.mark.timeout(300)
@pytest.mark.skipif(find_spec("ray") is None, reason="an extra: pip install ray==2.55.1")
def test_all_hospitals_are_in_every_round():
    data, _ = load(STUDY, {site: csv_of(site) for site in SITES}, SplitRule.FLAMBY)
    training = {name: part.train for name, part in data.items()}
    parts, again = scattered(training, 8, np.random.default_rng(1))
    seen = []
    done = simulate_many(
        STUDY, parts, rounds=2, drawn_again=again, progress=lambda *each: seen.append(each)
    )
    assert done.took_part == [8, 8]
    assert done.patients == sum(len(y) for _, y in training.values())
    assert np.isfinite(done.weights["weight"]).all()
    assert np.abs(done.weights["weight"]).max() > 0
    assert seen[-1] == (2, 8)
