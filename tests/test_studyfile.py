"""Study files: exact decimals, and errors that name the field."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coop.documents.study import Study
from coop.documents.units import ANALYTES, UNITS
from coop.errors import NotFoundError
from coop.studyfile import StudyFileError, load_study, schema

ROOT = Path(__file__).parent.parent
GOOD: dict = {
    "study_id": "heart",
    "version": 1,
    "title": "Heart disease",
    "lay_summary": "Finds who should see a cardiologist sooner.",
    "proposer": "Example University",
    "commercial": False,
    "purpose": "DUO:0000007",
    "disease": "MONDO:0005010",
    "data_class": "cardiology",
    "uses": ["train-federated", "evaluate"],
    "ethics_reference": "EC 2026-1",
    "ethics_sha256": "0" * 64,
    "features": {
        "features": [
            {
                "kind": "number",
                "name": "age",
                "center": "54.5",
                "scale": "9",
                "clip": "3",
                "gain": "1",
            },
            {"kind": "category", "name": "pain", "values": ["typical", "atypical"]},
            {"kind": "flag", "name": "smoker", "missing": "indicator"},
        ],
        "site_intercepts": [],
    },
    "label": {"field": "severity", "above": 0},
    "recipe": {
        "family": "logistic-regression",
        "rounds": 10,
        "learning_rate": "0.5",
        "clip": "1",
        "average_last": 5,
        "population": 740,
    },
    "budget": {
        "epsilon": "1",
        "delta": "0.000001",
        "training_percent": 80,
        "evaluation_percent": 15,
        "reserve_percent": 5,
        "cohort_rho": "0.01",
    },
    "evaluation": {
        "fold_percent": 20,
        "bins": 20,
        "group_field": "sex",
        "groups": ["female", "male"],
    },
    "cohort": {"number_fields": ["age"], "category_fields": ["pain"]},
    "fee_point": "0.01",
    "fee_cohort": "2.5",
    "hospitals_quorum": 3,
    "expires": "2030-01-01",
}


def written(tmp_path: Path, content: dict | str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(place: str, value: object) -> dict:
    study = copy.deepcopy(GOOD)
    *parents, last = place.split(".")
    part = study
    for name in parents:
        part = part[int(name)] if name.isdigit() else part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return study


def test_decimals_become_exact_integers_with_their_units(tmp_path: Path):
    study = Study.model_validate(load_study(written(tmp_path, GOOD)))
    number = study.schema_.features[0]
    assert (number.center_micro, number.scale_micro) == (54_500_000, 9_000_000)
    assert (study.budget.epsilon_micro, study.budget.delta_pico) == (1_000_000, 1_000_000)
    assert study.budget.cohort_rho_nano == 10_000_000
    assert (study.fee_point_nano, study.fee_cohort_nano) == (10_000_000, 2_500_000_000)
    assert study.recipe.learning_rate_micro == 500_000
    assert study.expires == 1_893_456_000  # 2030-01-01T00:00:00Z


def test_no_number_passes_through_a_float(tmp_path: Path):
    """0.1 + 0.2 is .30000000000000004 in a float, and 1e-6 of it is another budget."""
    plain = (
        yaml.safe_dump(GOOD).replace("epsilon: '1'", "epsilon: 0.300001").replace("'54.5'", "54.5")
    )
    study = Study.model_validate(load_study(written(tmp_path, plain)))
    assert study.budget.epsilon_micro == 300_001
    assert study.schema_.features[0].center_micro == 54_500_000
    exponent = plain.replace("'0.000001'", "1e-6")
    assert load_study(written(tmp_path, exponent))["budget"]["delta_pico"] == 1_000_000


@given(micro=st.integers(min_value=1, max_value=3_000_000))
def test_every_budget_a_person_can_write_is_read_exactly(tmp_path_factory, micro: int):
    text = f"{micro // 1_000_000}.{micro % 1_000_000:06d}"
    path = written(tmp_path_factory.mktemp("study"), changed("budget.epsilon", text))
    assert load_study(path)["budget"]["epsilon_micro"] == micro


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("study_id", "Heart!"),
        ("version", 0),
        ("title", "x"),
        ("lay_summary", "short"),
        ("commercial", "maybe"),
        ("purpose", "research"),
        ("disease", "heart"),
        ("uses", ["sell"]),
        ("ethics_sha256", "abc"),
        ("features.features.0.scale", "wide"),
        ("features.features.0.center", "1.1234567"),
        ("features.features.0.kind", "tensor"),
        ("features.features.0.clip", "0"),
        ("features.features.1.values", []),
        ("features.features.2.missing", "guess"),
        ("label.above", "one"),
        ("recipe.family", "llm"),
        ("recipe.rounds", 0),
        ("recipe.learning_rate", "0"),
        ("recipe.clip", "0.0000001"),
        ("budget.epsilon", "4"),
        ("budget.delta", "0.001"),
        ("budget.cohort_rho", "-1"),
        ("budget.training_percent", 0),
        ("evaluation.bins", 1),
        ("cohort.number_fields", "age"),
        ("fee_point", "free"),
        ("fee_cohort", "1e400"),
        ("hospitals_quorum", 0),
        ("expires", "soon"),
        ("expires", "2030-13-01"),
        ("recipe.surprise", 1),
        ("surprise", 1),
    ],
)  # fmt: skip
def test_each_error_names_its_field(tmp_path: Path, place: str, value: object):
    with pytest.raises(StudyFileError) as refused:
        load_study(written(tmp_path, changed(place, value)))
    named = place if not place.endswith("surprise") else "surprise"
    assert named in refused.value.message.replace("'", ""), refused.value.message


@pytest.mark.parametrize("place", ["title", "budget.epsilon", "recipe.rounds", "label.field"])
def test_a_missing_field_is_named(tmp_path: Path, place: str):
    with pytest.raises(StudyFileError, match=place.rpartition(".")[2]):
        load_study(written(tmp_path, changed(place, ...)))


def test_a_name_written_twice_is_refused(tmp_path: Path):
    with pytest.raises(StudyFileError, match="study_id stands twice"):
        load_study(written(tmp_path, yaml.safe_dump(GOOD) + "\nstudy_id: other\n"))


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "study: [", "a: !!python/object/apply:os.system ['true']", "\x00"]
)
def test_what_is_no_study_file_is_refused(tmp_path: Path, text: str):
    with pytest.raises(StudyFileError):
        load_study(written(tmp_path, text))
    with pytest.raises(NotFoundError):
        load_study(tmp_path / "absent.yaml")


def test_the_ethics_document_beside_the_file_is_named_by_its_digest(tmp_path: Path):
    study = changed("ethics_sha256", ...)
    study["ethics_document"] = "vote.pdf"
    with pytest.raises(StudyFileError, match="ethics_document"):
        load_study(written(tmp_path, study))
    (tmp_path / "vote.pdf").write_bytes(b"approved")
    from coop.canonical import sha256

    assert load_study(written(tmp_path, study))["ethics_sha256"] == sha256(b"approved").hex()
    study["ethics_sha256"] = "0" * 64
    with pytest.raises(StudyFileError):
        load_study(written(tmp_path, study))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_example_is_a_study(path: Path):
    Study.model_validate(load_study(path))


# --- where fields come from -------------------------------------------------------------

SOURCED: dict = {
    **{name: value for name, value in GOOD.items() if name not in {"features", "label", "cohort"}},
    "index": {"event": "first-encounter"},
    "features": {
        "features": [
            {
                "kind": "number",
                "name": "glucose",
                "center": "100",
                "scale": "20",
                "clip": "3",
                "gain": "1",
                "source": {
                    "table": "observation",
                    "codes": {"loinc": ["2345-7"], "omop": [3004501]},
                    "unit": "mg/dL",
                    "analyte": "glucose",
                    "low": "10.5",
                    "high": 2000,
                },
            },
            {
                "kind": "category",
                "name": "sex",
                "values": ["male"],
                "source": {"table": "patient", "attribute": "sex"},
            },
            {
                "kind": "flag",
                "name": "hypertension",
                "source": {"table": "condition", "codes": {"icd10": ["I10*"]}},
            },
        ],
        "site_intercepts": [],
    },
    "label": {
        "field": "diabetes",
        "above": 0,
        "source": {
            "table": "condition",
            "codes": {"snomed": [44054006]},
            "pick": "count",
            "to_day": 365,
        },
    },
    "cohort": {"number_fields": ["glucose"], "category_fields": ["sex"]},
}


def resourced(place: str, value: object) -> dict:
    study = copy.deepcopy(SOURCED)
    *parents, last = place.split(".")
    part = study
    for name in parents:
        part = part[int(name)] if name.isdigit() else part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return study


def test_a_source_is_signed_as_text_and_integers(tmp_path: Path):
    study = Study.model_validate(load_study(written(tmp_path, SOURCED)))
    source = study.schema_.features[0].source
    assert source.codes == {"loinc": ["2345-7"], "omop": ["3004501"]}
    assert (source.low_micro, source.high_micro) == (10_500_000, 2_000_000_000)
    assert (source.from_day, source.to_day) == (-36_525, 0)
    assert (study.label.source.from_day, study.label.source.to_day) == (1, 365)
    assert study.label.source.codes == {"snomed": ["44054006"]}
    dated = resourced("index", {"event": "date", "date": "2024-02-29"})
    read = Study.model_validate(load_study(written(tmp_path, dated)))
    assert read.index.at == 1_709_164_800


def test_the_extract_is_named_by_what_is_asked_of_records_and_nothing_else(tmp_path: Path):
    def extract(place: str, value: object) -> str:
        return Study.model_validate(load_study(written(tmp_path, resourced(place, value)))).extract

    plain = extract("title", "Diabetes")
    assert extract("budget.epsilon", "0.5") == plain
    assert extract("features.features.0.scale", "30") == plain
    assert extract("features.features.0.source.unit", "mmol/L") != plain
    assert extract("label.source.to_day", 366) != plain
    assert extract("index", {"event": "last-encounter"}) != plain
    assert Study.model_validate(load_study(written(tmp_path, GOOD))).extract == ""


F0, F1, F2 = (f"features.features.{n}.source" for n in range(3))


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("index", ..., "index"),
        ("index.event", "birth", "index.event"),
        ("index", {"event": "first-record"}, "codes"),
        ("index", {"event": "date"}, "at"),
        ("index", {"event": "date", "date": "2024-02-30"}, "index.date"),
        (F0, ..., "glucose"),
        (f"{F0}.unit", "furlong", f"{F0}"),
        (f"{F0}.unit", ..., f"{F0}"),
        (f"{F0}.analyte", "gold", f"{F0}"),
        (f"{F0}.pick", "ever", f"{F0}"),
        (f"{F0}.pick", "guess", f"{F0}.pick"),
        (f"{F0}.codes", {}, f"{F0}.codes"),
        (f"{F0}.codes", {"loinc": ["2345 7"]}, f"{F0}.codes.loinc"),
        (f"{F0}.codes", {"loinc": ["a'b"]}, f"{F0}.codes.loinc"),
        (f"{F0}.codes", {"icd11": ["5A11"]}, f"{F0}.codes"),
        (f"{F0}.from_day", 1, f"{F0}"),
        (f"{F0}.to_day", 99999, f"{F0}.to_day"),
        (f"{F0}.low", "0.0000001", f"{F0}.low"),
        (f"{F0}.table", "patient", f"{F0}"),
        (f"{F1}.attribute", "age_years", f"{F1}"),
        (f"{F1}.unit", "a", f"{F1}"),
        ("features.features.1.values", ["m"], "sex"),
        (f"{F2}.pick", "latest", f"{F2}"),
        (f"{F2}.codes", ..., f"{F2}"),
        ("label.source.pick", ..., "label.source"),
        ("label.source", ..., "label"),
        ("label.field", "glucose", "label.field"),
        ("cohort.number_fields", ["weight"], "weight"),
        ("evaluation.group_field", "race", "race"),
    ],
)
def test_a_source_that_cannot_give_its_field_is_named(
    tmp_path: Path, place: str, value: object, named: str
):
    with pytest.raises(StudyFileError) as refused:
        load_study(written(tmp_path, resourced(place, value)))
    assert named in refused.value.message, refused.value.message


def test_a_source_without_an_index_is_refused(tmp_path: Path):
    study = changed("features.features.2.source", {"table": "condition", "codes": {"omop": [1]}})
    with pytest.raises(StudyFileError, match="index"):
        load_study(written(tmp_path, study))


def test_the_signed_bytes_of_a_study_without_sources_are_what_they_were(tmp_path: Path):
    study = Study.model_validate(load_study(written(tmp_path, GOOD)))
    said = study.model_dump(mode="json", exclude_none=True)
    assert "index" not in said
    assert not any("source" in feature for feature in said["features"]["features"])
    assert said["label"] == {"field": "severity", "above": 0}


def test_the_page_about_study_files_names_every_member_unit_and_substance():
    page = (ROOT / "docs" / "study-file.md").read_text()
    form = schema()
    names = set(form["properties"])
    for part in ("recipe", "budget", "evaluation", "cohort", "remediation"):
        names |= set(form["properties"][part]["properties"])
    for part in ("source", "label_source", "index", "codes", "number", "survival", "outcome"):
        names |= set(form["$defs"][part]["properties"])
    missing = [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", page)]
    assert missing == []
    assert [unit for unit in sorted(UNITS | ANALYTES) if f"`{unit}`" not in page] == []
