"""A restored hospital has forgotten what it signed: it signs nothing until another one speaks."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from consent_hub import ORIGIN, ConsentHub, Hospital, clock, grant
from typer.testing import CliRunner

from coop.backup import backup_folder, restore_folder
from coop.cli import app
from coop.client import Client
from coop.db import Database
from coop.errors import InvalidInputError
from coop.journal import note
from coop.journal.store import Journal
from coop.keys import SigningKey
from federated import cosigning, doctor, mirror_store, witnesses
from federated.approval import distrust_budgets
from federated.cosigning import CosigningPausedError, LogBehindError
from federated.mirror import Mirror
from federated.site import Site


class Restored:
    """Basel, restored from a backup that does not know what it cosigned last; Bern and Chur."""

    def __init__(self, hub: ConsentHub, folder: Path) -> None:
        self.hub = hub
        self.others = [Hospital(hub, folder, name) for name in ("bern", "chur")]
        basel = Hospital(hub, folder, "basel")
        for one in (basel, *self.others):
            one.connect()
        people = basel.enrol(2)
        grant(hub, people[:1])
        basel.mirror.witness()
        backup_folder(folder / "basel", folder / "backup", database="node.sqlite")
        grant(hub, people[1:])
        for one in (basel, *self.others):
            one.mirror.witness()
        self.lost_size = basel.mirror.size()
        basel.close()
        restore_folder(folder / "backup", folder / "new", needs="site.key", prepare=self._distrust)
        self.site = Site.open(folder / "new")
        self.client = Client(hub.url, None, key=self.site.key)
        self.mirror = Mirror(self.site, self.client)

    def _distrust(self, folder: Path) -> None:
        site = Site.open(folder)
        self.at = clock() + 1
        distrust_budgets(site, now=self.at)
        site.close()

    def signs(self) -> bool:
        """Whether Basel cosigns what is new."""
        (person,) = self.others[0].enrol(1)
        grant(self.hub, [person])
        self.mirror.witness()
        with self.hub.database.reading() as connection:
            newest = self.hub.journal.checkpoint(connection)
        return bool(note.cosigners(newest, {"basel": self.site.key.did}))

    def close(self) -> None:
        self.client.close()
        self.site.close()
        for one in self.others:
            one.close()


@pytest.fixture
def basel(hub: ConsentHub, tmp_path: Path) -> Iterator[Restored]:
    made = Restored(hub, tmp_path)
    yield made
    made.close()


def test_a_restored_hospital_cosigns_only_once_another_one_has_shown_it_the_log(basel: Restored):
    assert basel.mirror.size() < basel.lost_size
    assert not basel.signs()
    assert basel.mirror.size() > basel.lost_size  # it verifies and follows all the same
    assert not doctor._cosigning(basel.site)["ok"]
    with pytest.raises(CosigningPausedError):
        cosigning.statement(basel.site, clock())
    bern = basel.others[0]
    assert cosigning.resume(basel.site, cosigning.statement(bern.site, basel.at), clock()) == "bern"
    assert doctor._cosigning(basel.site)["ok"]
    assert basel.signs()


def test_only_a_known_hospitals_word_about_this_log_ends_the_pause(basel: Restored):
    basel.mirror.witness()
    text = mirror_store.newest_note(basel.others[0].site)
    stranger = SigningKey.generate()
    own = note.cosign(text, name="basel", key=basel.site.key, now=basel.at)
    foreign = [
        note.cosign(text, name=name, key=stranger, now=basel.at) for name in ("bern", "atlantis")
    ]
    # Bern saw this before the restore: what was cosigned and lost may be newer.
    old = note.cosign(text, name="bern", key=basel.others[0].site.key, now=basel.at - 1)
    for word in (text, own, old, *foreign):
        with pytest.raises(InvalidInputError, match="no hospital known here"):
            cosigning.resume(basel.site, word, clock())
    with pytest.raises(note.NoteError):
        cosigning.resume(basel.site, text.replace(ORIGIN, "other.test/log"), clock())
    assert not basel.signs()


def test_a_hub_that_shows_less_than_another_hospital_saw_gets_no_signature(basel: Restored):
    theirs = cosigning.statement(basel.others[1].site, basel.at)
    # The restored mirror was not brought up to date: for it the hub hides what Chur has seen.
    with pytest.raises(LogBehindError, match="chur has seen"):
        cosigning.resume(basel.site, theirs, clock())
    assert cosigning.paused(basel.site)


def test_a_hub_that_shows_another_log_after_the_restore_is_convicted(
    basel: Restored, tmp_path: Path
):
    other = Database(f"sqlite:///{tmp_path / 'fork.sqlite'}")
    other.upgrade()
    fork = Journal(other, basel.hub.log_key, ORIGIN, clock)
    with other.unit_of_work() as connection:
        fork.record_many(connection, "consent", [{"credentialSubject": {}, "id": "forged"}])
        forged = fork.checkpoint(connection)
    other.close()
    chur = basel.others[1].site
    theirs = note.cosign(forged, name="chur", key=chur.key, now=basel.at)
    basel.mirror.witness()
    with pytest.raises(LogBehindError, match="both notes are kept"):
        cosigning.resume(basel.site, theirs, clock())
    (kept,) = basel.mirror.evidence()
    assert kept["theirs"] == theirs
    assert cosigning.paused(basel.site)


def test_people_carry_the_word_from_hospital_to_hospital(basel: Restored, tmp_path: Path):
    def coop(*args: str) -> str:
        done = CliRunner().invoke(app, ["hospital", *args, "--json"])
        assert done.exit_code == 0, done.output
        return done.stdout

    word = tmp_path / "seen.txt"
    while clock() < basel.at:
        time.sleep(0.05)
    coop("checkpoint", "--out", str(word), "--state", str(tmp_path / "bern"))
    assert '"vouched_by":"bern"' in coop("cosign", str(word), "--state", str(tmp_path / "new"))
    assert basel.signs()


def test_a_hospital_that_knew_nobody_at_the_backup_waits_too_for_others_count_it(
    hub: ConsentHub, tmp_path: Path
):
    first = Hospital(hub, tmp_path, "basel")
    first.connect()
    assert witnesses.known(first.site) == {}
    distrust_budgets(first.site, now=clock())
    (person,) = first.enrol(1)
    grant(hub, [person])
    first.mirror.witness()
    with hub.database.reading() as connection:
        newest = hub.journal.checkpoint(connection)
    assert not note.cosigners(newest, {"basel": first.site.key.did})
    first.close()


def test_a_word_about_less_than_the_backup_held_shows_nothing(basel: Restored):
    bern = basel.others[0].site
    early = mirror_store.stored_tree(bern).root(1)
    text = note.sign_checkpoint(ORIGIN, 1, early, basel.hub.log_key)
    word = note.cosign(text, name="bern", key=bern.key, now=basel.at)
    basel.mirror.witness()
    with pytest.raises(LogBehindError, match="fewer than this hospital's backup"):
        cosigning.resume(basel.site, word, clock())
    assert cosigning.paused(basel.site)
