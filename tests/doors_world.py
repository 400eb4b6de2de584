"""The whole hub in one process, an identity provider on loopback, and one caller of each kind."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from consent.notice import shipped
from consent.policy import preset
from coop import members
from coop.canonical import document_digest
from coop.db import Database
from coop.demo.identity import Persona, Provider
from coop.documents.consent import Consent, Enrolment
from coop.documents.envelope import issue
from coop.documents.study import Study
from coop.enrolment import new_code, redemption
from coop.hub.app import create_app
from coop.hub.folder import HubFolder, LegalMode
from coop.keys import SigningKey
from coop.settings import Settings
from coop.signed_request import sign
from coop.studyfile import load_study

CLIENT_ID = "coop-portal"
STUDY_FILE = Path(__file__).parent.parent / "examples" / "heart.yaml"
PID = "a" * 26


def now() -> int:
    return int(time.time())


@contextmanager
def served(app: ASGIApp, listening: socket.socket) -> Iterator[None]:
    """`app` on a real loopback socket."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def provider() -> Iterator[Provider]:
    """A real identity provider."""
    listening = socket.create_server(("127.0.0.1", 0))
    found = Provider(
        issuer=f"http://127.0.0.1:{listening.getsockname()[1]}/idp",
        client_id=CLIENT_ID,
        client_secret="not used here",
        personas={},
    )
    with listening, served(found.application(), listening):
        yield found


def persona(name: str, *roles: str) -> Persona:
    return Persona(name=name, subject=f"sub-{name}", passphrase="unused", roles=roles)


@dataclass
class Actor:
    """Somebody who calls: with a token, a key, or nothing."""

    client: TestClient
    name: str
    principal: str
    token: str | None = None
    key: SigningKey | None = None

    def send(self, method: str, path: str, body: object = None) -> Any:
        content = b"" if body is None else orjson.dumps(body)
        headers = {} if body is None else {"content-type": "application/json"}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        if self.key is not None:
            headers |= sign(self.key, method=method, path=path, body=content, now=now())
        return self.client.request(method, path, content=content, headers=headers)

    def ok(self, method: str, path: str, body: object = None) -> Any:
        answer = self.send(method, path, body)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None


@dataclass
class World:
    """The hub, its callers, and objects that belong to some of them."""

    app: FastAPI
    client: TestClient
    settings: Settings
    folder: HubFolder
    idp: Provider
    actors: dict[str, Actor] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)

    def database(self) -> Database:
        return Database(self.settings.database())

    def sign_in(self, name: str, *roles: str) -> str:
        id_token = self.idp.id_token(persona(name, *roles), now=now())
        answer = self.client.post("/v1/token", json={"subject_token": id_token})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def invite(self, name: str) -> str:
        database = self.database()
        with database.unit_of_work() as connection:
            token = members.create_invite(connection, name, now=now())
        database.close()
        return token

    def join(self, name: str) -> Actor:
        key = SigningKey.generate()
        body = members.join_request(self.invite(name), name, key, f"ssh-key-of-{name}")
        answer = self.client.post("/v1/members/join", json=body)
        assert answer.status_code == 200, answer.text
        return Actor(self.client, name, "site", key=key)


@contextmanager
def world(folder: Path, database_url: str = "") -> Iterator[World]:
    """A hub without its SuperLink, with two hospitals, a patient with a consent, a study."""
    with provider() as idp:
        settings = Settings(state=folder / "hub", oidc_issuer=idp.issuer, database_url=database_url)
        made = HubFolder.init(
            settings, legal_mode=LegalMode.STRICTEST, origin="test.example/log", now=now()
        )
        app = create_app(settings)
        client = TestClient(app, raise_server_exceptions=False)
        here = World(app, client, settings, made, idp)
        _people(here)
        _enrol(here)
        _propose(here)
        yield here
        client.close()
        app.state.database.close()


def _people(here: World) -> None:
    client = here.client
    here.actors["public"] = Actor(client, "public", "public")
    for name, roles in {
        "ada": ("patient",),
        "bea": ("patient",),
        "rosa": ("researcher",),
        "rolf": ("researcher",),
        "staff-cleveland": ("staff:cleveland",),
        "staff-budapest": ("staff:budapest",),
        "staff-coop": ("staff:coop",),
    }.items():
        principal = {"staff": "staff", "researcher": "researcher"}.get(
            roles[0].partition(":")[0], "patient"
        )
        here.actors[name] = Actor(client, name, principal, token=here.sign_in(name, *roles))
    for name in ("cleveland", "budapest"):
        here.actors[name] = here.join(name)
    here.actors["stranger"] = Actor(client, "stranger", "patient", key=SigningKey.generate())


def _enrol(here: World) -> None:
    key = SigningKey.generate()
    here.actors["ada-key"] = Actor(here.client, "ada-key", "patient", key=key)
    code_id, _secret, text = new_code("cleveland")
    here.actors["ada"].ok("POST", "/v1/enrolments:redeem", {"redemptions": [redemption(text, key)]})
    site = here.actors["cleveland"]
    assert site.key is not None
    enrolled = Enrolment(
        site="cleveland", pid=PID, key=key.did, method="desk", custody="self", code_id=code_id
    )
    document = issue(enrolled, site.key, now())
    site.ok("POST", "/v1/sites/cleveland/enrolments", {"documents": [document]})
    granted = Consent(
        pid=PID,
        site="cleveland",
        domain="research",
        sequence=1,
        event="grant",
        policy=preset("all-research", data_class="cardiology"),
        notice=shipped()[-1].reference(),
    )
    consent = issue(granted, key, now())
    result = here.actors["ada-key"].ok("POST", "/v1/consents", {"documents": [consent]})
    assert result["results"][0]["problem"] is None, result
    here.objects |= {
        "site": "cleveland",
        "pid": PID,
        "digest": document_digest(consent),
        "enrolment": document_digest(document),
    }


def _propose(here: World) -> None:
    key = SigningKey.generate()
    study = Study.model_validate({**load_study(STUDY_FILE), "expires": now() + 86_400})
    rosa = here.actors["rosa"]
    rosa.ok("POST", "/v1/studies", {"document": issue(study, key, now())})
    made = rosa.ok("POST", "/v1/api-keys", {"label": "notebook"})
    here.actors["rosa-api-key"] = Actor(here.client, "rosa-api-key", "researcher", made["key"])
    here.objects |= {
        "study_id": study.study_id,
        "key_id": made["id"],
        "account": rosa.ok("GET", "/v1/whoami")["subject"],
    }
