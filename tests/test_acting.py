"""Whoever is recorded to decide for somebody decides with the shipped command, and says as what."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from consent_hub import ConsentHub, Hospital, clock
from typer.testing import CliRunner

from coop.cli import app
from coop.documents.envelope import issue
from coop.documents.people import Authority, Representation
from coop.keys import SigningKey
from federated import cosigning, desk
from federated.site import COSIGNING_PAUSED, enrolled, patient, put_state
from ui.console_views import recovery_rows


def test_a_recorded_parent_allows_and_stops_and_every_event_says_so(
    hub: ConsentHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COOP_HUB_URL", hub.url)
    basel = Hospital(hub, tmp_path, "basel")
    basel.connect()
    (child,) = basel.enrol(1)
    parent = SigningKey.generate()
    parent.save(tmp_path / "parent.key")
    paper = Authority(kind="birth-record", document_sha256="0" * 64)
    subject = Representation(
        pid=child.pid,
        site="basel",
        did=parent.did,
        role="parent",
        authority=paper,
        valid_from=0,
        valid_until=clock() + 1000,
    )
    (said,) = hub.registry.people.submit([issue(subject, basel.site.key, clock())])
    assert said["problem"] is None
    for command in (["consent", "--preset", "all-research"], ["object"], ["withdraw"]):
        done = CliRunner().invoke(
            app, ["patient", *command, "--key", str(tmp_path / "parent.key"), "--json"]
        )
        assert done.exit_code == 0, done.output
    events = hub.registry.history(child.pid)
    assert [event["event"] for event in events] == ["grant", "object", "revoke"]
    assert {event["actor"] for event in events} == {"representative"}
    basel.close()


def ran(*args: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["patient", *args, "--json"])
    assert done.exit_code == 0, done.output
    return dict(orjson.loads(done.stdout.splitlines()[-1]))


def test_a_patient_pauses_goes_on_and_sets_every_limit_at_the_command_line(
    hub: ConsentHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COOP_HUB_URL", hub.url)
    basel = Hospital(hub, tmp_path, "basel")
    basel.connect()
    (ann,) = basel.enrol(1)
    ann.key.save(tmp_path / "ann.key")
    mine = ("--key", str(tmp_path / "ann.key"))
    ran("consent", "--preset", "all-research", *mine)
    assert ran("resume", *mine)["event"] is None
    assert ran("suspend", *mine)["event"] == "suspend"
    assert hub.registry.overview(ann.pid)["state"] == "suspended"
    assert ran("suspend", *mine)["event"] is None
    done = CliRunner().invoke(app, ["patient", "consent", "--preset", "refuse", *mine])
    assert done.exit_code == 1
    assert "coop patient resume" in str(done.exception)
    assert ran("resume", *mine)["event"] == "resume"
    assert hub.registry.overview(ann.pid)["state"] == "active"
    limits = ("--min-cohort", "200", "--until", "2099-12-31", "--on-death", "continue")
    assert ran("consent", "--preset", "all-research", *limits, *mine)["event"] == "amend"
    newest = hub.registry.history(ann.pid)[-1]
    said = newest["proof"]["document"]["credentialSubject"]
    assert said["on_death"] == "continue"
    assert said["policy"]["min_cohort"] == 200
    ends = [
        part["end"] for part in said["policy"]["provision"]["children"] if part["type"] == "permit"
    ]
    assert ends == [4102444800]  # the last day is included: it ends as 2100 begins, in UTC
    basel.close()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--until", "2099-12-31T10:00:00"),
        ("--until", "20991231"),
        ("--until", "2001-01-01"),
        ("--until", "soon"),
        ("--on-death", "sell"),
        ("--min-cohort", "0"),
    ],
)
def test_a_limit_that_makes_no_sense_is_named_before_anything_is_sent(
    wrong: tuple[str, str], tmp_path: Path
):
    key = tmp_path / "ann.key"
    SigningKey.generate().save(key)
    asked = ["patient", "consent", "--preset", "all-research", "--key", str(key), *wrong]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert wrong[0] in done.output


def test_her_proxy_decides_for_her_until_she_ends_it(
    hub: ConsentHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COOP_HUB_URL", hub.url)
    basel = Hospital(hub, tmp_path, "basel")
    basel.connect()
    ann, ben = basel.enrol(2)
    carl = SigningKey.generate()
    for name, key in (("ann", ann.key), ("ben", ben.key), ("carl", carl)):
        key.save(tmp_path / f"{name}.key")
    theirs = ("--key", str(tmp_path / "carl.key"))
    for name in ("ann", "ben"):
        ran("proxy", carl.did, "--until", "2099-12-31", "--key", str(tmp_path / f"{name}.key"))
    done = CliRunner().invoke(app, ["patient", "consent", "--preset", "all-research", *theirs])
    assert done.exit_code == 1
    assert "--record" in str(done.exception)
    # Being named somebody's proxy changes nothing about one's own record.
    ran("proxy", ben.key.did, "--until", "2099-12-31", "--key", str(tmp_path / "ann.key"))
    assert ran("object", "--key", str(tmp_path / "ben.key"))["pid"] == ben.pid
    ran("object", "--lift", "--key", str(tmp_path / "ben.key"))
    said = ran("consent", "--preset", "all-research", "--record", ann.pid, *theirs)
    assert said["pid"] == ann.pid
    assert hub.registry.history(ann.pid)[-1]["actor"] == "representative"
    assert {event["actor"] for event in hub.registry.history(ben.pid)} == {"patient"}
    # Whoever represents her ends nobody else's right, and gets a record of his own as his own.
    done = CliRunner().invoke(
        app, ["patient", "proxy", ben.key.did, "--end", *theirs, "--record", ann.pid]
    )
    assert done.exit_code == 1
    assert "only their own" in str(done.exception)
    with basel.site.database.unit_of_work() as connection:
        row = {"pid": basel.site.pid_of("carl"), "record_key": "carl"}
        connection.execute(patient.insert(), [row])
    code = desk.enrol(basel.site, ["carl"], method="desk", now=clock())["carl"]
    done = ran("new", "--code", code, "--wait", "0", *theirs)
    assert (done["state"], done["pid"]) == ("pending", None)
    assert ran("proxy", carl.did, "--end", "--key", str(tmp_path / "ann.key"))["ended"]
    done = CliRunner().invoke(app, ["patient", "object", "--record", ann.pid, *theirs])
    assert done.exit_code == 1
    done = CliRunner().invoke(
        app, ["patient", "proxy", carl.did, "--end", "--key", str(tmp_path / "ann.key")]
    )
    assert done.exit_code == 1
    assert "nobody with this key" in str(done.exception)
    basel.close()


def test_whoever_lost_her_key_gets_a_new_one_only_with_the_letter_to_her_address(
    hub: ConsentHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COOP_HUB_URL", hub.url)
    basel = Hospital(hub, tmp_path, "basel")
    basel.connect()
    (ann,) = basel.enrol(1)
    with basel.site.database.unit_of_work() as connection:
        fresh = {"pid": basel.site.pid_of("fresh"), "record_key": "fresh"}
        connection.execute(patient.insert(), [fresh])

    def code(record: str) -> dict[str, Any]:
        asked = ["hospital", "enrol", record, "--state", str(tmp_path / "basel"), "--json"]
        return dict(orjson.loads(CliRunner().invoke(app, asked).stdout))

    assert code("fresh")["letter"] is None
    made = code("record 0")
    key = tmp_path / "new.key"
    asked = ["patient", "new", "--key", str(key), "--wait", "0", "--code", made["code"]]
    alone = CliRunner().invoke(app, asked)
    assert alone.exit_code == 1
    assert "code: must be like" in str(alone.exception)
    assert not key.exists()
    assert CliRunner().invoke(app, [*asked, "--letter", made["letter"]]).exit_code == 0
    said = desk.answer(basel.site, hub.registry.pending_redemptions("basel"), now=clock())
    hub.registry.add_enrolments("basel", said.documents, said.refused)
    assert hub.registry.enrolled(ann.pid).did == SigningKey.load(key).did
    # And the hospital, which has her address, is told to write to her while the new key waits.
    asked = ["hospital", "recoveries", "--state", str(tmp_path / "basel"), "--json"]
    assert orjson.loads(CliRunner().invoke(app, asked).stdout)["waiting"] == []  # not seen yet
    basel.mirror.sync()
    # A house that was restored may have forgotten who had a key: whoever comes gets two parts,
    # and after that whoever the log says had one.
    with basel.site.database.unit_of_work() as connection:
        connection.execute(enrolled.delete())
        assert desk.had_a_key(connection, {ann.pid, fresh["pid"]}) == {ann.pid}
        cosigning.pause(connection, clock())
        assert desk.had_a_key(connection, {ann.pid, fresh["pid"]}) == {ann.pid, fresh["pid"]}
        put_state(connection, COSIGNING_PAUSED, "")
    (waiting,) = orjson.loads(CliRunner().invoke(app, asked).stdout)["waiting"]
    assert waiting["record"] == "record 0"
    assert waiting["waits_until"] - waiting["since"] == 7 * 86400
    (row,) = recovery_rows([waiting])
    assert row["record"] == "record 0"
    later = waiting["waits_until"]
    assert desk.recoveries(basel.site, basel.mirror.speakers(), later - 1)
    assert desk.recoveries(basel.site, basel.mirror.speakers(), later) == []
    basel.close()
