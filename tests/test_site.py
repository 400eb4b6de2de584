"""A hospital's own place: pids only it can compute, folds that hold, trust that stays pinned."""

import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from small_world import DIDS, TRUST, key

from coop.alone import AlreadyRunningError, alone
from coop.errors import ConflictError, InvalidInputError, NotFoundError
from federated.data import csv_of
from federated.importers import import_csv
from federated.join import OtherHospitalError, join
from federated.local_api import LocalPortTakenError, _listening
from federated.site import NotJoinedError, Site, TrustPinnedError, fingerprint


@pytest.fixture
def site(tmp_path: Path):
    made = Site.create(tmp_path / "node", "cleveland")
    yield made
    made.close()


def test_a_pid_is_stable_and_unlike_any_other(site: Site):
    pids = {site.pid_of(str(number)) for number in range(1000)}
    assert len(pids) == 1000
    assert all(len(pid) == 26 and pid.islower() for pid in pids)
    again = Site.open(site.folder)
    assert {again.pid_of(str(number)) for number in range(1000)} == pids
    again.close()


def test_two_hospitals_give_one_patient_unlinkable_pids(site: Site, tmp_path: Path):
    other = Site.create(tmp_path / "other", "cleveland")
    assert other.pid_of("7") != site.pid_of("7")
    other.close()


@pytest.mark.parametrize("record_key", ["", "x" * 201, "a\0b"])
def test_a_record_key_without_sense_has_no_pid(site: Site, record_key: str):
    with pytest.raises(InvalidInputError, match="record key"):
        site.pid_of(record_key)


def test_name_and_record_key_cannot_be_shifted_into_each_other(site: Site):
    site.name, shifted = "clevel", site.pid_of("1")
    assert site.pid_of("and1") != shifted


def test_folds_keep_their_share_and_grow_monotonously(site: Site):
    pids = [site.pid_of(str(number)) for number in range(4000)]
    thirty = {pid for pid in pids if site.is_evaluation(pid, 30)}
    assert 0.26 < len(thirty) / len(pids) < 0.34
    assert thirty <= {pid for pid in pids if site.is_evaluation(pid, 50)}
    assert not any(site.is_evaluation(pid, 0) for pid in pids)


def test_the_secrets_are_readable_by_their_owner_only(site: Site):
    for name in ("site.key",):
        assert stat.S_IMODE((site.folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert site.pid_key.hex() not in repr(site)


def test_a_hospital_is_never_made_over_another(site: Site):
    with pytest.raises(ConflictError):
        Site.create(site.folder, "zurich")
    assert Site.open(site.folder).name == "cleveland"


def test_no_hospital_here_is_said(tmp_path: Path):
    with pytest.raises(NotFoundError, match="no hospital here"):
        Site.open(tmp_path)


def test_before_joining_it_trusts_nobody(site: Site):
    with pytest.raises(NotJoinedError):
        _ = site.trust
    with pytest.raises(NotJoinedError):
        _ = site.hub_url
    assert site.ca_file is None


def test_pinned_trust_survives_and_may_only_grow(site: Site):
    two = replace(TRUST, sites={name: DIDS[name] for name in ("budapest", "cleveland")})
    site.pin(two.to_json(), "https://hub.test", "-----BEGIN CERTIFICATE-----\n")
    assert site.trust == two
    site.pin(TRUST.to_json(), "https://hub.test:2", None)
    assert site.trust == TRUST
    assert site.hub_url == "https://hub.test:2"
    assert site.ca_file is not None


@pytest.mark.parametrize(
    "other",
    [
        replace(TRUST, hub=key("evil").did),
        replace(TRUST, log=key("evil").did),
        replace(TRUST, origin="evil.test/log"),
        replace(TRUST, sites={**DIDS, "zurich": key("evil").did}),
    ],
    ids=["hub", "log", "origin", "hospital"],
)
def test_a_pinned_key_is_never_replaced(site: Site, other):
    site.pin(TRUST.to_json(), "https://hub.test", None)
    with pytest.raises(TrustPinnedError):
        site.pin(other.to_json(), "https://evil.test", None)
    assert site.trust == TRUST
    assert site.hub_url == "https://hub.test"


def test_nothing_that_is_no_trust_file_is_pinned(site: Site):
    with pytest.raises(InvalidInputError):
        site.pin({"v": 1, "hub": "did:key:zNo"}, "https://hub.test", None)
    assert not (site.folder / "trust.json").exists()


def test_a_hospital_may_bring_its_own_database(tmp_path: Path, postgres_url: str):
    import psycopg

    with psycopg.connect(f"{postgres_url}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE own_site")
    url = f"{postgres_url}/own_site"
    made = Site.create(tmp_path / "node", "zurich", database_url=url)
    pid = made.pid_of("1")
    assert import_csv(made, csv_of("zurich")).new == 123
    assert import_csv(made, csv_of("zurich")).changed == 0
    made.close()
    again = Site.open(tmp_path / "node")
    assert again.pid_of("1") == pid
    assert not (tmp_path / "node" / "node.sqlite").exists()
    again.close()


def test_the_fingerprint_is_short_enough_to_read_aloud(site: Site):
    assert len(fingerprint(site)) == 16


def test_a_folder_joins_under_the_name_it_was_made_with_only(tmp_path: Path):
    Site.create(tmp_path / "a", "northern").close()
    with pytest.raises(OtherHospitalError, match="northern"):
        join(tmp_path / "a", "southern", token="t", hub_url="https://127.0.0.1:9", ca_file=None)


def test_one_process_runs_over_a_folder(tmp_path: Path):
    with alone(tmp_path), pytest.raises(AlreadyRunningError), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_a_taken_port_of_the_loopback_api_is_named(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LocalPortTakenError, match="--port"):
            _listening(taken.getsockname()[1])
