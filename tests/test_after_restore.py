"""A restored hospital charges everybody at least what was spent since the backup, exactly once."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from coop_world import HEADER, HOSPITAL, Run, World, csv_line, now, world
from coop_world import digest as digest_of
from typer.testing import CliRunner

from coop.backup import backup_folder, restore_folder
from coop.cli import app
from coop.client import Client
from coop.documents.envelope import issue, open_document
from coop.documents.study import Approval
from coop.keys import SigningKey
from federated import budget
from federated.after_restore import RestoreUnsettledError, facts, refuse_if_unsettled
from federated.approval import (
    NotApprovedError,
    approve,
    approved_study,
    distrust_budgets,
    revoke,
    settle_restore,
)
from federated.budget import Line, site_spend
from federated.doctor import _restore
from federated.importers import import_csv
from federated.odometer import patient_budget
from federated.records import all_pids
from federated.round import WithdrawnError, answer_round
from federated.site import Site


@pytest.fixture(scope="module")
def coop(tmp_path_factory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


@dataclass
class Lost:
    """A hospital whose machine dies after more was spent than its backup knows."""

    coop: World
    folder: Path
    before: Run
    """Approved before the backup, and one round of it drawn."""
    after: Run
    """Approved after it."""

    def restored(self) -> Site:
        """The backup in a folder of its own, nothing asked of the hub yet."""

        def prepare(folder: Path) -> None:
            site = Site.open(folder)
            distrust_budgets(site, now=now())
            site.close()

        number = len(list(self.folder.glob("new*")))
        new = self.folder / f"new{number}"
        restore_folder(self.folder / "backup", new, needs="site.key", prepare=prepare)
        return Site.open(new)


class Between:
    """The hospital's mirror, with something happening in the world before the second lease."""

    def __init__(self, mirror: Any, step: Any) -> None:
        self.mirror, self.steps = mirror, [lambda: None, step]

    def lease(self) -> Any:
        if self.steps:
            self.steps.pop(0)()
        return self.mirror.lease()


@pytest.fixture
def lost(coop: World, tmp_path: Path, request) -> Lost:
    name = "r" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    (leaving,) = coop.newcomers(1)
    before = coop.ready(f"{name}-1")
    answer_round(coop.site, coop.mirror, before.input())
    backup_folder(coop.site.folder, tmp_path / "backup", database="node.sqlite")
    after = coop.ready(f"{name}-2")
    for run in (before, after):
        answer_round(coop.site, coop.mirror, run.input(2))
    # A draw that was debited and never left: no receipt of it exists anywhere.
    away = Between(coop.mirror, lambda: coop.say("revoke", [leaving]))
    with pytest.raises(WithdrawnError):
        answer_round(coop.site, away, after.input(3))
    return Lost(coop=coop, folder=tmp_path, before=before, after=after)


def spent(site: Site) -> dict[str, int]:
    """What each patient with a record paid in her life here, rho in 10⁻⁹."""
    with site.database.reading() as connection:
        return {pid: patient_budget(connection, pid).rho_nano for pid in all_pids(connection)}


def whole(run: Run) -> int:
    """Everything one study version may cost a patient, rho in 10⁻⁹."""
    approved = open_document(Approval, run.approval, issuers=None).subject
    assert approved.study_id == run.study.study_id
    with run.world.site.database.reading() as connection:
        lines = approved_study(connection, run.world.site, digest_of(run.document)).lines
    return sum(lines.end_of(line) for line in Line)


def charged(site: Site) -> int:
    with site.database.reading() as connection:
        return budget.everybodys_charge(connection)


def drawn(site: Site, run: Run) -> int:
    with site.database.reading() as connection:
        return sum(site_spend(connection, run.study.study_id, 1).values())


def test_everybody_is_charged_at_least_what_she_truly_spent_and_once(lost):
    coop, truly = lost.coop, spent(lost.coop.site)
    site = lost.restored()
    known, charged_before = drawn(site, lost.before), charged(site)
    assert 0 < known < drawn(coop.site, lost.before)
    # What the backup's own approvals may have spent is charged before anything can run.
    assert charged_before >= whole(lost.before) - known
    assert settle_restore(site, coop.client, now=now()) >= whole(lost.after)
    held = spent(site)
    assert held.keys() == truly.keys()
    assert all(held[pid] >= truly[pid] for pid in truly)
    assert facts(site) == {"charged_rho": f"{charged(site) / 1e9:.6f}", "settled": True}
    # Again and again: nothing more.
    for _ in range(2):
        assert settle_restore(site, coop.client, now=now()) == 0
        distrust_budgets(site, now=now())
        assert settle_restore(site, coop.client, now=now()) == 0
        assert spent(site) == held
    site.close()


def test_no_patient_pays_a_study_version_beyond_its_lines(lost):
    before = spent(lost.coop.site)
    site = lost.restored()
    settle_restore(site, lost.coop.client, now=now())
    with site.database.reading() as connection:
        rows = connection.execute(budget.debit.select()).mappings().all()
    for run in (lost.before, lost.after):
        of_study = [row["rho_nano"] for row in rows if row["study_id"] == run.study.study_id]
        assert sum(of_study) == whole(run)
    assert before
    site.close()


def test_restoring_the_restored_hospital_charges_nothing_twice(lost):
    site = lost.restored()
    settle_restore(site, lost.coop.client, now=now())
    held = spent(site)
    backup_folder(site.folder, lost.folder / "second", database="node.sqlite")
    site.close()

    def prepare(folder: Path) -> None:
        again = Site.open(folder)
        distrust_budgets(again, now=now())
        again.close()

    new = lost.folder / "again"
    restore_folder(lost.folder / "second", new, needs="site.key", prepare=prepare)
    site = Site.open(new)
    settle_restore(site, lost.coop.client, now=now())
    assert spent(site) == held
    site.close()


def test_a_record_imported_again_after_the_restore_comes_back_charged(lost):
    coop = lost.coop
    late = [patient.pid for patient in coop.newcomers(8)]  # records that came after the backup
    run = coop.ready(f"{lost.after.study.study_id}b")
    answer_round(coop.site, coop.mirror, run.input())
    paid = {pid: rho for pid, rho in spent(coop.site).items() if pid in late}
    assert max(paid.values()) > 0
    site = lost.restored()
    settle_restore(site, coop.client, now=now())
    assert not spent(site).keys() & paid.keys()
    path = lost.folder / "again.csv"
    numbers = range(60, 60 + len(coop.patients))
    path.write_text(HEADER + "".join(csv_line(number) for number in numbers))
    import_csv(site, path)
    held = spent(site)
    assert all(held[pid] >= rho for pid, rho in paid.items())
    site.close()


def test_without_the_hub_nothing_can_be_approved_and_nothing_approved_counts(lost):
    site = lost.restored()
    time.sleep(1.1)  # a study is named by the second it was signed in, and must be newer
    study, document = lost.coop.study(f"{lost.before.study.study_id}-next")
    with (
        Client("http://127.0.0.1:9", key=site.key) as nobody,
        pytest.raises(RestoreUnsettledError, match="nothing can be approved before that"),
    ):
        approve(site, nobody, study.study_id, now=now())
    with site.database.reading() as connection:
        with pytest.raises(RestoreUnsettledError):
            refuse_if_unsettled(connection)
        with pytest.raises(RestoreUnsettledError):
            approved_study(connection, site, digest_of(lost.before.document))
    first = charged(site)
    assert not _restore(site)["ok"]
    assert "docs/runbook.md" in _restore(site)["fix"]
    # The hub is back: approving asks it first, and only then signs.
    approve(site, lost.coop.client, study.study_id, now=now())
    with site.database.reading() as connection:
        approved_study(connection, site, digest_of(document)).check_in_force(now())
    assert charged(site) >= first + whole(lost.after)
    assert _restore(site)["ok"]
    site.close()


def test_the_hub_cannot_invent_an_approval_to_use_up_the_patients_budgets(lost):
    site = lost.restored()
    at_first = spent(site)
    approval = open_document(Approval, lost.after.approval, issuers=None).subject
    forged = issue(approval, SigningKey.generate(), now())

    class Hub:
        def get(self, _path: str) -> Any:
            given = {"site": HOSPITAL, "document": forged}
            return {"studies": [{"document": lost.after.document, "approvals": [given]}]}

    with pytest.raises(RestoreUnsettledError):
        settle_restore(site, Hub(), now=now())
    assert spent(site) == at_first
    # Nor another study under an approval that is ours.
    given = {"site": HOSPITAL, "document": lost.after.approval}
    other = {"studies": [{"document": lost.before.document, "approvals": [given]}]}
    Hub.get = lambda _self, _path: other  # type: ignore[method-assign]
    with pytest.raises(RestoreUnsettledError):
        settle_restore(site, Hub(), now=now())
    for nonsense in ([], {}, {"studies": [{}]}, {"studies": None}):
        Hub.get = lambda _self, _path, said=nonsense: said  # type: ignore[misc,method-assign]
        with pytest.raises(RestoreUnsettledError):
            settle_restore(site, Hub(), now=now())
    assert spent(site) == at_first
    site.close()


def test_what_had_ended_before_the_backup_charges_nothing(coop, tmp_path):
    run = coop.ready("ended-before")
    answer_round(coop.site, coop.mirror, run.input())
    revoke(coop.site, digest_of(run.document), now=now())
    backup_folder(coop.site.folder, tmp_path / "backup", database="node.sqlite")
    lost = Lost(coop=coop, folder=tmp_path, before=run, after=run)
    site = lost.restored()
    settle_restore(site, coop.client, now=now())
    with site.database.reading() as connection:
        rows = connection.execute(budget.debit.select()).mappings().all()
    mine = [row for row in rows if row["study_id"] == "ended-before"]
    assert [row["phase"] for row in mine] == ["train"]
    site.close()


def test_a_crash_before_the_charge_leaves_no_restored_folder(lost):
    def crash(_folder: Path) -> None:
        raise KeyboardInterrupt

    new = lost.folder / "half"
    with pytest.raises(KeyboardInterrupt):
        restore_folder(lost.folder / "backup", new, needs="site.key", prepare=crash)
    assert not new.exists()


def test_the_command_charges_and_says_so(lost):
    truly = spent(lost.coop.site)
    arguments = ["hospital", "restore", str(lost.folder / "backup"), "--state"]
    done = CliRunner().invoke(app, [*arguments, str(lost.folder / "new"), "--json"])
    said = orjson.loads(done.stdout)
    assert said["settled"]
    assert said["approvals_ended"] >= 1
    site = Site.open(lost.folder / "new")
    assert said["charged_rho"] == facts(site)["charged_rho"]
    held = spent(site)
    assert all(held[pid] >= truly[pid] for pid in truly)
    with site.database.reading() as connection, pytest.raises(NotApprovedError):
        approved_study(connection, site, digest_of(lost.before.document)).check_in_force(now())
    site.close()
