"""Every family keeps the same promises: one patient moves a sum by at most C, all files agree."""

import numpy as np
import onnxruntime
import pytest
import torch
from budget import budget
from gateway_world import World, study_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import optimize, stats

from coop.artefacts import ArtefactError, check_parity, io_file, onnx_file, reads, weights_file
from coop.canonical import parse_object
from coop.db import Database
from coop.documents.study import Recipe, SurvivalLabel
from coop.errors import InvalidInputError, InvariantError
from coop.families import (
    LOGISTIC_REGRESSION,
    Cox,
    Family,
    Mlp,
    family_of,
    initial,
    named,
    public_seed,
    size,
)
from coop.features import WrongValueError, columns, label, labelled
from federated import private_training
from federated.models import WrongWeightsError, check, from_safetensors, to_safetensors
from federated.private_training import (
    clipped_gradients,
    private_gradient,
    unsafe_gradient_without_noise,
)
from federated.scores import c_index

FAMILIES: list[Family] = [
    LOGISTIC_REGRESSION,
    Mlp(hidden=3, activation="tanh"),
    Mlp(hidden=3, activation="relu"),
    Cox(bounds=tuple(range(1, 51)), horizon=25),
]
NAMES = ["logistic", "tanh", "relu", "cox"]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
SURVIVAL = SurvivalLabel(
    time="weeks", event="died", intervals_micro=[4_000_000, 8_500_000], horizon_micro=4_000_000
)
rng = np.random.default_rng(8)
X = np.column_stack([rng.normal(size=(60, 5)), np.ones(60)]).astype(np.float32)


def outcomes(family: Family, count: int, seed: int = 3) -> np.ndarray:
    drawn = np.random.default_rng(seed)
    happened = (drawn.random(count) > 0.5).astype(np.float32)
    if isinstance(family, Cox):
        return np.column_stack([drawn.uniform(0, 60, count), happened]).astype(np.float32)
    return happened


def weights_of(
    family: Family, width: int, scale: float = 1.0, seed: int = 4
) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed)
    weights = {
        name: drawn.normal(scale=scale, size=shape).astype(np.float32)
        for name, shape in family.shapes(width).items()
    }
    if isinstance(family, Cox):
        weights["log_hazard"] -= 4  # a few percent an interval: not everybody's risk is 1
    return weights


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays[name].astype(float).ravel() for name in sorted(arrays)])


# --- the step -------------------------------------------------------------------------------


def loss_by_hand(family: Family, tensors: dict[str, torch.Tensor], x, y) -> torch.Tensor:
    """Minus the log-likelihood of all patients, written anew."""
    x, y = (torch.tensor(part, dtype=torch.float64) for part in (x, y))
    if isinstance(family, Cox):
        total = torch.zeros((), dtype=torch.float64)
        for row, (time, happened) in zip(x, y, strict=True):
            score = row[:-1] @ tensors["beta"]
            start = 0.0
            for k, end in enumerate(family.bounds):
                log_hazard = score + tensors["log_hazard"][k]
                seen = min(max(float(time) - start, 0.0), end - start) / (end - start)
                total = total + seen * torch.exp(log_hazard)
                first = k == 0 and time == 0
                if happened and (start < time <= end or first):
                    total = total - log_hazard
                start = end
        return total
    if isinstance(family, Mlp):
        bend = {"tanh": torch.tanh, "relu": torch.relu}[family.activation]
        score = bend(x @ tensors["hidden"].T) @ tensors["output"] + tensors["bias"]
    else:
        score = x @ tensors["weight"]
    risk = torch.sigmoid(score)
    return -(y * torch.log(risk) + (1 - y) * torch.log(1 - risk)).sum()


@every_family
def test_without_clipping_the_sum_is_the_gradient_of_the_likelihood(family: Family):
    weights, y = weights_of(family, 6, 0.5), outcomes(family, 60)
    tensors = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in weights.items()
    }
    loss_by_hand(family, tensors, X, y).backward()
    ours = unsafe_gradient_without_noise(weights, X, y, clip=1e6, family=family)
    for name, tensor in tensors.items():
        assert np.allclose(ours[name], tensor.grad.numpy(), rtol=1e-4, atol=1e-4), name


@every_family
def test_the_sum_is_that_of_the_patients_own_clipped_gradients(
    family: Family, monkeypatch: pytest.MonkeyPatch
):
    weights, y = weights_of(family, 6), outcomes(family, 60)
    for clip in (0.1, 2.0):
        lines = np.concatenate(list(clipped_gradients(weights, X, y, clip=clip, family=family)))
        assert lines.shape == (60, size(family, 6))
        assert np.linalg.norm(lines, axis=1).max() <= clip * (1 + 1e-9)
        for chunk, numbers in ((4096, 4_000_000), (7, 4_000_000), (4096, 2 * size(family, 6))):
            monkeypatch.setattr(private_training, "_CHUNK", chunk)
            monkeypatch.setattr(private_training, "_NUMBERS", numbers)
            whole = unsafe_gradient_without_noise(weights, X, y, clip=clip, family=family)
            assert np.allclose(flat(whole), lines.sum(axis=0), atol=1e-4)


values = st.floats(-1e4, 1e4, width=32)
extreme = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([-1e6, 1e6, 0.0]))


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
@given(data=st.data(), clip=st.sampled_from([0.01, 0.5, 3.0]))
@settings(max_examples=budget(25, 400))
def test_removing_a_patient_with_1_to_50_records_changes_the_sum_by_at_most_c(family, data, clip):
    """A survival patient brings up to fifty person-intervals; all others one aggregated row."""
    rows = data.draw(st.lists(st.tuples(*[values] * 4), min_size=1, max_size=6))
    x = np.array([[*row, 1.0] for row in rows], np.float32)
    y = (data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x)))) * 1
    y = np.array(y, np.float32)
    if isinstance(family, Cox):
        seen = st.lists(st.floats(0, 60, width=32), min_size=len(x), max_size=len(x))
        y = np.column_stack([data.draw(seen), y]).astype(np.float32)
    count = size(family, 5)
    numbers = data.draw(st.lists(extreme, min_size=count, max_size=count))
    weights, start = {}, 0
    for name, shape in family.shapes(5).items():
        length = int(np.prod(shape))
        weights[name] = np.array(numbers[start : start + length], np.float32).reshape(shape)
        start += length
    gone = data.draw(st.integers(0, len(x) - 1))
    whole = unsafe_gradient_without_noise(weights, x, y, clip=clip, family=family)
    rest = (np.delete(x, gone, axis=0), np.delete(y, gone, axis=0))
    without = unsafe_gradient_without_noise(weights, *rest, clip=clip, family=family)
    assert np.isfinite(flat(whole)).all()
    assert np.linalg.norm(flat(whole) - flat(without)) <= clip * (1 + 1e-5)


@every_family
def test_the_noise_is_sigma_c_whatever_the_seed_and_pure_without_patients(family: Family):
    width, sigma, clip = 8000, 3.0, 0.5
    weights = family.initial(width, b"seed")
    nobody = np.zeros((0, width), np.float32), outcomes(family, 0)
    draws = []
    for _ in range(8):
        torch.manual_seed(11)
        answer = private_gradient(weights, *nobody, clip=clip, sigma=sigma, family=family)
        draws.append(flat(answer))
    noise = np.array(draws)
    assert abs(noise.std() / (sigma * clip) - 1) < 0.015  # 64,000 numbers or more: 3.6 sd
    assert stats.kstest(noise.ravel() / (sigma * clip), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise)[0, 1]) < 6 / np.sqrt(width)
    quiet = unsafe_gradient_without_noise(weights, *nobody, clip=clip, family=family)
    assert not flat(quiet).any()


@every_family
def test_what_is_no_outcome_of_the_family_is_never_trained_on(family: Family):
    weights, good = weights_of(family, 6), outcomes(family, 60)
    wrong = [good[:-1], good + 0.5, good * np.nan, np.zeros((60, 3), np.float32)]
    wrong += [good[:, 0], -good] if isinstance(family, Cox) else [np.column_stack([good] * 2)]
    for y in wrong:
        with pytest.raises(InvariantError):
            private_gradient(weights, X, y, clip=1.0, sigma=1.0, family=family)


# --- sampling -------------------------------------------------------------------------------


def who_was_in(sampling: float, count: int) -> np.ndarray:
    """Patient i's gradient lies in column i alone, far above the noise: so the sample shows."""
    x = np.eye(count, dtype=np.float32)
    weights = LOGISTIC_REGRESSION.initial(count, b"")
    answer = private_gradient(
        weights, x, np.ones(count, np.float32), clip=1.0, sigma=0.01, sampling=sampling
    )
    return np.abs(answer["weight"]) > 0.25


def test_each_patient_is_in_the_sample_with_chance_q_on_her_own_whatever_the_seed():
    rounds = []
    for _ in range(40):
        torch.manual_seed(7)
        rounds.append(who_was_in(0.3, 500))
    mask = np.array(rounds, float)
    assert abs(mask.mean() - 0.3) < 5 * np.sqrt(0.21 / mask.size)
    # Poisson: the size varies as independent coins do, it is not fixed.
    assert 0.5 < mask.sum(axis=1).var() / (500 * 0.21) < 1.8
    assert np.abs(np.corrcoef(mask)[~np.eye(40, dtype=bool)]).max() < 0.3
    assert who_was_in(1.0, 500).all()


def test_an_empty_sample_is_noised_like_any_other():
    weights, y = LOGISTIC_REGRESSION.initial(6, b""), outcomes(LOGISTIC_REGRESSION, 60)
    answers = [
        private_gradient(weights, X, y, clip=0.5, sigma=2.0, sampling=1e-6)["weight"]
        for _ in range(200)
    ]
    assert abs(np.std(answers) - 1.0) < 0.1
    for q in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InvariantError, match="sampling"):
            private_gradient(weights, X, y, clip=0.5, sigma=2.0, sampling=q)


# --- what the files say ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
@given(data=st.data())
@settings(max_examples=budget(15, 200))
def test_the_graph_predicts_what_the_weights_say(family, data):
    seed, scale = data.draw(st.integers(0, 2**20)), data.draw(st.sampled_from([0.1, 1.0, 4.0]))
    drawn = np.random.default_rng(seed)
    weights = weights_of(family, 6, scale, seed)
    x = np.column_stack([drawn.normal(size=(40, 5)), np.ones(40)]).astype(np.float32)
    graph = onnx_file(family, 6, weights)
    assert graph == onnx_file(family, 6, {name: value.copy() for name, value in weights.items()})
    found = onnxruntime.InferenceSession(graph).run(["y"], {"x": x})[0]
    expected = family.predict(weights, x)
    assert found.shape == (40, 1)
    assert np.abs(found[:, 0] - expected).max() <= 1e-5
    assert ((expected >= 0) & (expected <= 1)).all()
    tensors = weights_file(family, 6, weights)
    check_parity(family, 6, tensors, graph)
    other = {name: value - np.float32(0.5) for name, value in weights.items()}
    # Weights so large that every risk is 0 or 1 cannot be told apart by their answers.
    if scale <= 1:
        with pytest.raises(ArtefactError):
            check_parity(family, 6, weights_file(family, 6, other), graph)


@every_family
def test_weights_of_another_family_or_width_are_refused(family: Family):
    weights = weights_of(family, 6)
    assert flat(from_safetensors(to_safetensors(weights), 6, family)).tolist() == list(
        flat(weights)
    )
    for other in FAMILIES:
        if other.shapes(6) != family.shapes(6):
            with pytest.raises(WrongWeightsError):
                check(weights, 6, other)
            with pytest.raises(InvalidInputError):
                weights_file(other, 6, weights)
    with pytest.raises(WrongWeightsError):
        check(weights, 7, family)
    for name in weights:
        with pytest.raises(WrongWeightsError):
            check({**weights, name: weights[name] * np.float32(np.nan)}, 6, family)
        with pytest.raises(WrongWeightsError):
            check({**weights, name: weights[name].astype(np.float64)}, 6, family)


@pytest.mark.parametrize(
    "words", [{}, {"name": "llm"}, {"name": "mlp"}, {"name": "mlp", "hidden": 3, "activation": "x"}]
)
def test_a_family_no_release_has_reviewed_is_refused(words):
    with pytest.raises(InvalidInputError):
        named(words, {"field": "severity", "above": 0})


# --- studies --------------------------------------------------------------------------------

MORE = {
    "rounds": 3,
    "learning_rate_micro": 1_000_000,
    "clip_micro": 1_000_000,
    "average_last": 1,
    "population": 500,
}
STUDIES = {
    "logistic": {},
    "mlp": {"recipe": Recipe(family="mlp", hidden=8, activation="tanh", **MORE)},
    "cox": {"recipe": Recipe(family="cox", **MORE), "label": SURVIVAL},
}
every_study = pytest.mark.parametrize("changes", STUDIES.values(), ids=STUDIES)


@every_study
def test_training_starts_from_the_studys_text_alone(changes):
    study = study_of(**changes)
    width = len(columns(study.schema_))
    start = initial(study, width)
    again = initial(type(study).model_validate(study.model_dump()), width)
    assert flat(start).tolist() == flat(again).tolist()
    check(start, width, family_of(study))
    assert public_seed(study) != public_seed(study_of(**{**changes, "title": "Another title"}))


def test_initial_weights_are_the_same_on_every_machine():
    start = Mlp(hidden=2, activation="tanh").initial(3, b"known")
    assert flat(start).round(6).tolist() == [
        0.0,
        1.020535,
        0.545551,
        0.417329,
        0.525503,
        -0.359954,
        -0.189522,
        -0.653254,
        -0.512437,
    ]
    wide = Mlp(hidden=64, activation="relu").initial(200, b"seed")
    bound = np.sqrt(6 / 264)
    assert np.abs(wide["hidden"]).max() <= bound
    assert abs(wide["hidden"].std() / (bound / np.sqrt(3)) - 1) < 0.02
    assert not wide["bias"].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": {"family": "mlp"}},
        {"recipe": {"family": "mlp", "hidden": 65, "activation": "relu"}},
        {"recipe": {"family": "mlp", "hidden": 8}},
        {"recipe": {"family": "logistic-regression", "hidden": 8, "activation": "relu"}},
        {"recipe": {"family": "forest"}},
        {"recipe": {"family": "cox"}},
        {"label": SURVIVAL},
        {"recipe": {"family": "logistic-regression", "sampling_micro": 500_000}},
        {"recipe": {"family": "logistic-regression", "noise_micro": 500_000}},
        {
            "recipe": {
                "family": "logistic-regression",
                "sampling_micro": 500_000,
                "noise_micro": 2_000_000,
                "mode": "B",
                "honest": 3,
            }
        },
    ],
)
def test_a_recipe_that_does_not_fit_its_family_is_no_study(wrong):
    recipe = {**MORE, **wrong["recipe"]} if "recipe" in wrong else None
    with pytest.raises(ValidationError):
        study_of(**wrong, **({"recipe": recipe} if recipe else {})) if not recipe else study_of(
            **{**wrong, "recipe": recipe}
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"intervals_micro": [5, 5]},
        {"intervals_micro": [5, 4]},
        {"intervals_micro": []},
        {"intervals_micro": [0, 5]},
        {"horizon_micro": 6},
        {"event": "weeks"},
    ],
)
def test_intervals_that_do_not_rise_to_their_horizon_are_refused(wrong):
    with pytest.raises(ValidationError):
        SurvivalLabel.model_validate({**SURVIVAL.model_dump(), **wrong})


@every_study
def test_the_files_of_a_study_name_its_family_and_are_served(changes, sqlite_database: Database):
    study = study_of(**changes)
    family, width = family_of(study), len(columns(study.schema_))
    assert reads(io_file("heart-1", study)) == (family, width)
    world = World(sqlite_database, study=study)
    weights = weights_of(family, width, 0.5)
    world.release(onnx_file(family, width, weights), model_id="m2")
    with world.database.reading() as connection:
        served = world.gateway.models.found(connection, "m2")
    from coop.features import encode
    from inference_gateway.models import risk_of
    from inference_gateway.oip import metadata

    rows = [
        {"age": 63.0, "sex": "female", "angina": True},
        {"age": 20.0, "sex": "male", "angina": False},
    ]
    x, _ = encode(rows, study.schema_, None)
    assert risk_of(served, rows) == [round(float(p), 3) for p in family.predict(weights, x)]
    said = metadata("m2", served.version, study.schema_)
    assert [tensor["name"] for tensor in said["inputs"]] == [f.name for f in study.schema_.features]
    assert said["outputs"] == [{"name": "risk", "datatype": "FP64", "shape": [-1]}]


def test_an_io_file_that_names_no_known_family_is_not_believed():
    said = parse_object(io_file("heart-1", study_of()))
    assert said["family"] == {"name": "logistic-regression"}
    for body in (b"{}", b"[]", b"x", io_file("m", study_of()).replace(b"logistic-", b"lo-")):
        with pytest.raises(ArtefactError):
            reads(body)


# --- time to an event -----------------------------------------------------------------------


def test_an_outcome_in_time_is_read_from_two_fields():
    rows = [
        {"weeks": 3, "died": True},
        {"weeks": 9.5, "died": False},
        {"weeks": None, "died": True},
        {"weeks": 2},
    ]
    assert labelled(rows, SURVIVAL).tolist() == [True, True, False, False]
    assert label(rows[:2], SURVIVAL).tolist() == [[3, 1], [9.5, 0]]
    assert label([], SURVIVAL).shape == (0, 2)
    assert label([{"weeks": 3, "died": 2}], SURVIVAL).tolist() == [[3, 1]]
    for wrong in (
        {"weeks": -1, "died": True},
        {"weeks": "x", "died": True},
        {"weeks": 1, "died": "no"},
    ):
        with pytest.raises(WrongValueError):
            label([wrong], SURVIVAL)


def test_a_patient_is_at_risk_until_she_is_seen_no_more():
    cox = Cox(bounds=(2.0, 4.0, 8.0), horizon=2)
    y = np.array([[0, 1], [1, 0], [2, 1], [3, 1], [8, 1], [9, 1], [4, 0]], np.float32)
    exposure, happened = cox.exposures(y)
    assert exposure.tolist() == [
        [0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0],
    ]  # fmt: skip
    assert happened.argmax(axis=1).tolist() == [0, 0, 0, 1, 2, 0, 0]
    assert happened.sum(axis=1).tolist() == [1, 0, 1, 1, 1, 0, 0]
    outcome, known = cox.evaluated(y)
    assert known.tolist() == [True, False, True, True, True, True, True]
    assert outcome.tolist() == [1, 0, 1, 1, 0, 0, 0]


def test_the_c_index_is_lifelines():
    lifelines = pytest.importorskip("lifelines", reason="a foreign program: pip install lifelines")
    concordance_index = lifelines.utils.concordance_index
    times = np.column_stack([rng.integers(0, 12, 200), rng.random(200) < 0.6]).astype(np.float32)
    risks = rng.integers(0, 8, 200) / 8
    assert c_index(risks, times) == pytest.approx(
        concordance_index(times[:, 0], -risks, times[:, 1])
    )
    assert c_index(risks, np.zeros((200, 2), np.float32)) is None


def test_log_hazard_ratios_are_coxs_own_on_rossis_records():
    """Our likelihood at its optimum against lifelines' partial likelihood: 432 people, 52 weeks."""
    lifelines = pytest.importorskip("lifelines", reason="a foreign program: pip install lifelines")
    load_rossi, CoxPHFitter = lifelines.datasets.load_rossi, lifelines.CoxPHFitter  # noqa: N806
    people = load_rossi()
    fields = ["fin", "age", "race", "wexp", "mar", "paro", "prio"]
    scaled = people[fields].astype(float)
    scaled["age"], scaled["prio"] = (scaled["age"] - 25) / 6, (scaled["prio"] - 3) / 3
    theirs = CoxPHFitter().fit(
        scaled.assign(week=people.week, arrest=people.arrest), "week", "arrest"
    )
    x = np.column_stack([scaled.to_numpy(), np.ones(len(people))]).astype(np.float32)
    y = people[["week", "arrest"]].to_numpy(np.float32)
    cox = Cox(bounds=tuple(float(week) for week in range(2, 53, 2)), horizon=26)
    exposure, happened = cox.exposures(y)

    def unflat(numbers):
        return {
            "beta": numbers[:7].astype(np.float32),
            "log_hazard": numbers[7:].astype(np.float32),
        }

    def loss(numbers):
        scores = (x[:, :-1] @ numbers[:7])[:, None] + numbers[7:]
        return float((exposure * np.exp(scores) - happened * scores).sum())

    def slope(numbers):
        gradient = unsafe_gradient_without_noise(unflat(numbers), x, y, clip=1e6, family=cox)
        return np.concatenate([gradient["beta"], gradient["log_hazard"]]).astype(float)

    start = np.concatenate([np.zeros(7), np.full(26, -4.0)])
    found = optimize.minimize(loss, start, jac=slope, method="BFGS", options={"gtol": 1e-2})
    assert np.abs(found.x[:7] - theirs.params_.to_numpy()).max() < 0.02
    ours = c_index(cox.predict(unflat(found.x), x), y)
    assert ours == pytest.approx(theirs.concordance_index_, abs=0.01)
    # The predicted risk is calibrated: who is arrested by week 52 is a quarter of all.
    assert cox.predict(unflat(found.x), x).mean() == pytest.approx(y[:, 1].mean(), abs=0.01)
