"""A FHIR export becomes one row a patient: known figures, no guess, and no order of lines."""

import gzip
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import records_world as w
from budget import budget
from carebundle import Imperfection, generate_cohort, inject_defects, to_json, to_ndjson
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.documents.study import Study
from coop.errors import NotFoundError
from coop.studyfile import load_study
from federated import coverage, fhir_export
from federated.extract import Extractor, NoSourcesError
from federated.fhir_export import FhirReader
from federated.importers import UnreadableFileError
from federated.record_import import import_fhir
from federated.records import all_pids, rows_of
from federated.site import Site, quarantine

CANARY = "CANARY77123456"


@pytest.fixture
def site(tmp_path: Path):
    made = Site.create(tmp_path / "node", "northern")
    yield made
    made.close()


def extracted(folder: Path, study: Study, identifier: str | None = None) -> tuple[dict, Extractor]:
    extractor = Extractor(study, w.NOW)
    FhirReader(extractor, identifier).read_folder(folder)
    return dict(extractor.rows()), extractor


@cache
def picking(pick: str) -> Study:
    """The study on glucose alone, read once."""
    folder = Path(tempfile.mkdtemp())
    return w.study_of(folder, features=[w.glucose(pick=pick)])


def rows(tmp_path: Path, *resources: Any, **study: Any) -> dict[str, dict]:
    return extracted(w.export(tmp_path / "export", *resources), w.study_of(tmp_path, **study))[0]


def aside(tmp_path: Path, *resources: Any, **study: Any) -> dict[str, int]:
    folder = w.export(tmp_path / "export", *resources)
    return dict(extracted(folder, w.study_of(tmp_path, **study))[1].aside.counts)


ONE = (w.patient("a"), w.encounter("a"))


# --- one row a patient ------------------------------------------------------------------


def test_a_patient_becomes_one_row_of_exactly_the_studys_fields(tmp_path: Path):
    found = rows(
        tmp_path,
        *ONE,
        w.observation("a", 6.1, "mmol/L"),
        w.observation("a", 90, code="9999-9"),
        w.condition("a"),
        features=[w.glucose(analyte="glucose")],
    )
    assert found == {
        "a": {"age_years": 50.0, "sex": "female", "glucose": 109.89516, "diabetes_diagnoses": 1.0}
    }


def test_whose_birthday_is_tomorrow_is_a_year_younger(tmp_path: Path):
    people = [
        ("a", "1970-05-10"),
        ("b", "1970-05-11"),
        ("c", "1970"),
        ("d", "1970-05"),
        ("e", None),
    ]
    resources = [r for name, born in people for r in (w.patient(name, born), w.encounter(name))]
    found = rows(tmp_path, *resources, features=[])
    ages = {name: row.get("age_years") for name, row in found.items()}
    assert ages == {"a": 50.0, "b": 49.0, "c": 49.0, "d": 49.0, "e": None}


PICKS = [
    ("latest", 130.0), ("first", 90.0), ("mean", 110.0), ("lowest", 90.0), ("highest", 130.0),
    ("count", 3.0),
]  # fmt: skip


@pytest.mark.parametrize(("pick", "expected"), PICKS)
def test_of_several_values_the_study_says_which_counts(tmp_path: Path, pick: str, expected: float):
    values = [("2020-01-01", 90), ("2020-02-01T10:00:00Z", 110), ("2020-02-01T11:00:00Z", 130)]
    feature = w.glucose(pick=pick)
    if pick == "count":
        del feature["source"]["unit"]
    resources = [w.observation("a", value, at=at) for at, value in values]
    found = rows(tmp_path, *ONE, *resources, w.observation("a", 500, at="2020-05-11"),
                 features=[feature])  # fmt: skip
    assert found["a"]["glucose"] == expected, "what came after the index day does not count"


@pytest.mark.parametrize(
    ("day", "inside"),
    [("2020-05-03", True), ("2020-05-02", False), ("2020-05-10", True), ("2020-05-11", False)],
)
def test_a_window_holds_its_first_and_its_last_day(tmp_path: Path, day: str, *, inside: bool):
    found = rows(
        tmp_path, *ONE, w.observation("a", at=day), features=[w.glucose(from_day=-7, to_day=0)]
    )
    assert ("glucose" in found["a"]) == inside


def test_components_contained_medications_and_references_are_resolved(tmp_path: Path):
    pressure = w.observation("a", code="85354-9")
    del pressure["valueQuantity"]
    pressure["component"] = [
        {
            "code": {"coding": [{"system": w.LOINC, "code": code}]},
            "valueQuantity": {"value": value, "unit": "mmHg"},
        }
        for code, value in (("8480-6", 131), ("8462-4", 82))
    ]
    drug = {"coding": [{"system": w.RXNORM, "code": "861007"}]}
    by_reference = w.prescription("a", medicationReference={"reference": "Medication/m1"})
    contained = w.prescription(
        "b", contained=[{"id": "m", "code": drug}], medicationReference={"reference": "#m"}
    )
    for request in (by_reference, contained):
        del request["medicationCodeableConcept"]
    flag = {
        "kind": "flag",
        "name": "metformin",
        "source": {"table": "medication", "codes": {"rxnorm": ["861007"]}},
    }
    systolic = w.number("systolic", table="observation", codes={"loinc": ["8480-6"]}, unit="mm[Hg]")
    far = w.encounter("b", subject={"reference": "https://x.example/fhir/Patient/b/_history/3"})
    found = rows(
        tmp_path,
        by_reference,
        contained,
        pressure,
        {"resourceType": "Medication", "id": "m1", "code": drug},
        *ONE,
        w.patient("b"),
        far,
        w.patient("c"),
        w.encounter("c"),
        features=[flag, systolic],
    )
    assert {name: row["metformin"] for name, row in found.items()} == {
        "a": True,
        "b": True,
        "c": False,
    }
    assert found["a"]["systolic"] == 131.0


def test_a_category_is_what_its_codes_mean(tmp_path: Path):
    smoking = {
        "kind": "category",
        "name": "smoking",
        "values": ["smoker"],
        "source": {
            "table": "observation",
            "codes": {"loinc": ["72166-2"]},
            "values": {"smoker": {"snomed": [77176002]}, "never": {"snomed": [266919005]}},
        },
    }

    def said(name: str, code: str, at: str) -> dict:
        coded = {"coding": [{"system": "http://snomed.info/sct", "code": code}]}
        record = w.observation(name, code="72166-2", at=at, valueCodeableConcept=coded)
        del record["valueQuantity"]
        return record

    resources = [
        *ONE,
        said("a", "77176002", "2018-01-01"),
        said("a", "266919005", "2019-01-01"),
        w.patient("b"),
        w.encounter("b"),
        said("b", "8517006", "2019-01-01"),
    ]
    found = rows(tmp_path, *resources, features=[smoking])
    assert [row.get("smoking") for row in found.values()] == ["never", None]
    assert aside(tmp_path, *resources, features=[smoking]) == {
        "smoking: the coded value is not a known one": 1
    }


def test_an_outcome_after_the_index_and_who_was_not_seen_again_is_unknown(tmp_path: Path):
    label = {
        "field": "diabetes_diagnoses",
        "above": 0,
        "source": {
            "table": "condition", "codes": {"icd10": ["E11*"]}, "pick": "count",
            "from_day": 1, "to_day": 365, "seen_until_day": 365,
        },
    }  # fmt: skip
    people = [w.patient(name) for name in "abcd"] + [w.encounter(name) for name in "abcd"]
    found = rows(
        tmp_path,
        *people,
        w.condition("a", "E11.65", "2020-08-01"),  # within the year
        w.condition("b", "E119", "2021-05-11"),  # a day too late, but she was seen
        w.condition("c", "E11.9", "2020-05-10"),  # known before, and never seen again
        features=[],
        label=label,
    )
    outcomes = {name: row.get("diabetes_diagnoses") for name, row in found.items()}
    assert outcomes == {"a": 1.0, "b": 0.0, "c": None, "d": None}


def test_the_index_day_is_the_one_the_study_names(tmp_path: Path):
    resources = [
        *ONE,
        w.encounter("a", "2022-01-01"),
        w.prescription("a", at="2021-03-01"),
        w.patient("b"),
    ]
    ages = {}
    drug = {"rxnorm": ["861007"]}
    for index in (
        {"event": "first-encounter"},
        {"event": "last-encounter"},
        {"event": "first-record", "table": "medication", "codes": drug},
        {"event": "date", "date": "2024-01-01"},
    ):
        found = rows(tmp_path, *resources, index=index, features=[])
        ages[index["event"]] = {name: row["age_years"] for name, row in found.items()}
    assert ages == {
        "first-encounter": {"a": 50.0},
        "last-encounter": {"a": 51.0},
        "first-record": {"a": 50.0},
        "date": {"a": 53.0, "b": 53.0},
    }


def test_what_says_that_it_did_not_happen_does_not_count(tmp_path: Path):
    refuted = {"verificationStatus": {"coding": [{"code": "refuted"}]}}
    found = rows(
        tmp_path,
        *ONE,
        w.encounter("a", "1999-01-01", status="cancelled"),
        w.observation("a", status="entered-in-error"),
        w.condition("a", **refuted),
        w.prescription("a", status="draft"),
        features=[w.glucose()],
    )
    assert found == {"a": {"age_years": 50.0, "sex": "female", "diabetes_diagnoses": 0.0}}


# --- nothing is guessed -----------------------------------------------------------------


BAD = [
    (w.observation("a", 5.5, "mmol/L"), "glucose: the unit cannot become mg/dL"),
    (w.observation("a", 5.5, CANARY), "glucose: the unit cannot become mg/dL"),
    (w.observation("a", valueQuantity={"value": 90}), "glucose: the value has no unit"),
    (w.observation("a", CANARY), "glucose: the value is not a number"),
    (w.observation("a", value=True), "glucose: the value is not a number"),
    (w.observation("a", 2000), "glucose: the value is out of range"),
    (w.observation("a", 1e300), "glucose: the value is out of range"),
    (w.observation("a", valueQuantity=None), "glucose: the observation has no quantity"),
    (
        w.observation("a", valueQuantity={"value": 5, "unit": "mg/dL", "comparator": "<"}),
        "glucose: the value is only a bound",
    ),
    (w.observation("a", at="2020"), "date: missing, or not a whole date"),
    (w.observation("a", at=CANARY), "date: missing, or not a whole date"),
    (w.observation("a", at="20200501"), "date: missing, or not a whole date"),
    (w.observation("a", at="2031-01-01"), "date: before 1900 or in the future"),
    (w.observation("a", at="1812-01-01"), "date: before 1900 or in the future"),
    (w.observation("a", at="1969-01-01"), "glucose: dated before the patient's birth"),
    (w.observation("z"), "glucose: its patient is not in the export, or set aside"),
    (w.observation("a", subject={"reference": CANARY}), "line: is not a FHIR R4 resource"),
    (w.observation("a", subject={"reference": "Group/a"}), "line: is not a FHIR R4 resource"),
    ({**w.observation("a"), "code": [CANARY]}, "line: is not a FHIR R4 resource"),
    (w.patient("q", "2031-01-01"), "birth date: not one, in the future or too long ago"),
    (w.patient("q", CANARY), "birth date: not one, in the future or too long ago"),
    (b'{"resourceType": "Observation", "valueQuantity": {"value": 1e', "line: is not JSON"),
    (b'{"resourceType": "Patient\0"}', "line: is not JSON"),
    (b"[" * 100_000, "line: is not JSON"),
    (b"\xff\xfe" + CANARY.encode(), "line: is not JSON"),
    (b"x" * (2**20 + 5), "line: longer than 1048576 bytes"),
    (b'["Patient"]', "line: is not a FHIR R4 resource"),
    (b'{"resourceType": 7}', "line: is not a FHIR R4 resource"),
    (b'{"resourceType": "Patient"}', "line: is not a FHIR R4 resource"),
]


@pytest.mark.parametrize(
    ("record", "reason"), BAD, ids=[f"{n} {reason}" for n, (_, reason) in enumerate(BAD)]
)
def test_a_bad_record_is_set_aside_for_its_reason_and_stops_nothing(
    tmp_path: Path, record: object, reason: str
):
    study = w.study_of(tmp_path, features=[w.glucose(low="10", high="1500")])
    others = (w.patient("later"), w.encounter("later"), w.observation("later", 101))
    found, extractor = extracted(w.export(tmp_path / "e", *ONE, record, *others), study)
    assert found["later"]["glucose"] == 101.0
    assert dict(extractor.aside.counts) == {reason: 1}
    ((place, _),) = extractor.aside.entries
    assert place == 3, "the line is named"
    assert CANARY not in str(extractor.aside.entries)
    assert "glucose" not in found.get("a", {})


def test_a_patient_who_stands_twice_with_different_content_has_no_row(tmp_path: Path):
    resources = (w.patient("a", "1980-01-01"), *ONE, w.patient("b"), w.encounter("b"))
    study = w.study_of(tmp_path, features=[])
    found, extractor = extracted(w.export(tmp_path / "e", *resources), study)
    assert list(found) == ["b"]
    assert dict(extractor.aside.counts) == {
        "patient: stands twice with different content": 1,
        "index: its patient is not in the export, or set aside": 1,
    }


def test_one_number_for_two_people_is_nobody_and_two_ids_of_one_are_one(tmp_path: Path):
    system = "urn:hospital"

    def known_as(number: str) -> dict:
        return {"identifier": [{"system": system, "value": number}]}

    resources = [
        w.patient("a", **known_as("7")),
        w.patient("b", **known_as("7")),
        w.encounter("a"),
        w.observation("b", 120),
        w.patient("c", **known_as("8")),
        w.patient("d", "1981-01-01", **known_as("8")),
        w.encounter("c"),
        w.patient("e"),
        w.encounter("e"),
    ]
    study = w.study_of(tmp_path, features=[w.glucose()])
    found, extractor = extracted(w.export(tmp_path / "e", *resources), study, system)
    assert list(found) == ["7"]
    assert found["7"]["glucose"] == 120.0, "all her records, whichever id they name"
    assert extractor.merged == 1
    assert dict(extractor.aside.counts) == {
        "patient: one patient number stands for two people": 1,
        "patient: has no usable patient number": 1,
        "index: its patient is not in the export, or set aside": 2,
    }


def test_the_same_record_twice_counts_once(tmp_path: Path):
    twice = [w.observation("a", 100, at="2020-01-01")] * 2
    once = [w.observation("a", 130, at="2020-02-01")]
    found = rows(tmp_path, *ONE, *ONE, *twice, *once, features=[w.glucose(pick="mean")])
    assert found["a"]["glucose"] == 115.0


@settings(max_examples=budget(15, 300))
@given(data=st.data())
def test_the_order_of_lines_and_files_never_changes_a_row(tmp_path_factory, data: st.DataObject):
    moments = st.sampled_from(["2020-05-09", "2020-05-10", "2020-05-10T08:00:00Z", "2020-05-12"])
    names = st.sampled_from("abz")
    values = st.sampled_from([0.1, 0.2, 0.3, 1e16, 70, 111])
    record = st.one_of(
        st.builds(w.observation, names, values, st.just("mg/dL"), moments),
        st.builds(w.condition, names, st.sampled_from(["E11.9", "I10"]), moments),
        st.builds(w.encounter, names, moments),
        st.builds(w.patient, names, st.sampled_from(["1970-03-02", "1971-01-01"])),
    )
    resources = data.draw(st.lists(record, max_size=14))
    resources.append(w.patient("a"))
    folder = tmp_path_factory.mktemp("order")
    study = picking(data.draw(st.sampled_from(["latest", "first", "mean", "lowest", "highest"])))
    before, one = extracted(w.export(folder / "one", *resources), study)
    order = data.draw(st.permutations(resources))
    cut = data.draw(st.integers(0, len(order)))
    w.export(folder / "two", *order[:cut], name="z.ndjson")
    after, two = extracted(w.export(folder / "two", *order[cut:], name="a.ndjson"), study)
    assert before == after
    assert one.aside.counts == two.aside.counts


@settings(max_examples=budget(40, 2000))
@given(
    line=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
        | st.sampled_from(["Patient/a", "E11.9", w.ICD10, w.LOINC, "1558-6", "2020-01-01"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["code", "coding", "system", "subject", "reference", "valueQuantity", "value",
                 "unit", "id", "period", "start", "effectiveDateTime", "component", "identifier",
                 "medicationReference", "verificationStatus", "status", "birthDate"]
            ),
            inner, max_size=5,
        ),
        max_leaves=12,
    ),
    kind=st.sampled_from(["Patient", "Observation", "Condition", "MedicationRequest", "Encounter"]),
)  # fmt: skip
def test_whatever_a_line_holds_it_is_read_or_set_aside(tmp_path_factory, line: object, kind: str):
    folder = tmp_path_factory.mktemp("any")
    resource = {**(line if isinstance(line, dict) else {"code": line}), "resourceType": kind}
    text = json.dumps(resource)  # noqa: TID251  (numbers of any size, NaN: whatever a sender writes)
    found, _ = extracted(w.export(folder / "e", *ONE, text), picking("latest"))
    assert "a" not in found or found["a"]["sex"] == "female"


# --- files ------------------------------------------------------------------------------


def test_packed_files_are_read_and_links_pipes_and_strangers_are_not(tmp_path: Path):
    folder = w.export(tmp_path / "export", *ONE, name="Patient.ndjson")
    packed = gzip.compress(orjson.dumps(w.observation("a", 77)) + b"\n")
    (folder / "Observation.1.ndjson.gz").write_bytes(packed)
    outside = tmp_path / "secret.ndjson"
    outside.write_bytes(orjson.dumps(w.patient("stranger")))
    (folder / "link.ndjson").symlink_to(outside)
    os.mkfifo(folder / "pipe.ndjson")
    (folder / "notes.txt").write_text("not read")
    (folder / "deeper").mkdir()
    found, extractor = extracted(folder, w.study_of(tmp_path, features=[w.glucose()]))
    assert found["a"]["glucose"] == 77.0
    assert list(found) == ["a"]
    assert dict(extractor.aside.counts) == {"file: is a link or no plain file; it was not read": 2}


def test_half_a_file_a_bomb_and_an_empty_folder_stop_the_import(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = w.study_of(tmp_path, features=[])
    folder = w.export(tmp_path / "export", *ONE)
    packed = gzip.compress(orjson.dumps(w.patient("b")) * 200)
    (folder / "more.ndjson.gz").write_bytes(packed[:-20])
    with pytest.raises(UnreadableFileError, match=r"more\.ndjson\.gz: is not whole gzip"):
        import_fhir(site, folder, study, now=w.NOW)
    monkeypatch.setattr(fhir_export, "_SMALL", 2**16)
    for filler in (b"\n", b" "):
        (folder / "more.ndjson.gz").write_bytes(gzip.compress(filler * 2**18))
        with pytest.raises(UnreadableFileError, match="expands more than 250-fold"):
            import_fhir(site, folder, study, now=w.NOW)
    (tmp_path / "none").mkdir()
    with pytest.raises(UnreadableFileError, match=r"no \.ndjson"):
        import_fhir(site, tmp_path / "none", study, now=w.NOW)
    with pytest.raises(UnreadableFileError, match="holds no Patient"):
        import_fhir(site, w.export(tmp_path / "nobody", w.encounter("a")), study, now=w.NOW)
    with pytest.raises(NotFoundError):
        import_fhir(site, tmp_path / "absent", study, now=w.NOW)
    assert site.data_version() == 0


def test_a_study_on_a_table_reads_no_records(site: Site, tmp_path: Path):
    heart = Study.model_validate(load_study(w.ROOT / "examples" / "heart.yaml"))
    assert heart.extract == ""
    with pytest.raises(NoSourcesError):
        import_fhir(site, w.export(tmp_path / "e", *ONE), heart, now=w.NOW)


# --- the store --------------------------------------------------------------------------


def test_each_study_reads_its_own_rows_and_the_same_question_shares_them(
    site: Site, tmp_path: Path
):
    folder = w.export(tmp_path / "export", *ONE, w.observation("a", 99))
    first = w.study_of(tmp_path, features=[w.glucose()])
    second = w.study_of(tmp_path, features=[w.glucose(pick="first")])
    renamed = first.model_copy(update={"title": "Another title", "version": 2})
    assert first.extract == renamed.extract != second.extract
    report = import_fhir(site, folder, first, now=w.NOW)
    assert (report["new"], report["changed"], report["data_version"]) == (1, 0, 1)
    again = import_fhir(site, folder, renamed, now=w.NOW)
    assert (again["new"], again["changed"], again["data_version"]) == (0, 0, 1)
    other = import_fhir(site, folder, second, now=w.NOW)
    assert (other["new"], other["data_version"]) == (1, 2)
    with site.database.reading() as connection:
        pid = site.pid_of("a")
        assert all_pids(connection) == []
        assert all_pids(connection, first.extract) == [pid]
        ((_, row),) = rows_of(connection, [pid], first.extract)
    assert row.keys() == {"age_years", "sex", "glucose", "diabetes_diagnoses"}


def test_a_hospitals_own_postgresql_holds_extracts_too(tmp_path: Path, postgres_url: str):
    with psycopg.connect(f"{postgres_url}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE extracts")
    made = Site.create(tmp_path / "own", "own", database_url=f"{postgres_url}/extracts")
    study = w.study_of(tmp_path, features=[w.glucose()])
    for value, expected in ((90, (1, 0, 1)), (90, (0, 0, 1)), (91, (0, 1, 2))):
        folder = w.export(tmp_path / "export", *ONE, w.observation("a", value), b"no json")
        report = import_fhir(made, folder, study, now=w.NOW)
        assert (report["new"], report["changed"], report["data_version"]) == expected
    said = coverage.quality(made, now=w.NOW)
    assert said["fields"]["diabetes-fhir: glucose"] == {"present": 1, "missing": 0}
    assert said["imports"][0]["set_aside"] == {"line: is not JSON": 1}
    assert said["quarantined"] == 1
    made.close()


def test_a_dry_run_reports_and_stores_nothing(site: Site, tmp_path: Path):
    folder = w.export(
        tmp_path / "export", *ONE, w.observation("a", 5.0, "mmol/L"), w.observation("a", CANARY)
    )
    study = w.study_of(tmp_path, features=[w.glucose(analyte="glucose")])
    report = import_fhir(site, folder, study, now=w.NOW, dry_run=True)
    assert report["fields"]["glucose"]["converted"] == {"mmol/L": 1}
    assert report["fields"]["glucose"]["missing_share"] == 0.0
    assert CANARY not in str(report)
    assert report["set_aside"] == {"glucose: the value is not a number": 1}
    assert report["quarantined"] == [
        {"file": "all.ndjson", "line": 4, "reason": "glucose: the value is not a number"}
    ]
    assert site.data_version() == 0
    with site.database.reading() as connection:
        assert all_pids(connection, study.extract) == []
        assert connection.execute(quarantine.select()).all() == []


def test_the_quarantine_keeps_places_and_reasons_and_a_mended_export_clears_it(
    site: Site, tmp_path: Path
):
    study = w.study_of(tmp_path, features=[w.glucose()])
    bad = [w.observation("a", CANARY, at=f"2020-01-{day:02d}") for day in range(1, 29)] * 10
    folder = w.export(tmp_path / "export", *ONE, *bad)
    report = import_fhir(site, folder, study, now=w.NOW)
    assert report["set_aside"] == {"glucose: the value is not a number": 280}
    with site.database.reading() as connection:
        kept = connection.execute(quarantine.select()).all()
    assert len(kept) == 100, "the count goes on, the list ends"
    assert {(row.file, row.reason) for row in kept} == {
        ("all.ndjson", "glucose: the value is not a number")
    }
    for path in site.folder.glob("node.sqlite*"):
        assert CANARY.encode() not in path.read_bytes()
    import_fhir(site, w.export(tmp_path / "export", *ONE), study, now=w.NOW)
    with site.database.reading() as connection:
        assert connection.execute(quarantine.select()).all() == []


# --- generated hospitals ----------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort() -> list[dict]:
    made = generate_cohort(count=20, seed=7, age_range=(25, 85))
    return [orjson.loads(to_json(bundle)) for bundle in made]


def resources_of(bundles: list[dict]) -> list[dict]:
    """The bundles' resources with references by type and id, as a bulk export has them."""
    found = []
    for bundle in bundles:
        kinds = {e["fullUrl"]: e["resource"]["resourceType"] for e in bundle["entry"]}
        for entry in bundle["entry"]:
            text = orjson.dumps(entry["resource"]).decode()
            for url, kind in kinds.items():
                text = text.replace(f'"{url}"', f'"{kind}/{url.removeprefix("urn:uuid:")}"')
            found.append({**orjson.loads(text), "id": entry["fullUrl"].removeprefix("urn:uuid:")})
    return found


EXAMPLE = Study.model_validate(load_study(w.EXAMPLE))


def codes_of(resources: list[dict], kind: str) -> set[tuple[str, str]]:
    return {
        (r["subject"]["reference"].partition("/")[2], coding["code"])
        for r in resources
        if r["resourceType"] == kind
        for coding in r["code"]["coding"]
    }


def test_the_example_study_finds_in_a_generated_export_what_is_in_it(
    cohort: list[dict], tmp_path: Path
):
    resources = resources_of(cohort)
    found, extractor = extracted(w.export(tmp_path / "e", *resources), EXAMPLE)
    assert len(found) == 20
    assert dict(extractor.aside.counts) == {}
    conditions = codes_of(resources, "Condition")
    for person, row in found.items():
        own = {code for who, code in conditions if who == person}
        assert row["diabetes_diagnoses"] == sum(code.startswith("E11") for code in own)
        assert row["hypertension"] == any(code.startswith("I10") for code in own)
        bmi = next(
            r["valueQuantity"]["value"]
            for r in resources
            if r["resourceType"] == "Observation"
            and r["subject"]["reference"].endswith(person)
            and r["code"]["coding"][0]["code"] == "39156-5"
        )
        assert row["bmi"] == bmi
    assert 0 < sum(row["diabetes_diagnoses"] > 0 for row in found.values()) < 20


def test_the_generators_own_ndjson_is_read(tmp_path: Path):
    folder = tmp_path / "e"
    folder.mkdir()
    for kind, text in to_ndjson(generate_cohort(count=2, seed=1)).items():
        (folder / f"{kind}.ndjson").write_text(text)
    assert len(extracted(folder, EXAMPLE)[0]) == 2


@pytest.mark.parametrize(
    "kind", ["duplicate_entry", "out_of_order_timestamp", "unparseable_value",
             "unknown_code_system", "missing_field"]
)  # fmt: skip
def test_every_kind_of_defect_is_set_aside_or_harmless(
    cohort: list[dict], tmp_path: Path, kind: str
):
    clean, _ = extracted(w.export(tmp_path / "clean", *resources_of(cohort)), EXAMPLE)
    made = [inject_defects(bundle, Imperfection(**{kind: 1.0}), seed=3) for bundle in cohort]
    dirty = resources_of([bundle for bundle, _ in made])
    assert all(defects for _, defects in made)
    found, extractor = extracted(w.export(tmp_path / "dirty", *dirty), EXAMPLE)
    labs = {"bmi", "hdl_mgdl", "triglycerides_mgdl"}  # blood pressure stands in components

    def without(rows: dict[str, dict], fields: set[str]) -> dict[str, dict]:
        return {n: {f: v for f, v in row.items() if f not in fields} for n, row in rows.items()}

    match kind:
        case "duplicate_entry":  # under fresh ids: each patient's own records count once
            assert {name: found[name] for name in clean} == clean
            assert len(found) == len(clean), "a second id without an encounter is no patient"
        case "out_of_order_timestamp":  # a year after the first encounter: outside the window
            assert found == without(clean, {*labs, "systolic_mmhg"})
        case "unparseable_value":
            assert found == without(clean, labs)
            assert set(extractor.aside.counts) == {
                f"{name}: the observation has no quantity" for name in labs
            }
        case "unknown_code_system":
            assert all(not labs & row.keys() for row in found.values())
        case "missing_field":
            assert {name: found[name] for name in clean} == clean
