"""`coop hub`, `coop study` and `coop patient` as people type them, against a real running hub."""

import base64
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from doors_world import STUDY_FILE, now, persona, provider

from coop import members
from coop.backup import BackupError, BackupTargetError, backup_folder, restore_folder
from coop.canonical import sha256
from coop.client import Client
from coop.db import Database
from coop.documents.consent import Enrolment, Use, UseRequest, UseStatement
from coop.documents.envelope import issue, open_document
from coop.enrolment import new_code, wishes_of
from coop.hub.folder import HubFolder, HubFolderError, LegalMode
from coop.journal.trust import Trust
from coop.keys import SigningKey
from coop.settings import Settings

COOP = Path(sys.executable).parent / "coop"


@dataclass
class Town:
    """A running hub, its folder, and the environment in which commands find it."""

    folder: Path
    state: Path
    url: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    site: SigningKey
    code: str = ""
    code_id: str = ""

    def coop(self, *arguments: object, **more: str | None) -> tuple[int, Any, str]:
        """Exit code, the JSON document, standard error."""
        done = subprocess.run(
            [COOP, *map(str, arguments), "--json"],
            env=environment({**self.environment, **more}),
            capture_output=True,
            cwd=self.folder,
            timeout=90,
            check=False,
        )
        said = orjson.loads(done.stdout) if done.stdout.strip() else None
        return done.returncode, said, done.stderr.decode()

    def good(self, *arguments: object, **more: str | None) -> Any:
        code, said, errors = self.coop(*arguments, **more)
        assert code == 0, errors
        return said

    def client(self, **who: Any) -> Client:
        return Client(self.url, self.state / "tls" / "ca.crt", **who)


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with `changes`; None takes a variable away."""
    inherited = dict(os.environ)  # noqa: TID251  (children need PATH)
    return {name: value for name, value in {**inherited, **changes}.items() if value is not None}


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(settings: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    errors = (folder / "hub.log").open("ab")
    process = subprocess.Popen(
        [COOP, "hub", "run", "--json"],
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd=folder,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        ready = orjson.loads(process.stdout.readline() or b"{}")
        assert ready.get("pid") == process.pid, (folder / "hub.log").read_text()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) == 0, "a stop is no failure"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()
            errors.close()


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    state, port = folder / "hub", free_port()
    with provider() as idp:
        settings = {
            "COOP_STATE": str(state),
            "COOP_PORT": str(port),
            "COOP_HUB_URL": f"https://127.0.0.1:{port}",
            "COOP_CA_FILE": str(state / "tls" / "ca.crt"),
            "COOP_OIDC_ISSUER": idp.issuer,
        }
        made = subprocess.run(
            [COOP, "hub", "init", "--legal-mode", "ehds", "--origin", "town/log", "--json"],
            env=environment(settings),
            capture_output=True,
            check=True,
        )
        assert orjson.loads(made.stdout)["legal_mode"] == "ehds"
        with running(settings, folder) as process:
            site = SigningKey.generate()
            here = Town(folder, state, settings["COOP_HUB_URL"], settings, process, site)
            _join(here)
            token = idp.id_token(persona("rosa", "researcher"), now=now())
            with here.client() as client:
                session = client.post("/v1/token", {"subject_token": token})["access_token"]
            with here.client(token=session) as client:
                key = client.post("/v1/api-keys", {"label": "cli"})["key"]
            settings["COOP_API_KEY"] = key
            yield here


def _join(here: Town) -> None:
    database = Database(f"sqlite:///{here.state / 'coop.sqlite'}")
    with database.unit_of_work() as connection:
        token = members.create_invite(connection, "cleveland", now=now())
        trust_path = here.folder / "trust.json"
    with here.client() as client:
        request = members.join_request(token, "cleveland", here.site, _ssh_key())
        answer = client.post("/v1/members/join", request)
    Trust.of(answer["trust"]).save(trust_path)
    database.close()
    here.environment["COOP_TRUST_FILE"] = str(trust_path)
    here.code_id, _, here.code = new_code("cleveland")


def _ssh_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.public_bytes(*form).decode()


@contextmanager
def hospital(town: Town) -> Iterator[None]:
    """A node's part: enrols whoever redeems, and answers what used her record."""
    stop = threading.Event()

    def work() -> None:
        with town.client(key=town.site) as client:
            while not stop.is_set():
                for one in client.get("/v1/sites/cleveland/enrolments")["redemptions"]:
                    subject = Enrolment(
                        site="cleveland",
                        pid=pid_of(one["code_id"]),
                        key=one["did"],
                        method="desk",
                        custody="self",
                        code_id=one["code_id"],
                        **wishes_of(one),
                    )
                    documents = [issue(subject, town.site, now())]
                    client.post("/v1/sites/cleveland/enrolments", {"documents": documents})
                job = client.post("/v1/sites/cleveland/jobs:claim", {"wait": 0})
                if job is not None:
                    request = open_document(UseRequest, job["payload"]["request"], issuers=None)
                    statement = issue(_statement(request.subject.pid), town.site, now())
                    path = f"/v1/sites/cleveland/jobs/{job['id']}/attempts/{job['attempt']}/result"
                    client.put(path, {"document": statement})
                time.sleep(0.1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def _statement(pid: str) -> UseStatement:
    use = Use(
        what="training round",
        study_id="heart",
        version=1,
        document_sha256="0" * 64,
        salt="0" * 64,
        at=now(),
        round=3,
    )
    return UseStatement(site="cleveland", pid=pid, uses=[use])


def pid_of(code_id: str) -> str:
    """The stand-in's pseudonym of whoever got this code: every code is another record."""
    return base64.b32encode(sha256(code_id.encode())).decode().lower()[:26]


@pytest.mark.flow
def test_a_patient_enrols_decides_withdraws_and_sees_it_all_verified(town: Town):
    key = ("--key", town.folder / "ada.key")
    code, _, errors = town.coop("patient", "withdraw", *key)
    assert (code, "key file" in errors) == (1, True)
    with hospital(town):
        made = town.good("patient", "new", "--code", town.code, *key)
        assert (made["state"], made["pid"]) == ("enrolled", pid_of(town.code_id))
        assert (town.folder / "ada.key").stat().st_mode & 0o077 == 0
        again = town.good("patient", "new", "--code", town.code, *key)
        assert again["did"] == made["did"]
        nothing = town.good("patient", "withdraw", *key)
        assert nothing["event"] is None

        granted = town.good("patient", "consent", "--preset", "all-research", *key)
        assert (granted["event"], granted["verified"]) == ("grant", True)
        amended = town.good(
            "patient", "consent", "--preset", "train-only", "--epsilon-cap", "0.5", *key
        )
        assert amended["event"] == "amend"
        withdrawn = town.good("patient", "withdraw", *key)
        assert withdrawn["event"] == "revoke"
        assert withdrawn["effective_by"] <= now() + 60
        assert withdrawn["fresh"]

        assert town.good("patient", "object", *key)["event"] == "object"
        assert town.good("patient", "object", *key)["event"] is None
        assert town.good("patient", "object", "--lift", *key)["event"] == "lift"

        out = town.folder / "receipts"
        seen = town.good("patient", "receipts", "--out", out, *key)["events"]
        assert [event["event"] for event in seen] == ["grant", "amend", "revoke", "object", "lift"]
        assert all(event["verified"] for event in seen)
        kantara = ("--format", "kantara", "--jurisdiction", "EU")
        filed = town.good("patient", "receipts", *kantara, "--out", out, *key)["events"]
        assert filed[0]["kantara"]["jurisdiction"] == "EU"
        assert filed[2]["kantara"] is None
        assert (out / "consent-0001.kantara.json").exists()
        checked = town.good("verify", "consent", seen[2]["file"])
        assert checked["ok"]
        halves = town.good("patient", "hide", seen[2]["file"])
        shown = town.good("verify", "consent", halves["hidden"])
        assert (shown["kind"], shown["index"]) == ("hidden-receipt", checked["index"])
        opened = town.good("verify", "consent", halves["hidden"], "--opening", halves["opening"])
        assert opened["says"]["event"] == "revoke"

        said = town.good("patient", "statement", *key)
        assert said["verified"]
        assert said["statement"]["credentialSubject"]["uses"][0]["round"] == 3


@pytest.mark.flow
def test_a_key_is_replaced_a_lost_one_recovered_and_a_stolen_one_closed(town: Town):
    made = [SigningKey.generate() for _ in range(2)]
    for name, guardian in zip(("gil", "gus"), made, strict=True):
        guardian.save(town.folder / f"{name}.key")
    file, lost = town.folder / "ira.key", town.folder / "ira-new.key"
    code_id, _, code = new_code("cleveland")
    named = [part for one in made for part in ("--guardian", one.did)]
    with hospital(town):
        first = town.good("patient", "new", "--code", code, "--key", file, *named, "--threshold", 2)
    town.good("patient", "consent", "--preset", "all-research", "--key", file)

    rotated = town.good("patient", "rotate", "--key", file)
    assert rotated["did"] != first["did"]
    assert SigningKey.load(file).did == rotated["did"]
    (record,) = town.good("patient", "keys", "--key", file)["records"]
    assert (record["key"]["did"], record["waits_until"]) == (rotated["did"], None)
    assert town.good("patient", "withdraw", "--key", file)["event"] == "revoke"
    assert town.coop("patient", "withdraw", "--key", rotated["old_key_file"])[0] == 1
    # Killed between its moves, a repeat moves the rest and changes no key.
    following, after = (file.with_name(file.name + end) for end in (".next", ".after"))
    kept = SigningKey.load(following).did
    for moves in ([(following, after)], [(following, after), (file, following)]):
        for source, target in moves:
            source.replace(target)
        assert town.good("patient", "rotate", "--key", file)["did"] == rotated["did"]
        assert SigningKey.load(following).did == kept
        assert not after.exists()

    # Her key is lost: a new one, and both guardians' word for it.
    asked = town.good("patient", "recover", "--prepare", "--key", lost)
    values = ("--pid", pid_of(code_id), "--new-key", asked["new_key"])
    values += ("--next-key", asked["next_key"])
    stranger = town.folder / "stranger.key"
    SigningKey.generate().save(stranger)
    assert "not-found" in town.coop("patient", "recover", "--key", stranger, *values)[2]
    voted = [
        town.good("patient", "recover", "--key", town.folder / f"{name}.key", *values)
        for name in ("gil", "gus")
    ]
    assert [one["recovered"] for one in voted] == [False, True]
    assert voted[1]["waits_until"] > now() + 6 * 86_400
    # What the new key may not do yet it signs for later; stopping never waits.
    assert town.good("patient", "keys", "--key", lost)["records"][0]["waits_until"]

    # The earlier key objects: it was no loss.
    closed = town.good("patient", "close", "--key", file)
    assert closed["effective_by"] <= now() + 60
    assert town.coop("patient", "consent", "--preset", "all-research", "--key", lost)[0] == 1


@pytest.mark.flow
def test_without_a_trust_file_nothing_is_called_verified_and_with_a_wrong_one_nothing_passes(
    town: Town,
):
    other = town.folder / "other.key"
    _, _, code = new_code("cleveland")
    with hospital(town):
        town.good("patient", "new", "--code", code, "--key", other)
    key = ("--key", other)
    blind = town.coop("patient", "consent", "--preset", "refuse", *key, COOP_TRUST_FILE=None)
    unverified = blind[1] if blind[0] == 0 else None
    assert unverified is not None, blind[2]
    assert not unverified["verified"]
    stranger = SigningKey.generate().did
    wrong = Trust(hub=stranger, log=stranger, origin="town/log", sites={}, k=0)
    wrong.save(town.folder / "wrong.json")
    code, said, errors = town.coop(
        "patient", "receipts", *key, "--trust", town.folder / "wrong.json"
    )
    assert (code, said) == (1, None)
    assert "journal.bad-note" in errors


@pytest.mark.flow
def test_a_researcher_proposes_lists_shows_and_cancels(town: Town):
    key = ("--key", town.folder / "researcher.key")
    code, _, errors = town.coop("study", "propose", STUDY_FILE, *key)
    assert (code, "key file" in errors) == (1, True)
    made = town.good("study", "propose", STUDY_FILE, *key, "--new-key")
    assert made["state"] == "proposed"
    study_id = made["study_id"]
    assert town.good("study", "list")["studies"][0]["digest"] == made["digest"]
    assert town.good("study", "show", study_id)["document"] == made["document"]
    code, _, errors = town.coop("study", "train", study_id)
    assert code == 1
    assert "training.below-quorum" in errors
    code, _, errors = town.coop("study", "cancel", study_id, COOP_API_KEY=None)
    assert (code, "COOP_API_KEY" in errors) == (1, True)
    assert town.good("study", "cancel", study_id)["state"] == "cancelled"
    assert town.coop("study", "show", "absent")[0] == 1
    assert town.coop("study", "propose", town.folder / "absent.yaml")[0] == 2


@pytest.mark.flow
def test_a_backup_of_the_running_hub_restores_to_the_same_log_elsewhere(town: Town):
    before = town.good("hub", "status")
    assert before["answers"] == "yes" or "superlink" in before["answers"].lower()
    assert (before["legal_mode"], list(before["sites"])) == ("ehds", ["cleveland"])
    target = town.folder / "backup"
    assert town.good("hub", "backup", target)["database_included"]
    assert town.coop("hub", "backup", target)[0] == 1
    fresh = {"COOP_STATE": str(town.folder / "restored")}
    restored = town.good("hub", "restore", target, **fresh)
    assert restored["log_entries"] == before["log_size"]
    after = town.good("hub", "status", **fresh)
    assert {n: after[n] for n in ("trust", "log_size", "studies")} == {
        n: before[n] for n in ("trust", "log_size", "studies")
    }
    assert town.coop("hub", "restore", target, **fresh)[0] == 1


@pytest.mark.flow
def test_the_hub_answers_over_tls_only_to_who_pins_its_authority(town: Town):
    with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as stranger:
        stranger.get(f"{town.url}/healthz")
    with town.client() as client:
        assert client.get("/healthz") == {"status": "ok"}
        shut = client._http.post("/v1/fleet/control/run")
        assert shut.status_code == 404


@pytest.mark.flow
def test_a_stopped_hub_answers_who_waits_ends_with_0_and_leaves_no_process(town: Town):
    state, port = town.folder / "second", free_port()
    settings = {
        **town.environment,
        "COOP_STATE": str(state),
        "COOP_PORT": str(port),
        "COOP_HUB_URL": f"https://127.0.0.1:{port}",
        "COOP_CA_FILE": str(state / "tls" / "ca.crt"),
    }
    assert town.good("hub", "init", "--legal-mode", "strictest", **settings)
    with running(settings, town.folder) as process:
        key = SigningKey.generate()
        database = Database(f"sqlite:///{state / 'coop.sqlite'}")
        with database.unit_of_work() as connection:
            token = members.create_invite(connection, "geneva", now=now())
        database.close()
        with Client(settings["COOP_HUB_URL"], state / "tls" / "ca.crt", key=key) as client:
            client.post("/v1/members/join", members.join_request(token, "geneva", key, _ssh_key()))
            answers: list[Any] = []
            waiting = threading.Thread(
                target=lambda: answers.append(
                    client.get("/v1/sites/geneva/checkpoints", since=0, wait=25)
                )
            )
            waiting.start()
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            waiting.join(20)
        assert answers
        assert answers[0]["entries"] == []
        assert process.wait(30) == 0
    named = str(state / "superlink").encode()
    lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not [line for line in lines if named in line]


@pytest.mark.flow
def test_a_second_hub_on_the_port_or_the_folder_says_so_and_ends(town: Town):
    code, said, errors = town.coop("hub", "run", COOP_PORT="0")
    assert (code, said) == (1, None)
    assert "process.already-running" in errors
    other = ("--state", town.folder / "other")
    assert town.coop("hub", "init", "--legal-mode", "ehds", *other)[0] == 0
    code, said, errors = town.coop("hub", "run", *other)
    assert (code, said) == (1, None)
    assert "hub.port-taken" in errors


def test_an_invitation_without_a_hub_leaves_no_folder(town: Town):
    absent = town.folder / "absent"
    code, _, errors = town.coop("hospital", "invite", "northern", "--hub-folder", absent)
    assert (code, "coop hub init" in errors, absent.exists()) == (1, True, False)


def test_the_keys_to_trust_are_saved_and_a_certificate_that_is_not_trusted_is_named(town: Town):
    file = town.folder / "saved-trust.json"
    assert town.coop("hub", "status", "--save-trust", file)[0] == 0
    assert Trust.load(file).hub == HubFolder.open(town.state).hub_key.did
    code, _, errors = town.coop("study", "list", COOP_CA_FILE=None)
    assert (code, "certificate that is not trusted" in errors) == (1, True)
    code, _, errors = town.coop("study", "list", COOP_CA_FILE=str(file))
    assert (code, "holds no certificate authority" in errors) == (1, True)


def test_a_setting_that_cannot_be_is_named_and_exits_2(town: Town):
    for name, value, expected in (("COOP_PORT", "x", 2), ("COOP_DATABASE_URL", "oracle://x", 1)):
        code, said, errors = town.coop("hub", "status", **{name: value})
        assert (code, said, name in errors, "Traceback" in errors) == (expected, None, True, False)
    assert town.coop("hub", "status", COOP_PORT="")[0] == 0


def test_wrong_usage_exits_2_and_a_refusal_1(tmp_path: Path):
    def run(*arguments: str) -> int:
        absent = environment({"COOP_STATE": str(tmp_path / "absent")})
        done = subprocess.run(
            [COOP, "hub", *arguments], env=absent, capture_output=True, check=False
        )
        return done.returncode

    assert run("init") == 2
    assert run("init", "--legal-mode", "none") == 2
    assert run("fly") == 2
    assert run("status") == 1


def test_an_init_never_touches_a_hub_or_the_rest_of_one(tmp_path: Path):
    settings = Settings(state=tmp_path / "hub")
    made = HubFolder.init(settings, legal_mode=LegalMode.HIPAA, origin="a/log", now=now())
    assert HubFolder.open(settings.state).hub_key.did == made.hub_key.did
    (settings.state / "hub.json").unlink()
    with pytest.raises(HubFolderError):
        HubFolder.init(settings, legal_mode=LegalMode.HIPAA, origin="a/log", now=now())


def test_a_backup_with_a_changed_missing_or_added_file_restores_nothing(tmp_path: Path):
    state = tmp_path / "state"
    (state / "tls").mkdir(parents=True)
    (state / "hub.key").write_text("seed")
    (state / "tls" / "ca.crt").write_text("certificate")
    with sqlite3.connect(state / "coop.sqlite") as connection:
        connection.execute("CREATE TABLE t (n INTEGER)")
        connection.execute("INSERT INTO t VALUES (7)")
    connection.close()
    report = backup_folder(state, tmp_path / "b")
    assert report["files"] == 3
    with pytest.raises(BackupTargetError):
        backup_folder(state, tmp_path / "b")

    def damaged(act: Any) -> None:
        copy = tmp_path / f"c{time.monotonic_ns()}"
        backup_folder(state, copy)
        act(copy)
        with pytest.raises(BackupError):
            restore_folder(copy, tmp_path / "r")
        assert not (tmp_path / "r").exists()

    with pytest.raises(BackupError, match=r"site\.key is missing"):
        restore_folder(tmp_path / "b", tmp_path / "r", needs="site.key")
    damaged(lambda copy: (copy / "hub.key").write_text("other"))
    damaged(lambda copy: (copy / "hub.key").unlink())
    damaged(lambda copy: (copy / "added").write_text("x"))
    damaged(lambda copy: (copy / "backup.json").unlink())
    restore_folder(tmp_path / "b", tmp_path / "r")
    with sqlite3.connect(tmp_path / "r" / "coop.sqlite") as connection:
        assert connection.execute("SELECT n FROM t").fetchone() == (7,)
    connection.close()
    with pytest.raises(BackupTargetError):
        restore_folder(tmp_path / "b", tmp_path / "r")
