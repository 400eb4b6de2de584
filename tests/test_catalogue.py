"""A released model is its files, its passport and its log entry; any byte changed is found."""

import json
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from budget import budget
from doors_world import served
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coop import catalogue, problems, remediation
from coop.artefacts import ArtefactError, check_parity, onnx_file, weights_file
from coop.canonical import document_digest, jcs, parse_object, sha256
from coop.catalogue import Catalogue, Cost
from coop.cli.model import PASSPORT_FILE, verified
from coop.cli.model import app as cli
from coop.client import Client
from coop.db import Database
from coop.documents.envelope import Opened, issue, open_document
from coop.documents.study import (
    Budget,
    CategoryFeature,
    CohortGrammar,
    Evaluation,
    FeatureSchema,
    Label,
    NumberFeature,
    Recipe,
    Study,
)
from coop.documents.training import ApprovalRef, GroupMetric, Order, Passport, RoundRecord
from coop.doors import Doors
from coop.errors import ConflictError, CoopError, InvalidInputError, NotFoundError
from coop.families import LOGISTIC_REGRESSION
from coop.features import columns, encode
from coop.hub.catalogue_api import routes
from coop.journal.store import Journal
from coop.journal.trust import Trust
from coop.keys import SigningKey

NOW = 1_800_000_000
DIGEST = "0" * 64
SCHEMA = FeatureSchema(
    features=[
        NumberFeature(
            kind="number",
            name="age_years",
            center_micro=50_000_000,
            scale_micro=10_000_000,
            clip_micro=3_000_000,
            gain_micro=1_000_000,
        ),
        CategoryFeature(kind="category", name="sex", values=["female", "male"]),
    ],
    site_intercepts=["cleveland"],
)
WIDTH = len(columns(SCHEMA))
COST = Cost(
    epsilon_micro=1_000_000,
    training_epsilon_micro=800_000,
    cohort_epsilon_micro=200_000,
    together_epsilon_micro=1_030_000,
)
WEIGHTS = {"weight": np.linspace(-2, 2, WIDTH, dtype=np.float32)}


def a_study() -> Study:
    return Study(
        study_id="heart",
        version=2,
        title="Heart disease risk",
        lay_summary="Which heart patients are at risk, from five plain measurements.",
        proposer="Institute",
        commercial=False,
        purpose="DUO:0000007",
        data_class="cardiology",
        uses=["train-federated"],
        ethics_reference="EC 1",
        ethics_sha256=DIGEST,
        schema_=SCHEMA,
        label=Label(field="severity", above=0),
        recipe=Recipe(
            family="logistic-regression",
            rounds=3,
            learning_rate_micro=1,
            clip_micro=1_000_000,
            average_last=1,
            population=100,
        ),
        budget=Budget(
            epsilon_micro=1_000_000,
            delta_pico=1_000_000,
            training_percent=80,
            evaluation_percent=15,
            reserve_percent=5,
            cohort_rho_nano=0,
        ),
        evaluation=Evaluation(fold_percent=20, bins=10, group_field="sex", groups=["female"]),
        cohort=CohortGrammar(number_fields=[], category_fields=[]),
        fee_point_nano=10_000_000,
        fee_cohort_nano=0,
        hospitals_quorum=1,
        expires=NOW + 1000,
    )


@dataclass
class Released:
    """A hub that has released one model."""

    database: Database
    journal: Journal
    models: Catalogue
    order: Opened[Order]
    trust: Trust
    model_id: str = ""

    def release(self, **changes: Any) -> str:
        facts: dict[str, Any] = {
            "order": self.order,
            "study": a_study(),
            "record_sha256s": ["1" * 64, "2" * 64],
            "weights": WEIGHTS,
            "metrics": [GroupMetric(group="all", auc_micro=870_000, count_noised=90)],
            "hospital_weights": {"cleveland": 3, "zurich": 1},
            "cost": COST,
        }
        with self.database.unit_of_work() as connection:
            self.model_id = self.models.release(connection, **(facts | changes))
        return self.model_id

    def files(self) -> dict[str, bytes]:
        names = ("model.safetensors", "model.onnx", "io.json")
        with self.database.reading() as connection:
            return {name: catalogue.artefact(connection, self.model_id, name) for name in names}

    def bundle(self) -> dict[str, Any]:
        with self.database.reading() as connection:
            digest = catalogue.model(connection, self.model_id).passport_digest
            return self.journal.receipt(connection, digest, sites={})


@pytest.fixture
def released(sqlite_database: Database) -> Released:
    return release_in(sqlite_database)


def release_in(database: Database) -> Released:
    hub, log = SigningKey.generate(), SigningKey.generate()
    order = Order(
        study_sha256="3" * 64,
        study_id="heart",
        version=2,
        roster=[ApprovalRef(site="cleveland", did=hub.did, approval_sha256=DIGEST)],
        quorum=1,
        rounds=2,
        sampling_micro=1_000_000,
        training_sigma_micro=12_345_678,
        evaluation_sigma_micro=5_000_000,
        clip_micro=1_500_000,
        delta_pico=1_000_000,
        mode="A",
        honest=1,
        fab_sha256=DIGEST,
        software="test",
        not_before=NOW,
        not_after=NOW + 1,
    )
    journal = Journal(database, log, "hub.test/log", lambda: NOW)
    world = Released(
        database=database,
        journal=journal,
        models=Catalogue(journal, hub, lambda: NOW),
        order=open_document(Order, issue(order, hub, NOW), issuers={hub.did}),
        trust=Trust(hub=hub.did, log=log.did, origin="hub.test/log", sites={}, k=0),
    )
    world.release()
    return world


def test_a_released_model_verifies_offline(database: Database):
    released = release_in(database)
    assert released.model_id == f"heart-v2-{released.order.digest[:8]}"
    report = verified(released.bundle(), released.files(), released.trust)
    assert "NOT CHECKED" not in " ".join(report.steps)


def test_the_passport_says_what_the_model_is_and_cost(released: Released):
    document = released.bundle()["document"]
    passport = open_document(Passport, document, issuers={released.trust.hub}).subject
    assert passport.mechanism == [
        "train q=1 sigma=12.345678 rounds=2 clip=1.500000",
        "evaluate q=1 sigma=5.000000 rounds=1",
    ]
    assert passport.record_sha256 == "2" * 64
    assert passport.training_root == sha256(bytes.fromhex("1" * 64 + "2" * 64)).hex()
    assert passport.hospital_weights == {"cleveland": 3, "zurich": 1}
    cost = (passport.epsilon_micro, passport.cohort_epsilon_micro, passport.together_epsilon_micro)
    assert cost == (1_000_000, 200_000, 1_030_000)
    assert {artefact.name: artefact.sha256 for artefact in passport.artefacts} == {
        name: sha256(body).hex() for name, body in released.files().items()
    }


def test_the_graph_answers_what_the_weights_say_about_encoded_rows(released: Released):
    rows = [{"age_years": 61.5, "sex": "female"}, {"age_years": None, "sex": "male"}]
    matrix, _ = encode(rows, SCHEMA, "cleveland")
    session = onnxruntime.InferenceSession(released.files()["model.onnx"])
    found = session.run(["y"], {"x": matrix})[0][:, 0]
    expected = 1 / (1 + np.exp(-(matrix @ WEIGHTS["weight"])))
    assert np.allclose(found, expected, atol=1e-6)
    assert matrix.shape[1] == session.get_inputs()[0].shape[1]


def test_io_json_names_the_tensors_to_send(released: Released):
    said = parse_object(released.files()["io.json"])
    assert said["tensors"] == [
        {"name": "age_years", "datatype": "FP64", "shape": [-1]},
        {"name": "sex", "datatype": "BYTES", "shape": [-1]},
    ]
    assert said["columns"] == columns(SCHEMA)
    assert said["model_id"] == released.model_id
    FeatureSchema.model_validate(said["features"])


def test_releasing_twice_changes_nothing(database: Database):
    released = release_in(database)
    before = released.bundle()["document"]
    with released.database.reading() as connection:
        size = released.journal.size(connection)
    released.release()
    assert released.bundle()["document"] == before
    with released.database.reading() as connection:
        assert released.journal.size(connection) == size


def test_a_release_is_all_or_nothing(database: Database):
    released = release_in(database)
    other = replace(released.order, digest="f" * 64)
    with pytest.raises(ZeroDivisionError), released.database.unit_of_work() as connection:  # noqa: PT012
        released.models.release(
            connection,
            order=other,
            study=a_study(),
            record_sha256s=["1" * 64],
            weights=WEIGHTS,
            metrics=[],
            hospital_weights={},
            cost=COST,
        )
        assert catalogue.exists(connection, "heart-v2-ffffffff")
        _ = 1 // 0
    with released.database.reading() as connection:
        assert not catalogue.exists(connection, "heart-v2-ffffffff")
        with pytest.raises(NotFoundError):
            catalogue.artefact(connection, "heart-v2-ffffffff", "model.onnx")


@pytest.mark.parametrize(
    "weights",
    [
        {"weight": np.zeros(WIDTH + 1, dtype=np.float32)},
        {"weight": np.zeros(WIDTH, dtype=np.float64)},
        {"weight": np.full(WIDTH, np.nan, dtype=np.float32)},
        {"weight": np.zeros((WIDTH, 1), dtype=np.float32)},
        {"other": np.zeros(WIDTH, dtype=np.float32)},
        {},
    ],
)
def test_weights_of_another_shape_are_not_released(sqlite_database: Database, weights: Any):
    hub = SigningKey.generate()
    journal = Journal(sqlite_database, SigningKey.generate(), "hub.test/log", lambda: NOW)
    with pytest.raises(InvalidInputError):
        catalogue._files("heart-v2-00000000", a_study(), weights)
    with sqlite_database.reading() as connection:
        assert journal.size(connection) == 0
    assert Catalogue(journal, hub, lambda: NOW).journal is journal


def test_a_retired_model_stays_verifiable_and_is_marked(released: Released):
    with released.database.unit_of_work() as connection:
        remediation.retire(connection, released.models, released.model_id)
        assert catalogue.model(connection, released.model_id).state == "retired"
    with pytest.raises(ConflictError), released.database.unit_of_work() as connection:
        remediation.retire(connection, released.models, released.model_id)
    verified(released.bundle(), released.files(), released.trust)


def test_any_byte_of_any_file_changed_is_found(released: Released):
    bundle, files = released.bundle(), released.files()
    for name, body in files.items():
        for at in range(0, len(body), budget(7, 1)):
            changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            with pytest.raises(CoopError):
                verified(bundle, files | {name: changed}, released.trust)
        for wrong in (body[:-1], body + b"\n", b""):
            with pytest.raises(CoopError):
                verified(bundle, files | {name: wrong}, released.trust)
        with pytest.raises(CoopError):
            verified(bundle, {n: b for n, b in files.items() if n != name}, released.trust)


def test_any_byte_of_the_passport_changed_is_found(released: Released):
    text, files = jcs(released.bundle()), released.files()
    for at in range(0, len(text), budget(23, 1)):
        changed = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        with pytest.raises((CoopError, UnicodeDecodeError)):
            verified(parse_object(changed), files, released.trust)


def test_another_hubs_passport_is_not_believed(released: Released):
    strangers = Trust(
        hub=SigningKey.generate().did,
        log=released.trust.log,
        origin="hub.test/log",
        sites={},
        k=0,
    )
    with pytest.raises(CoopError):
        verified(released.bundle(), released.files(), strangers)


def test_a_graph_of_other_weights_is_not_the_model():
    model = (LOGISTIC_REGRESSION, WIDTH)
    tensors = weights_file(*model, WEIGHTS)
    check_parity(*model, tensors, onnx_file(*model, WEIGHTS))
    other = WEIGHTS["weight"].copy()
    other[-1] += 1e-3
    with pytest.raises(ArtefactError):
        check_parity(*model, tensors, onnx_file(*model, {"weight": other}))
    with pytest.raises(ArtefactError):
        check_parity(*model, tensors, b"no graph")
    with pytest.raises(ArtefactError):
        check_parity(*model, b"no weights", onnx_file(*model, {"weight": other}))


@settings(max_examples=budget(20, 200))
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40))
def test_equal_weights_give_equal_bytes_and_every_graph_computes_its_weights(values: list[float]):
    vector = np.array(values, dtype=np.float32)
    model = (LOGISTIC_REGRESSION, len(vector))
    graph = onnx_file(*model, {"weight": vector})
    assert graph == onnx_file(*model, {"weight": vector.copy()})
    check_parity(*model, weights_file(*model, {"weight": vector}), graph)
    assert onnx.load_from_string(graph).opset_import[0].version == 17


def test_the_command_line_verifies_an_exported_folder_and_refuses_a_changed_one(
    released: Released, tmp_path: Path
):
    folder, trust = tmp_path / "model", tmp_path / "trust.json"
    folder.mkdir()
    released.trust.save(trust)
    for name, body in released.files().items():
        (folder / name).write_bytes(body)
    (folder / PASSPORT_FILE).write_bytes(jcs(released.bundle()))
    command = ["verify", str(folder), "--trust", str(trust), "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0
    assert parse_object(done.stdout)["ok"] is True
    (folder / PASSPORT_FILE).write_bytes(jcs(released.bundle()) + b"\n")
    with pytest.raises(InvalidInputError):
        CliRunner().invoke(cli, command, catch_exceptions=False)
    (folder / PASSPORT_FILE).unlink()
    with pytest.raises(NotFoundError):
        CliRunner().invoke(cli, command, catch_exceptions=False)


def _with_records(released: Released) -> str:
    """A second model of a run whose round records are in the log."""
    hub = released.models._key
    order = replace(released.order, digest="e" * 64)
    records, previous = [], None
    for number in (1, 2):
        record = RoundRecord(
            order_sha256=order.digest,
            phase="train",
            round=number,
            request_sha256=DIGEST,
            accepted=[],
            refused=[],
            aggregate_sha256=DIGEST,
            previous_sha256=previous,
        )
        records.append(issue(record, hub, NOW))
        previous = document_digest(records[-1])
    with released.database.unit_of_work() as connection:
        logged = released.journal.record_many(connection, RoundRecord.kind, records)
    return released.release(order=order, record_sha256s=[record.digest for record in logged])


def test_the_hub_serves_cards_files_and_bundles_and_an_export_verifies(
    released: Released, tmp_path: Path
):
    model_id = _with_records(released)
    app = FastAPI()
    problems.install(app)
    app.include_router(routes(Doors(released.database, now=lambda: NOW), released.models))
    trust, folder = tmp_path / "trust.json", tmp_path / "exported"
    released.trust.save(trust)
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, served(app, listening):
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        environment = {"COOP_HUB_URL": url, "COOP_TRUST_FILE": str(trust)}

        def run(*arguments: str) -> dict[str, Any]:
            done = CliRunner().invoke(
                cli, [*arguments, "--json"], env=environment, catch_exceptions=False
            )
            assert done.exit_code == 0, done.output
            found: dict[str, Any] = json.loads(done.stdout)
            return found

        listed = run("list")["models"]
        assert [model["state"] for model in listed] == ["released", "released"]
        card = run("card", model_id)
        assert card["features"] == SCHEMA.model_dump(mode="json")
        assert card["passport"]["document"]["credentialSubject"]["model_id"] == model_id
        assert "record_sha256s" not in card
        assert "Not a medical device" in CliRunner().invoke(
            cli, ["card", model_id], env=environment
        ).output  # fmt: skip
        assert any("unbroken chain" in step for step in run("verify", model_id)["steps"])
        assert run("export", model_id, "--out", str(folder))["model_id"] == model_id
        _, front, text = (folder / "README.md").read_text().split("---\n", 2)
        metadata = yaml.safe_load(front)
        assert metadata["pipeline_tag"] == "tabular-classification"
        (index,) = metadata["model-index"]
        assert index["name"] == model_id
        shown = {m["name"]: m["value"] for m in index["results"][0]["metrics"]}
        said = card["passport"]["document"]["credentialSubject"]
        for metric in said["metrics"]:
            if metric.get("auc_micro") is not None:
                assert shown[f"roc_auc ({metric['group']}), noised"] == metric["auc_micro"] / 1e6
        assert shown
        epsilon, delta = said["training_epsilon_micro"] / 1e6, said["delta_pico"] / 1e12
        assert f"| training | {epsilon:.3f} | {delta:.0e} |" in text
        for field in card["features"]["features"]:
            assert f"| {field['name']} | {field['kind']} |" in text
        assert said["record_sha256"] in text
        with Client(url) as client:
            for path in ("heart-v2-00000000", f"{model_id}/artefacts/trust.json", "..%2Fx/bundle"):
                with pytest.raises(CoopError):
                    client.get(f"/v1/models/{path}")
            with pytest.raises(CoopError) as refused:
                client.post(f"/v1/models/{model_id}:retire")
            assert refused.value.code == "doors.unauthenticated"
    # The hub is gone; the folder still verifies.
    assert run("verify", str(folder))["ok"] is True
    with pytest.raises(ConflictError):
        run("export", model_id, "--out", str(folder))
