"""The deployed system beside the simulation: real processes, real Flower, real consents.

Four hospitals join, the 486 patients of FLamby's training part enrol and sign, and the benchmark
study trains over Flower in mode A and in mode B. What is measured: that the models are as good as
the simulated ones, what a round costs beside its computation, and what a node's processes hold.
"""

import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rows import Rows  # first: it takes this folder off the path

from coop.demo import learning, patients
from coop.demo.house import House, open_house
from coop.demo.measure import cpu_seconds, memory_bytes, proportional
from coop.demo.narrator import Narrator
from coop.demo.people import Person
from coop.demo.stage import prepare
from coop.documents.study import Study
from coop.features import columns
from coop.keys import SigningKey
from coop.studyfile import load_study
from federated.data import SITES, csv_of, split
from federated.models import from_safetensors
from federated.run_figures import summary
from federated.simulate import Mode, SplitRule, load, scored_on, simulate

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "examples" / "heart-disease" / "study.yaml"
RUNS = 30
HONEST = 3
_MIB = 2**20


def main() -> None:
    """Measure everything and write .coop/bench/deployed.json."""
    rows = Rows("deployed")
    fields = load_study(STUDY)
    fields["evaluation"]["fold_percent"] = 0  # everybody who enrols here is of the training part
    fields["budget"]["delta_pico"] = 1_000_000  # no hospital approves more; simulated so, too
    with tempfile.TemporaryDirectory() as folder:
        stage = prepare(Path(folder) / "house")
        try:
            house = open_house(stage, Narrator(quiet_stdout=True))
            (house.folder / "keys").mkdir(mode=0o700)
            learning.researcher(house)
            enrol(house)
            deployed(rows, house, {**fields, "version": 1}, Mode.A)
            masked = {**fields["recipe"], "mode": "B", "honest": HONEST}
            deployed(rows, house, {**fields, "version": 2, "recipe": masked}, Mode.B)
            memory(rows, house)
        finally:
            stage.close()
    rows.finish()


def enrol(house: House) -> None:
    """Everybody of the training part gets a key and allows all research."""
    everyone: list[tuple[Person, str]] = []
    for name, hospital in house.hospitals.items():
        records = split()[name]["train"]
        asked = {"records": records, "method": "demo"}
        codes = hospital.node.post("/local/v1/enrolments", asked)["codes"]
        for record in records:
            person = Person(
                site=name, record_key=record, key=SigningKey.generate(), preset="all-research"
            )
            everyone.append((person, codes[record]))
    pids = patients.redeem(house, everyone)
    patients.grant(house, [person for person, _ in everyone], pids)


def deployed(rows: Rows, house: House, fields: dict[str, Any], mode: Mode) -> None:
    """One training over Flower, held against the simulated ones."""
    said = "mode A" if mode is Mode.A else f"mode B h={HONEST}"
    study = Study.model_validate(fields)
    learning.propose(house, fields)
    learning.approve_everywhere(house, fields)
    cpu = cpu_seconds()
    run = followed(house, fields)
    spent = cpu_seconds() - cpu
    model = learning.released(house, run["order_sha256"])
    with house.public() as client:
        body = client.get_bytes(f"/v1/models/{model['model_id']}/artefacts/model.safetensors")
    weights = from_safetensors(body, len(columns(study.schema_)))
    data = load(study, {name: csv_of(name) for name in SITES}, SplitRule.FLAMBY)[0]
    real = scored_on(study, dict.fromkeys(data, weights), data)
    honest = HONEST if mode is Mode.B else None
    figures = summary(simulate(study, data, mode=mode, runs=RUNS, honest=honest))
    mean, sd = figures["auc_pooled"]["mean"] or 0, figures["auc_pooled"]["sd"] or 0
    rounds, answers = study.recipe.rounds, run["answers"]
    note = f"real processes, 4 hospitals, 486 patients, {said}, {rounds} rounds, ε=1, δ=1e-6"
    rows.add(
        f"pooled AUC over Flower, {said}", real.pooled.auc or 0, "AUC",
        input=f"{note}; simulated: {mean:.4f}, sd {sd:.4f} of {RUNS} runs",
    )  # fmt: skip
    off = abs((real.pooled.auc or 0) - mean) / sd
    rows.add(
        f"distance from the simulated mean, {said}", off, "sd", input=note, target=3,
        better="lower", checked=answers == rounds * len(SITES),
    )  # fmt: skip
    rows.add(
        f"median round, {said}", statistics.median(run["between"]), "s", input=note, target=1.5,
        better="lower",
    )  # fmt: skip
    rows.add(
        f"CPU for each answer, {said}", spent / answers, "s",
        input=f"{note}; all processes together: hub, relay, four nodes", target=0.5,
        better="lower",
    )  # fmt: skip


def followed(house: House, fields: dict[str, Any]) -> dict[str, Any]:
    """A training from order to end: when its rounds were done, and how many answers it took."""
    body = {"study_id": fields["study_id"], "version": fields["version"]}
    order = house.researcher_client.post("/v1/rounds", body)["run"]["order_sha256"]
    at: list[float] = []
    while True:
        now = house.researcher_client.get(f"/v1/rounds/{order}")
        while len(at) < int(now["round"]):
            at.append(time.monotonic())
        if now["state"] in {"finished", "failed", "cancelled"}:
            break
        house.stage.check()
        time.sleep(0.25)  # each question costs the hub something, too
    if now["state"] != "finished":
        sys.exit(f"training {now['state']}: {now.get('error')}")
    trained = [r["credentialSubject"] for r in now["records"]]
    return {
        "order_sha256": order,
        "between": [later - earlier for earlier, later in pairwise(at)],
        "answers": sum(len(r["accepted"]) for r in trained if r["phase"] == "train"),
    }


def memory(rows: Rows, house: House) -> None:
    """Proportional memory of each hospital's processes after two trainings."""
    roots = [one.child.process.pid for one in house.hospitals.values() if one.child is not None]
    whole, nodes = map(memory_bytes, roots), map(proportional, roots)
    note = "proportional set size, the largest of four, after two trainings"
    rows.add(
        "memory of a node", max(nodes) / _MIB, "MiB", input=f"{note}; its own process",
        target=400, better="lower", checked=len(roots) == len(SITES),
    )  # fmt: skip
    rows.add(
        "memory of a node with Flower's SuperNode", max(whole) / _MIB, "MiB",
        input=f"{note}; two processes", better="lower",
    )  # fmt: skip


if __name__ == "__main__":
    main()
