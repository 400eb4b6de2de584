"""What a hospital sees of its data; an approval is held against the data it was given for."""

from pathlib import Path

import numpy as np
import orjson
import pytest
import records_world as w
from coop_world import HEADER, csv_line, now, world
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from coop.canonical import document_digest
from coop.cli import app, imports
from coop.documents.study import Study
from coop.features import columns
from coop.studyfile import load_study
from federated import coverage, doctor, quality
from federated.approval import revoke
from federated.budget import cohort_of
from federated.local_api import application
from federated.node import Node, staff_token
from federated.record_import import import_fhir
from federated.records import all_pids
from federated.round import answer_round
from federated.site import Site

HEART = Study.model_validate(load_study(w.ROOT / "examples" / "heart.yaml"))


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


def export_of(folder: Path, names: list[str]) -> Path:
    """A record of each patient; every second has diabetes."""
    resources: list[dict] = []
    for number, name in enumerate(names):
        resources += [
            w.patient(name, f"{1940 + number}-02-03", gender="male" if number % 3 else "female"),
            w.encounter(name),
            w.observation(name, 20 + number % 15, "kg/m2", code="39156-5"),
            w.observation(name, 110 + number, "mm[Hg]", code="8480-6"),
            w.observation(name, 1 + number / 100, "mmol/L", code="2085-9"),
        ]
        resources += [w.condition(name)] if number % 2 else []
    return w.export(folder, *resources)


def test_a_study_on_records_trains_on_the_rows_extracted_for_it_and_on_no_others(coop, tmp_path):
    asked = load_study(w.EXAMPLE)
    parts = ("features", "label", "index", "cohort")
    run = coop.ready("records", **{name: asked[name] for name in parts})
    names = [f"P{number:03d}" for number in range(0, 60, 2)]
    report = import_fhir(coop.site, export_of(tmp_path / "e", names), run.study, now=now())
    assert report["patients"] == 30
    assert report["fields"]["hdl_mgdl"]["converted"] == {"mmol/L": 30}
    given = answer_round(coop.site, coop.mirror, run.input())
    assert given.update["weight"].shape == (len(columns(run.study.schema_)),)
    assert given.update["weight"].dtype == np.float32
    with coop.site.database.reading() as connection:
        sequence = given.receipt["credentialSubject"]["debit_sequence"]
        members = set(cohort_of(connection, sequence))
    assert 0 < len(members) <= 30
    assert members <= {coop.site.pid_of(name) for name in names}
    effects = coverage.of_study(coop.site, coop.mirror, run.study, now=now())
    assert sum(effects.values()) == 30


def test_other_data_than_approved_is_told_until_the_hospital_approves_again(coop, tmp_path):
    run = coop.ready("drifting")
    site = coop.site

    def found() -> list[dict]:
        with site.database.reading() as connection:
            moved = coverage.approved_drift(connection, now=now())
        return [entry for entry in moved if entry["study_id"] == "drifting"]

    assert found() == []
    older = tmp_path / "older.csv"
    lines = [csv_line(number).split(",") for number in range(60)]
    for cells in lines:
        cells[1] = str(int(cells[1]) + 8)  # a mean 8 years higher: .89 of the public scale
        cells[5] = "" if int(cells[5]) % 2 else cells[5]
        cells[8] = str(int(cells[8]) + 2)  # too little to matter
    older.write_text(HEADER + "".join(",".join(cells) for cells in lines))
    command = ["hospital", "import", "csv", str(older), "--state", str(site.folder)]
    warned = CliRunner().invoke(app, command)
    assert "WARNING: drifting v1 was approved for other data: age_years" in warned.output
    ((entry),) = found()
    moved = {(each["field"], each["what"]) for each in entry["moved"]}
    assert ("age_years", "mean") in moved
    assert ("cholesterol_mgdl", "missing") in moved
    assert not any(field == "max_heart_rate" for field, _ in moved)
    check = doctor.checks(site)["checks"]["approved data"]
    assert not check["ok"]
    assert "drifting" in check["found"]
    assert "approve again" in check["fix"]
    told = coverage.quality(site, now=now())
    assert [one["study_id"] for one in told["drift"]].count("drifting") == 1
    node = Node(site)
    headers = {"Authorization": f"Bearer {staff_token(site.folder)}"}
    status = TestClient(application(node)).get("/local/v1/status", headers=headers).json()
    assert status["data_other_than_approved"] == told["drift"]
    revoke(site, document_digest(run.document), now=now())
    assert found() == []
    coop.approve(run.study)
    assert found() == []


def test_shifts_within_the_bounds_are_no_drift_and_few_patients_say_nothing():
    def of(rows: list[dict]) -> dict:
        tally = quality.Tally()
        for row in rows:
            tally.take(row)
        return tally.profile()

    rows = [
        {"age_years": 50.0 + n % 10, "sex": "male" if n % 2 else "female",
         "fasting_sugar_high": n % 4 == 0, "severity": float(n % 2)}
        for n in range(100)
    ]  # fmt: skip
    then = of(rows)
    same = [{**row, "age_years": row["age_years"] + 2.2} for row in rows]
    assert quality.drift(HEART, then, of(same)) == []
    older = of([{**row, "age_years": row["age_years"] + 2.3} for row in rows])
    assert [(one["field"], one["what"]) for one in quality.drift(HEART, then, older)] == [
        ("age_years", "mean")
    ]
    men = of([{**row, "sex": "male"} for row in rows])
    assert {(one["field"], one["what"]) for one in quality.drift(HEART, then, men)} == {
        ("sex", "share of female"), ("sex", "share of male"),
    }  # fmt: skip
    ill = of([{**row, "severity": 1.0} for row in rows])
    assert [one["field"] for one in quality.drift(HEART, then, ill)] == ["severity"]
    gone = of([{name: v for name, v in row.items() if name != "sex"} for row in rows])
    assert [(one["field"], one["what"]) for one in quality.drift(HEART, then, gone)] == [
        ("sex", "missing")
    ]
    assert quality.drift(HEART, of(rows[:19]), older) == []


def test_the_commands_preview_store_and_say_what_is_there(tmp_path: Path):
    Site.create(tmp_path / "node", "northern").close()
    state = ["--state", str(tmp_path / "node")]
    folder = export_of(tmp_path / "e", [f"N{number}" for number in range(40)])
    command = ["hospital", "import", "fhir", str(folder), "--study", str(w.EXAMPLE), *state]
    preview = CliRunner().invoke(app, [*command, "--dry-run"])
    assert preview.exit_code == 0, preview.output
    assert "40 patients for diabetes-fhir: nothing stored" in preview.output
    assert "40 from mmol/L" in preview.output
    stored = CliRunner().invoke(app, [*command, "--json"])
    assert stored.exit_code == 0, stored.output
    told = CliRunner().invoke(app, ["hospital", "quality", *state])
    assert told.exit_code == 0, told.output
    assert "diabetes-fhir: bmi" in told.output
    site = Site.open(tmp_path / "node")
    with site.database.reading() as connection:
        assert len(all_pids(connection, Study.model_validate(load_study(w.EXAMPLE)).extract)) == 40
    site.close()
    table = tmp_path / "t.csv"
    table.write_text(HEADER + csv_line(1) + csv_line(1).replace("P001", "P002"))
    looked = CliRunner().invoke(app, ["hospital", "import", "csv", str(table), "--dry-run", *state])
    assert "2 patients read, nothing stored" in looked.output
    assert "1 of them exactly like another" in looked.output


def test_a_study_on_records_is_simulated_on_exports_and_databases(tmp_path: Path):
    exports = [
        f"{site}={export_of(tmp_path / site, [f'{site}{n}' for n in range(60)])}"
        for site in ("one", "two")
    ]
    command = ["simulate", str(w.EXAMPLE), "--runs", "1", "--json"]
    done = CliRunner().invoke(app, [*command, *(w for each in exports for w in ("--site", each))])
    assert done.exit_code == 0, done.output
    said = orjson.loads(done.output)
    assert {site: part["train"] + part["test"] for site, part in said["patients"].items()} == {
        "one": 60,
        "two": 60,
    }


def test_the_study_may_be_named_by_its_id_at_the_hub(coop):
    values = load_study(w.EXAMPLE)
    parts = ("features", "label", "index", "cohort")
    study, _ = coop.study("named", **{name: values[name] for name in parts})
    assert imports._study(coop.site, "named") == study
