"""`coop demo`, run once as its user would, and then held against what it left on disk."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dp_accounting as dpa
import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from budget import budget
from dp_accounting import pld

from coop import catalogue
from coop.accounts import account
from coop.accounts import transfer as ledger_transfer
from coop.canonical import document_digest, jcs
from coop.db import Database
from coop.demo.people import choice
from coop.demo.stage import MARKER
from coop.documents.study import MICRO, Study
from coop.features import columns, encode, training_matrix
from coop.journal.store import log_entry, signed_document
from coop.journal.trust import Trust
from coop.keys import SigningKey, sign_document
from federated.accounting import plan
from federated.answers import answer
from federated.budget import debit, debit_pid
from federated.metrics import measure
from federated.models import from_safetensors, initial, predict
from federated.private_training import private_gradient
from federated.records import rows_of
from federated.scores import auc
from federated.site import Site, enrolled, patient
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
    split = plan(story.study.budget, story.study.recipe.schedule)
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
    reserve = plan(story.study.budget, story.study.recipe.schedule).rho_reserve_nano / 1e9
    accountant.compose(dpa.GaussianDpEvent((1 / (2 * reserve)) ** 0.5))
    whole = accountant.get_epsilon(delta)
    assert abs(passport["epsilon_micro"] / MICRO - whole) <= max(0.02, 0.015 * whole)
    cohort = story.study.budget.cohort_rho_nano / 1e9
    accountant.compose(dpa.GaussianDpEvent((1 / (2 * cohort)) ** 0.5))
    together = accountant.get_epsilon(delta)
    printed = passport["together_epsilon_micro"] / MICRO
    assert whole < printed <= 1  # the cap that the hospitals signed
    assert abs(printed - together) <= max(0.02, 0.015 * together)


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
    """Summed here from the transfers alone, not by the ledger's own check."""
    earned, asked = story.facts["credits"], story.facts["inference"]
    with story.hub.reading() as connection:
        codes = dict(connection.execute(sa.select(account.c.id, account.c.code)).all())
        moved = connection.execute(sa.select(ledger_transfer)).all()
    has: Counter[str] = Counter()
    between: Counter[tuple[str, str]] = Counter()
    for row in moved:
        debited, credited = codes[row.debit_id], codes[row.credit_id]
        has.update({debited: -row.amount, credited: row.amount})
        between[debited.partition(":")[0], credited.partition(":")[0]] += row.amount
    assert sum(has.values()) == 0
    assert [code for code, nano in has.items() if nano < 0] == ["issuance"]
    assert -has["issuance"] == earned["ledger"]["supply_nano"]
    fees = asked["point"]["fee_nano"] + asked["cohort"]["fee_nano"]
    assert between["researcher", "revenue"] == fees
    parts = {kind: between["revenue", kind] for kind in earned["parts_nano"]}
    assert parts == earned["parts_nano"]
    assert sum(parts.values()) == fees
    windows = [story.document(digest)["credentialSubject"] for digest in earned["windows"]]
    assert sum(int(nano) for window in windows for nano in window["parts"].values()) == fees
    assert between["patient", "member"] == earned["ada_claimed_nano"] > 0
    assert (earned["ledger"]["ok"], earned["ledger"]["findings"]) == (True, [])


def test_the_evaluation_is_recomputed_from_what_each_hospital_released(story: Story):
    """The passport's figures come from the hospitals' stored noised histograms and nothing else."""
    told, order = story.facts["evaluation"], story.facts["training"]["order_sha256"]
    passport = story.document(told["passport"])["credentialSubject"]
    assert {row["group"]: row for row in passport["metrics"]} == told["metrics"]
    released = {}
    for name, site in story.sites.items():
        with site.database.reading() as connection:
            query = sa.select(answer.c.body).where(answer.c.key == f"round:{order}:evaluate:21:1")
            body = connection.execute(query).scalar_one()
        released[name] = safetensors.numpy.load(bytes(body))["histogram"]
    groups = list(story.study.evaluation.groups)
    sigma = plan(story.study.budget, story.study.recipe.schedule).evaluation_sigma_micro / MICRO
    generator = np.random.default_rng(int(order[:16], 16))
    whole = np.sum(list(released.values()), axis=0)
    rows = measure(whole, groups, noise_sd=sigma * 2, generator=generator)  # of four hospitals
    for name, own in released.items():
        (first, *_others) = measure(own, groups, noise_sd=sigma, generator=generator)
        rows.append(first.model_copy(update={"group": f"hospital {name}"}))
    found = {row.group: row.model_dump(mode="json", exclude_none=True) for row in rows}
    assert found == told["metrics"]


def test_the_answers_are_recomputed_from_the_released_model_and_the_hospitals(story: Story):
    point, cohort = (story.facts["inference"][kind] for kind in ("point", "cohort"))
    schema = story.study.schema_
    asked = {
        "age_years": 58.0,
        "sex": "male",
        "chest_pain": "asymptomatic",
        "st_depression": 2.1,
        "exercise_angina": True,
    }
    x, _kept = encode([asked], schema, None)
    with story.hub.reading() as connection:
        body = catalogue.artefact(
            connection, story.facts["evaluation"]["model_id"], "model.safetensors"
        )
    risk = float(predict(from_safetensors(body, len(columns(schema))), x)[0])
    assert abs(point["risk"] - risk) <= 0.0005 + 1e-6  # three digits are told
    answers = {signed["credentialSubject"]["site"]: signed for signed in cohort["answers"]}
    assert set(answers) == set(cohort["sites"]) == set(SITES)
    told = [signed["credentialSubject"] for signed in answers.values()]
    assert cohort["count"] == sum(one["count_noised"] for one in told)
    mean = sum(one["risk_sum_noised_micro"] for one in told) / cohort["count"]
    # A mean of noised sums may lie outside what a mean of risks can be; what is told never does.
    assert abs(cohort["mean_risk_micro"] - min(max(mean, 0), MICRO)) <= 1
    for name, signed in answers.items():
        assert document_digest(story.document(document_digest(signed))) == document_digest(signed)
        with story.sites[name].database.reading() as connection:
            query = sa.select(debit.c.rho_nano).where(debit.c.phase == "cohort")
            assert connection.execute(query).scalars().all() == [cohort["rho_nano"]]


def test_who_came_and_who_signed_is_what_the_hospitals_hold(story: Story):
    trust = Trust.load(story.folder / "trust.json")
    people = imported = 0
    for name, site in story.sites.items():
        assert story.facts["hospitals"][name]["did"] == site.key.did == trust.sites[name]
        with site.database.reading() as connection:
            people += connection.execute(sa.select(sa.func.count()).select_from(enrolled)).scalar()
            imported += connection.execute(sa.select(sa.func.count()).select_from(patient)).scalar()
    said = story.facts["consent"]
    assert (imported, people) == (said["patients"], said["enrolled"]) == (920, 912)
    assert sum(said["choices"].values()) == people
    uses = json.loads((story.folder / "receipts/uses.json").read_text())["credentialSubject"][
        "uses"
    ]
    assert len(uses) == story.facts["withdrawal"]["uses_before"] > 0
    receipt = story.document(story.facts["withdrawal"]["receipt"])["credentialSubject"]
    assert receipt["effective_by"] == story.facts["withdrawal"]["effective_by"]
    assert (receipt["pid"], receipt["event"]) == (said["ada"]["pid"], "revoke")


def test_her_hospitals_desk_hands_over_the_same_list(story: Story):
    site = story.folder / "cleveland"
    command = [COOP, "hospital", "uses", "1", "--state", site, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    at_the_desk = json.loads(done.stdout)["statement"]["credentialSubject"]
    online = json.loads((story.folder / "receipts/uses-after.json").read_text())
    assert at_the_desk == online["credentialSubject"]


def test_the_audit_saw_every_round_and_the_whole_log(story: Story):
    audit = story.facts["audit"]
    trained = [story.facts["training"], story.facts["withdrawal"]["training"]]
    assert audit["rounds"] == sum(len(done["records"]) for done in trained)
    with story.hub.reading() as connection:
        entries = connection.execute(sa.select(sa.func.count()).select_from(log_entry)).scalar()
    export = json.loads((story.folder / "receipts/log.json").read_text())
    assert audit["log_size"] == len(export["entries"]) == entries
    assert audit["ok"]


def test_all_processes_together_stay_within_four_gibibytes(story: Story):
    assert 0 < story.facts["measured"]["peak_memory_bytes"] <= 4 * 2**30


def test_the_real_run_is_as_good_as_the_same_training_in_one_process(story: Story):
    """One Flower run lies within 4 sd of runs on the very same patients.

    At 3 sd one honest run in a hundred fails: the spread is estimated, and its lower tail is long.
    """
    order, study = story.facts["training"]["order_sha256"], story.study
    split = plan(study.budget, study.recipe.schedule)
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

    runs = [once() for _ in range(budget(60, 200))]
    with story.hub.reading() as connection:
        body = catalogue.artefact(
            connection, story.facts["evaluation"]["model_id"], "model.safetensors"
        )
    real = auc(predict(from_safetensors(body, len(columns(study.schema_))), x_test), y_test)
    assert real is not None
    assert abs(real - np.mean(runs)) <= 4 * np.std(runs) + 1e-9


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


def test_a_receipt_signed_anew_with_a_fresh_key_is_refused(story: Story, tmp_path: Path):
    bundle = json.loads((story.folder / "receipts/inference.json").read_text())
    stranger = SigningKey.generate()
    unsigned = {name: part for name, part in bundle["document"].items() if name != "proof"}
    signed = sign_document({**unsigned, "issuer": stranger.did}, stranger, created=1_800_000_000)
    forged = tmp_path / "forged.json"
    forged.write_bytes(jcs({**bundle, "document": signed}))
    command = [COOP, "verify", "receipt", forged, "--trust", story.folder / "trust.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "journal.bad-proof" in done.stderr  # the log holds no such document
