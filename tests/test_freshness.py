"""At least as fresh: whoever was told of a withdrawal is never answered from before it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from consent_hub import ORIGIN, ConsentHub, Hospital, Person, grant

from consent import freshness
from coop.canonical import b64u, encode
from coop.client import Client
from coop.db import Database
from coop.errors import CoopError
from coop.journal.store import Journal

QUESTION = {
    "action": "train-federated",
    "purpose": "DUO:0000006",
    "data_class": "cardiology",
    "study_id": "heart",
    "organisation": "University",
    "commercial": False,
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ConsentHub]:
    database = Database(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    database.upgrade()
    hub = ConsentHub(database)
    hub.serve()
    yield hub
    hub.stop()
    database.close()


@pytest.fixture
def basel(hub: ConsentHub, tmp_path: Path) -> Iterator[Hospital]:
    hospital = Hospital(hub, tmp_path, "basel")
    hospital.connect()
    yield hospital
    hospital.close()


@pytest.fixture
def ada(hub: ConsentHub, basel: Hospital) -> Person:
    (person,) = basel.enrol(1)
    grant(hub, [person])
    return person


def decision(client: Client, person: Person, fresh: str | None = None) -> dict[str, Any]:
    body = {**QUESTION, "pid": person.pid}
    return client.post("/v1/decisions", body | ({"at_least_as_fresh": fresh} if fresh else {}))


def refusal(client: Client, person: Person, fresh: str) -> str:
    with pytest.raises(CoopError) as caught:
        decision(client, person, fresh)
    return caught.value.code


def test_a_receipts_token_is_answered_from_what_the_receipt_acknowledged(hub, basel, ada):
    before = decision(basel.client, ada)
    assert before["effect"] == "permit"
    told = hub.registry.restrict(ada.pid, "revoke", "session")
    after = decision(basel.client, ada, told["fresh"])
    assert after["effect"] == "deny"
    # What is answered names what it knows, for the next question.
    assert decision(basel.client, ada, after["fresh"])["effect"] == "deny"
    assert decision(basel.client, ada, before["fresh"])["effect"] == "deny"
    again = hub.registry.restrict(ada.pid, "revoke", "session")
    assert again["fresh"] == told["fresh"]


def test_a_hub_put_back_to_before_the_withdrawal_refuses_instead_of_permitting(
    hub, basel, ada, tmp_path
):
    with hub.database.reading() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(FULL)")
    hub.database.close()
    shutil.copy(tmp_path / "hub.sqlite", tmp_path / "backup.sqlite")
    told = hub.registry.restrict(ada.pid, "revoke", "session")
    behind = ConsentHub(Database(f"sqlite:///{tmp_path / 'backup.sqlite'}"))
    behind.journal = Journal(behind.database, hub.log_key, ORIGIN, hub.now)
    behind.registry.journal = behind.journal
    client = Client(behind.serve(), None, key=basel.site.key)
    try:
        assert decision(client, ada)["effect"] == "permit"  # it does not know better
        assert refusal(client, ada, told["fresh"]) == "consent.behind"
    finally:
        client.close()
        behind.stop()
        behind.database.close()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "AAAA",
        "0" * 513,
        freshness.token("other.test/log", 1),
        b64u(encode(b"coop/other/v1", {"origin": ORIGIN, "size": 1})),
        b64u(encode(b"coop/fresh/v1", {"origin": ORIGIN, "size": -1})),
        b64u(encode(b"coop/fresh/v1", {"origin": ORIGIN, "size": True})),
        b64u(encode(b"coop/fresh/v1", {"origin": ORIGIN})),
        b64u(b"coop/fresh/v1\x00\xff"),
        b64u(b"coop/fresh/v1\x00[]"),
    ],
)
def test_nothing_else_passes_for_a_token(basel, ada, token):
    assert refusal(basel.client, ada, token) in {"consent.fresh-token", "request.invalid"}


def test_a_signed_event_comes_with_a_token_and_a_refused_one_without(hub, basel, ada):
    document = ada.event("revoke")
    said = hub.registry.submit([document, {}])
    assert decision(basel.client, ada, said[0]["fresh"])["effect"] == "deny"
    assert said[1]["fresh"] is None
    assert "problem" in said[1]
