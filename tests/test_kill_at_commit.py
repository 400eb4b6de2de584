"""A hub killed between a commit and its answer: what was committed holds, and is answered again."""

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from budget import budget
from doors_world import PID, World, now, world

from consent.notice import shipped
from consent.policy import preset
from consent.store import events_by_digest
from coop.canonical import document_digest
from coop.client import Client
from coop.documents.consent import Consent
from coop.documents.envelope import issue
from coop.errors import UnavailableError
from coop.journal.audit import audit
from coop.journal.store import Journal
from coop.keys import SigningKey

HUB = """
import os, signal, socket, sys
import uvicorn
from coop.hub.app import create_app
from coop.settings import Settings
app, deadly = create_app(Settings(state=sys.argv[1])), sys.argv[2]
async def serve(scope, receive, send):
    async def die(message):  # the answer is there, the commit was before it: not a byte leaves
        if message["type"] == "http.response.start":
            os.kill(os.getpid(), signal.SIGKILL)
        await send(message)
    mine = scope["type"] == "http" and scope["path"] == deadly
    await app(scope, receive, die if mine else send)
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(serve, lifespan="off", log_config=None, ws="none")
    uvicorn.Server(config).run([listening])
"""
CONSENTS, REVOKE = "/v1/consents", f"/v1/consents/{PID}/revoke"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as found:
        yield found


@contextmanager
def running(here: World, deadly: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A hub in a process of its own that dies before it answers `deadly`."""
    command = [sys.executable, "-c", HUB, str(here.settings.state), deadly]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        try:
            with Client(url, key=here.actors["ada-key"].key) as client:
                yield process, client
        finally:
            process.kill()


def event(here: World, name: str) -> dict[str, Any]:
    """The next event of Ada's chain, signed by her."""
    known = here.actors["ada"].ok("GET", f"/v1/consents/{PID}")
    gives = name in {"grant", "amend"}
    subject = Consent(
        pid=PID,
        site="cleveland",
        domain="research",
        sequence=known["sequence"] + 1,
        previous=known["head_sha256"],
        event=name,
        policy=preset("train-only") if gives else None,
        notice=shipped()[-1].reference() if gives else None,
    )
    key = here.actors["ada-key"].key
    assert isinstance(key, SigningKey)
    return issue(subject, key, now())


def standing(here: World) -> tuple[str, int]:
    """(state, events) as another process of the hub reads the database now."""
    said = here.actors["ada"].ok("GET", f"/v1/consents/{PID}")
    return said["state"], said["sequence"]


def committed_receipt(here: World, digest: str) -> str:
    """The digest of the receipt that was committed with an event."""
    database = here.database()
    with database.reading() as connection:
        found = events_by_digest(connection, [digest])[digest].receipt_digest
    database.close()
    return str(found)


def whole(here: World) -> None:
    database = here.database()
    journal = Journal(database, here.folder.log_key, here.folder.origin, now)
    with database.reading() as connection:
        audit(connection, journal)
    database.close()


def test_a_hub_killed_between_commit_and_answer_loses_neither_a_choice_nor_a_stop(here: World):
    amended = event(here, "amend")
    with running(here, CONSENTS) as (process, client):
        with pytest.raises(UnavailableError):
            client.post(CONSENTS, {"documents": [amended]})
        assert process.wait() == -signal.SIGKILL
    assert standing(here) == ("active", 2)
    with running(here, REVOKE) as (process, client):
        (again,) = client.post(CONSENTS, {"documents": [amended]})["results"]
        receipt = again["receipt"]["document"]
        assert document_digest(receipt) == committed_receipt(here, document_digest(amended))
        assert standing(here) == ("active", 2)
        with pytest.raises(UnavailableError):
            client.post(REVOKE)
        assert process.wait() == -signal.SIGKILL
    assert standing(here) == ("revoked", 3)
    with running(here, "") as (_, client):
        first, second = client.post(REVOKE), client.post(REVOKE)
        assert first["effective_by"] == second["effective_by"]
        assert first["receipt"]["document"] == second["receipt"]["document"]
        head = client.get(f"/v1/consents/{PID}")["head_sha256"]
        assert document_digest(first["receipt"]["document"]) == committed_receipt(here, head)
    assert standing(here) == ("revoked", 3)
    whole(here)


@pytest.mark.timeout(900)
def test_a_hub_killed_at_any_instant_keeps_what_it_answered(here: World):
    for number in range(budget(1, 40)):
        document = event(here, "resume" if number % 2 else "suspend")
        with running(here, "") as (process, client), ThreadPoolExecutor() as pool:
            client.get("/healthz")
            asked = pool.submit(client.post, CONSENTS, {"documents": [document]})
            time.sleep(secrets.randbelow(60) / 1000)
            process.kill()
            answered = asked.exception() is None
        if answered:
            assert standing(here)[1] == number + 2
        with running(here, "") as (_, client):
            (result,) = client.post(CONSENTS, {"documents": [document]})["results"]
        assert result["problem"] is None
        assert standing(here)[1] == number + 2
        if answered:
            (first,) = asked.result()["results"]
            assert first["receipt"]["document"] == result["receipt"]["document"]
    whole(here)
