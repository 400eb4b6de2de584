"""`coop demo`, run once as its user would, and then held against what it left on disk."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dp_accounting as dpa
import numpy as np
import pytest
import sqlalchemy as sa
from budget import budget
from dp_accounting import pld

from coop import catalogue
from coop.accounts import transfer as ledger_transfer
from coop.canonical import document_digest
from coop.db import Database
from coop.demo.people import choice
from coop.demo.stage import MARKER
from coop.documents.study import MICRO, Study
from coop.features import columns, training_matrix
from coop.journal.store import signed_document
from coop.journal.trust import Trust
from coop.keys import SigningKey, sign_document
from coop.verify import VerificationError, verify_receipt
from federated.accounting import plan
from federated.budget import debit, debit_pid
from federated.models import from_safetensors, initial, predict
from federated.private_training import private_gradient
from federated.records import rows_of
from federated.scores import auc
from federated.site import Site, patient
from federated.step import apply_round, average

pytestmark = [pytest.mark.flow, pytest.mark.timeout(900)]

SITES = ("budapest", "cleveland", "longbeach", "zurich")
KEYS = {
    "hospitals", "study", "training", "evaluation", "inference", "credits", "withdrawal", "audit",
    "seconds",
}  # fmt: skip
COOP = Path(sys.executable).parent / "coop"


@dataclass
class Story:
    folder: Path
    facts: dict
    hub: Database
    sites: dict[str, Site]

    @property
    def study(self) -> Study:
        document = self.document(self.facts["study"]["digest"])
        return Study.model_validate(document["credentialSubject"])

    def document(self, digest: str) -> dict:
        with self.hub.reading() as connection:
            query = sa.select(signed_document.c.body).where(signed_document.c.digest == digest)
            return json.loads(connection.execute(query).scalar_one())

    def drawn(self, site: str, order: str) -> list:
        with self.sites[site].database.reading() as connection:
            query = sa.select(debit).where(debit.c.order_sha256 == order).order_by(debit.c.round)
            return list(connection.execute(query))

    def members(self, site: str, order: str, phase: str) -> set[str]:
        with self.sites[site].database.reading() as connection:
            query = (
                sa.select(debit_pid.c.pid)
                .join(debit, debit.c.sequence == debit_pid.c.sequence)
                .where(debit.c.order_sha256 == order, debit.c.phase == phase)
            )
            return set(connection.execute(query).scalars())


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("demo") / "story"
    command = [COOP, "demo", "--no-serve", "--json", "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)  # one JSON document and nothing else
    hub = Database(f"sqlite:///{folder / 'hub/coop.sqlite'}")
    sites = {name: Site.open(folder / name) for name in SITES}
    yield Story(folder=folder, facts=facts, hub=hub, sites=sites)
    hub.close()
    for site in sites.values():
        site.close()


def test_the_story_has_every_chapter_and_left_no_process(story: Story):
    assert story.facts.keys() >= KEYS
    assert set(story.facts["hospitals"]) == set(SITES)
    assert (story.folder / MARKER).read_text() == ""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(story.folder) not in listed.stdout


def test_every_figure_names_a_document_that_is_stored(story: Story):
    facts = story.facts
    named = [
        facts["study"]["digest"],
        *facts["study"]["approvals"].values(),
        facts["training"]["order_sha256"],
        *facts["training"]["records"],
        facts["evaluation"]["passport"],
        facts["inference"]["point"]["receipt"],
        facts["inference"]["cohort"]["receipt_sha256"],
        *facts["credits"]["windows"],
        facts["withdrawal"]["receipt"],
        facts["withdrawal"]["training"]["order_sha256"],
        *facts["withdrawal"]["training"]["records"],
    ]
    assert len(facts["training"]["records"]) == 21
    for digest in named:
        assert document_digest(story.document(digest)) == digest


def test_every_hospital_debited_each_round_once_at_the_noise_of_the_plan(story: Story):
    order = story.facts["training"]["order_sha256"]
    split = plan(story.study.budget, 20)
    for name in SITES:
        drawn = story.drawn(name, order)
        assert [row.round for row in drawn] == list(range(1, 22))
        assert {row.sigma_micro for row in drawn[:20]} == {split.training_sigma_micro}
        assert drawn[20].sigma_micro == split.evaluation_sigma_micro


def test_the_printed_epsilon_is_what_an_independent_accountant_finds(story: Story):
    passport = story.document(story.facts["evaluation"]["passport"])["credentialSubject"]
    assert passport["epsilon_micro"] == story.facts["training"]["epsilon_micro"] <= 1_000_000
    delta = passport["delta_pico"] / 1e12
    drawn = story.drawn("zurich", story.facts["training"]["order_sha256"])
    accountant = pld.PLDAccountant()
    for row in drawn[:20]:
        accountant.compose(dpa.GaussianDpEvent(row.sigma_micro / MICRO))
    trained = accountant.get_epsilon(delta)
    printed = passport["training_epsilon_micro"] / MICRO
    assert abs(printed - trained) <= max(0.02, 0.015 * trained)
    accountant.compose(dpa.GaussianDpEvent(drawn[20].sigma_micro / MICRO))
    reserve = plan(story.study.budget, 20).rho_reserve_nano / 1e9
    accountant.compose(dpa.GaussianDpEvent((1 / (2 * reserve)) ** 0.5))
    whole = accountant.get_epsilon(delta)
    assert abs(passport["epsilon_micro"] / MICRO - whole) <= max(0.02, 0.015 * whole)


def test_nobody_who_refused_or_never_enrolled_took_part_in_anything(story: Story):
    refused = 0
    for name, site in story.sites.items():
        with site.database.reading() as connection:
            used = set(connection.execute(sa.select(debit_pid.c.pid)).scalars())
            records = dict(connection.execute(sa.select(patient.c.record_key, patient.c.pid)).all())
        ordered = sorted(records, key=int)
        for position, record in enumerate(ordered):
            if position >= len(ordered) - 2 or choice(position) == "refuse":
                refused += 1
                assert records[record] not in used, name
    assert refused > 70


def test_ada_trained_the_first_version_and_not_the_second(story: Story):
    pid = story.facts["consent"]["ada"]["pid"]
    first = story.facts["training"]["order_sha256"]
    second = story.facts["withdrawal"]["training"]["order_sha256"]
    phases = ("train", "evaluate")
    assert any(pid in story.members("cleveland", first, phase) for phase in phases)
    assert not any(pid in story.members("cleveland", second, phase) for phase in phases)
    said = json.loads((story.folder / "receipts/uses-after.json").read_text())["credentialSubject"]
    assert said["excluded_from"] <= story.facts["withdrawal"]["effective_by"]
    assert all(use["at"] <= said["excluded_from"] for use in said["uses"])


def test_training_and_evaluation_folds_share_no_patient(story: Story):
    order = story.facts["training"]["order_sha256"]
    for name in SITES:
        trained = story.members(name, order, "train")
        assert trained.isdisjoint(story.members(name, order, "evaluate"))
        assert trained


def test_the_money_that_came_in_is_the_money_that_went_out(story: Story):
    earned, asked = story.facts["credits"], story.facts["inference"]
    fees = asked["point"]["fee_nano"] + asked["cohort"]["fee_nano"]
    assert sum(earned["parts_nano"].values()) == fees
    assert earned["ledger"]["ok"]
    assert earned["ledger"]["findings"] == []
    with story.hub.reading() as connection:
        moved = connection.execute(sa.select(sa.func.count()).select_from(ledger_transfer)).scalar()
    assert moved >= earned["ledger"]["transfers"]
    assert earned["ada_claimed_nano"] > 0


def test_all_processes_together_stay_within_four_gibibytes(story: Story):
    assert 0 < story.facts["measured"]["peak_memory_bytes"] <= 4 * 2**30


def test_the_real_run_is_as_good_as_the_same_training_in_one_process(story: Story):
    """One Flower run lies within 3 sd of runs on the very same patients."""
    order, study = story.facts["training"]["order_sha256"], story.study
    split = plan(study.budget, study.recipe.rounds)
    sigma, clip = split.training_sigma_micro / MICRO, study.recipe.clip_micro / MICRO
    trained, tested = {}, []
    for name, site in story.sites.items():
        with site.database.reading() as connection:
            for phase, pids in (
                ("train", story.members(name, order, "train")),
                ("evaluate", story.members(name, order, "evaluate")),
            ):
                rows = [row for _pid, row in rows_of(connection, pids)]
                x, y, _kept = training_matrix(rows, study.schema_, study.label, name)
                if phase == "train":
                    trained[name] = (x, y)
                else:
                    tested.append((x, y))
    x_test = np.concatenate([x for x, _y in tested])
    y_test = np.concatenate([y for _x, y in tested])

    def once() -> float:
        weights, iterates = initial(len(columns(study.schema_))), []
        for _ in range(study.recipe.rounds):
            updates = {
                name: private_gradient(weights, x, y, clip=clip, sigma=sigma)
                for name, (x, y) in trained.items()
            }
            weights = apply_round(weights, updates, study.recipe)
            iterates.append(weights)
        found = auc(predict(average(iterates, study.recipe.average_last), x_test), y_test)
        assert found is not None
        return found

    runs = [once() for _ in range(budget(20, 60))]
    with story.hub.reading() as connection:
        body = catalogue.artefact(
            connection, story.facts["evaluation"]["model_id"], "model.safetensors"
        )
    real = auc(predict(from_safetensors(body, len(columns(study.schema_))), x_test), y_test)
    assert real is not None
    assert abs(real - np.mean(runs)) <= 3 * np.std(runs) + 1e-9


CHECKS = (
    ("receipt", "inference.json"),
    ("receipt", "withdrawal.json"),
    ("receipt", "round-record.json"),
    ("consent", "consent.json"),
    ("passport", "passport.json"),
    ("log", "log.json"),
    ("round", "round-20.json"),
)


@pytest.mark.parametrize(("kind", "name"), CHECKS, ids=[name for _kind, name in CHECKS])
def test_what_it_left_verifies_offline_and_fails_after_any_change(
    story: Story, tmp_path: Path, kind: str, name: str
):
    path, trust = story.folder / "receipts" / name, story.folder / "trust.json"

    def verify(file: Path) -> int:
        command = [COOP, "verify", kind, file, "--trust", trust]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert verify(path) == 0
    good = path.read_text()
    positions = [index for index, letter in enumerate(good) if letter.isalnum()]
    chosen = np.linspace(0, len(positions) - 1, budget(2, 12)).astype(int)
    for index in chosen:
        at = positions[index]
        changed = tmp_path / name
        changed.write_text(good[:at] + ("1" if good[at] != "1" else "2") + good[at + 1 :])
        assert verify(changed) == 1, good[max(0, at - 40) : at + 1]


def test_a_receipt_signed_anew_with_a_fresh_key_is_refused(story: Story):
    trust = Trust.load(story.folder / "trust.json")
    bundle = json.loads((story.folder / "receipts/inference.json").read_text())
    verify_receipt(bundle, trust)
    stranger = SigningKey.generate()
    forged = {name: part for name, part in bundle["document"].items() if name != "proof"}
    signed = sign_document({**forged, "issuer": stranger.did}, stranger, created=1_800_000_000)
    with pytest.raises((VerificationError, Exception)) as refusal:
        verify_receipt({**bundle, "document": signed}, trust)
    assert getattr(refusal.value, "code", "")
