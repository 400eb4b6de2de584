"""A hub with the real consent and witness routes on a loopback port, and hospitals that use it."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from consent import api, notice_api, people_api
from consent.notice import shipped
from consent.policy import preset
from consent.registry import Registry
from coop import members, problems
from coop.canonical import document_digest
from coop.client import Client
from coop.db import Database
from coop.documents.consent import Consent
from coop.documents.envelope import issue
from coop.doors import Doors
from coop.enrolment import redemption
from coop.hub import erasure_api, log_api
from coop.journal.store import Journal
from coop.journal.trust import Trust
from coop.keys import SigningKey
from federated import desk
from federated.mirror import Mirror
from federated.site import Site, patient

ORIGIN = "hub.test/log"


def clock() -> int:
    return int(time.time())


class Person:
    """A patient at one hospital, with her own key and what she signed last."""

    def __init__(self, site: str, pid: str, key: SigningKey) -> None:
        self.site, self.pid, self.key = site, pid, key
        self.sequence, self.head = 0, None

    def event(self, event: str, *, choice: str = "all-research", **changes: Any) -> dict[str, Any]:
        """The next event of her chain, signed; `follow` it once it is accepted."""
        policy = preset(choice) if event in {"grant", "amend"} else None
        subject = Consent(
            **{
                "pid": self.pid,
                "site": self.site,
                "domain": "research",
                "sequence": self.sequence + 1,
                "previous": self.head,
                "event": event,
                "policy": policy,
                "notice": shipped()[-1].reference() if policy else None,
            }
            | {name: value for name, value in changes.items() if name != "key"}
        )
        return issue(subject, changes.get("key", self.key), clock())

    def follow(self, document: dict[str, Any]) -> None:
        self.sequence, self.head = self.sequence + 1, document_digest(document)


class ConsentHub:
    """Registry, journal and doors over one database; `serve` puts them on a port.

    `now` is the clock of the registry and of the hospitals; requests are signed by the real one.
    """

    def __init__(self, database: Database, now: Callable[[], int] = clock) -> None:
        self.database = database
        self.now = now
        self.hub_key, self.log_key = SigningKey.generate(), SigningKey.generate()
        self.journal = Journal(database, self.log_key, ORIGIN, now)
        self.registry = Registry(database, self.journal, self.hub_key, now)
        self.doors = Doors(database, now=clock)
        self.site_keys: dict[str, SigningKey] = {}
        self.url = ""
        self._server: uvicorn.Server | None = None

    def join(self, name: str, key: SigningKey | None = None) -> SigningKey:
        """Make `name` a member hospital; returns its key."""
        self.site_keys[name] = key = key or SigningKey.generate()
        with self.database.unit_of_work() as connection:
            connection.execute(
                members.site_table.insert().values(
                    name=name, did=key.did, supernode_key=name, joined_at=clock(), state="active"
                )
            )
        return key

    @property
    def trust(self) -> Trust:
        sites = {name: key.did for name, key in self.site_keys.items()}
        return Trust(hub=self.hub_key.did, log=self.log_key.did, origin=ORIGIN, sites=sites, k=0)

    def app(self) -> FastAPI:
        app = FastAPI()
        problems.install(app)
        app.include_router(api.routes(self.doors, self.registry))
        app.include_router(people_api.routes(self.doors, self.registry))
        app.include_router(notice_api.routes(self.doors))
        app.include_router(log_api.witness_routes(self.doors, self.journal))
        app.include_router(erasure_api.routes(self.doors, self.journal, lambda *_: None))
        return app

    def serve(self) -> str:
        config = uvicorn.Config(
            self.app(), host="127.0.0.1", port=0, log_level="error", lifespan="off", ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the test hub did not start")
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self.url

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(timeout=10)


class Hospital:
    """A hospital's real folder, desk and mirror over HTTP."""

    def __init__(self, hub: ConsentHub, folder: Path, name: str) -> None:
        self.hub = hub
        self.site = Site.create(folder / name, name)
        hub.join(name, self.site.key)
        self.client: Client | None = None
        self.now = hub.now
        self.boot = 1000.0

    def connect(self) -> None:
        """Pin the hub as it is now, and open the mirror."""
        self.site.pin(self.hub.trust.to_json(), self.hub.url, None)
        self.client = Client(self.hub.url, None, key=self.site.key)
        self.mirror = Mirror(self.site, self.client, now=self.now, clock=lambda: self.boot)

    def enrol(self, count: int) -> list[Person]:
        """So many new patients, enrolled through desk, hub and node with keys of their own."""
        with self.site.database.unit_of_work() as connection:
            counted = sa.select(sa.func.count()).select_from(patient)
            known = connection.execute(counted).scalar() or 0
            records = [f"record {known + number}" for number in range(count)]
            rows = [{"pid": self.site.pid_of(r), "record_key": r} for r in records]
            connection.execute(patient.insert(), rows)
        return self.enrol_again(records)

    def enrol_again(self, records: list[str]) -> list[Person]:
        """Fresh keys for these records, known here already."""
        codes = desk.enrol(self.site, records, method="demo", now=self.now())
        keys = {record: SigningKey.generate() for record in records}
        sent = [redemption(codes[record], keys[record]) for record in records]
        assert all(r["problem"] is None for r in self.hub.registry.redeem(sent, None))
        waiting = self.hub.registry.pending_redemptions(self.site.name)
        said = desk.answer(self.site, waiting, now=self.now())
        results = self.hub.registry.add_enrolments(self.site.name, said.documents, said.refused)
        assert [r["state"] for r in results] == ["enrolled"] * len(records)
        return [Person(self.site.name, self.site.pid_of(r), keys[r]) for r in records]

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        self.site.close()


def grant(hub: ConsentHub, people: Sequence[Person], choice: str = "all-research") -> None:
    """Let them all grant, in one batch."""
    documents = [person.event("grant", choice=choice) for person in people]
    results = hub.registry.submit(documents)
    assert [result["problem"] for result in results] == [None] * len(people)
    for person, document in zip(people, documents, strict=True):
        person.follow(document)
