"""Whoever is recorded to decide for somebody decides with the shipped command, and says as what."""

from pathlib import Path

import pytest
from consent_hub import ConsentHub, Hospital, clock
from typer.testing import CliRunner

from coop.cli import app
from coop.db import Database
from coop.documents.envelope import issue
from coop.documents.people import Authority, Representation
from coop.keys import SigningKey


@pytest.fixture
def hub(sqlite_database: Database):
    made = ConsentHub(sqlite_database)
    made.url = made.serve()
    yield made
    made.stop()


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
