"""The real hub over TLS, one real hospital node, a sign-in provider: what stands behind a portal.

No Flower and no training: the node runs its witness, desk and jobs loops and its loopback API.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gateway_world
import httpx
import sqlalchemy as sa
from coop_world import HEADER, csv_line
from serving import served

from consent.notice import shipped
from coop import ledger, members
from coop.canonical import b64u
from coop.client import Client
from coop.db import Database
from coop.demo.identity import Persona, Provider
from coop.enrolment import joined, redemption
from coop.hub.app import create_app
from coop.hub.folder import HubFolder, LegalMode
from coop.keys import SigningKey, to_sign
from coop.ledger import Leg
from coop.money import NANO, NanoCredits
from coop.settings import Settings
from federated.importers import import_csv
from federated.join import join
from federated.local_api import application
from federated.node import Node, staff_token
from federated.superlink import free_port

SITE = "cleveland"
NOTICE = shipped()[-1].reference().model_dump()
CLIENT_ID = "coop-portal"
CLIENT_SECRET = "portal-secret-of-the-test"
RECORDS = 30


def now() -> int:
    return int(time.time())


@dataclass
class House:
    """Everything behind a portal, and how to reach it."""

    folder: Path
    hub: HubFolder
    hub_url: str
    provider: Provider
    node: Node
    node_url: str
    model: str = ""

    @property
    def staff(self) -> Client:
        """A client of the hospital's own staff."""
        return Client(self.node_url, token=staff_token(self.node.site.folder))

    @contextmanager
    def invented(self, name: str) -> Iterator[None]:
        """The hub lists a hospital that does not exist."""
        database = Database(Settings(state=self.hub.path).database())
        row = {
            "name": name, "did": SigningKey.generate().did, "supernode_key": name,
            "joined_at": now(), "state": "active",
        }  # fmt: skip
        with database.unit_of_work() as connection:
            connection.execute(members.site_table.insert().values(row))
        try:
            yield
        finally:
            with database.unit_of_work() as connection:
                table = members.site_table
                connection.execute(table.delete().where(table.c.name == name))
            database.close()

    def session(self, name: str) -> str:
        """A session token at the hub for a persona."""
        token = self.provider.id_token(self.provider.personas[name], now=now())
        with Client(self.hub_url, self.hub.ca_file) as client:
            return str(client.post("/v1/token", {"subject_token": token})["access_token"])

    def client(self, name: str | None = None) -> Client:
        """A client as a persona, or as nobody in particular."""
        token = self.session(name) if name else None
        return Client(self.hub_url, self.hub.ca_file, token=token)

    @contextmanager
    def hub_database(self) -> Iterator[sa.Connection]:
        """The hub's own database, to read."""
        database = Database(Settings(state=self.hub.path).database())
        try:
            with database.reading() as connection:
                yield connection
        finally:
            database.close()

    def release(self, researcher: str) -> str:
        """Two more hospitals' study and its model in the catalogue, and credits to ask it."""
        database = Database(Settings(state=self.hub.path).database())
        sites = {name: SigningKey.generate() for name in ("budapest", "zurich")}
        world = gateway_world.World(
            database,
            hub=self.hub.hub_key,
            log=self.hub.log_key,
            origin=self.hub.origin,
            sites=sites,
        )
        with database.unit_of_work() as connection:
            subject = self.provider.personas[researcher].subject
            account = members.account_of(connection, self.provider.issuer, subject)
            leg = Leg("issuance", f"researcher:{account}", NanoCredits(NANO))
            ledger.post(connection, key=f"issue:{account}", kind="issue", legs=[leg], now=now())
        database.close()
        return world.model_id

    def patient(
        self, name: str, number: int, *, choice: str | None = None, key: SigningKey | None = None
    ) -> tuple[str, str]:
        """A persona joins with a key of her own and, if she has a choice, signs it: (pid, did)."""
        key = key or SigningKey.generate()
        with self.client(name) as client:
            sent = redemption(self.code(number), key)
            client.post("/v1/enrolments:redeem", {"redemptions": [sent]})
            deadline = time.monotonic() + 20
            mine: list[str] = []
            while not mine:
                assert time.monotonic() < deadline, "the hospital did not answer"
                consents = client.get("/v1/me/consents")["consents"]
                mine = [entry["pid"] for entry in consents if entry["did"] == key.did]
            if choice:
                asked = {"pid": mine[0], "event": "grant", "preset": choice, "notice": NOTICE}
                draft = client.post("/v1/consents:draft", asked)
                signature = key.sign(to_sign(draft["document"], draft["proof"]))
                signed = {"did": key.did, "signature": b64u(signature)}
                client.post("/v1/consents:sign", {"draft_id": draft["draft_id"], **signed})
        return mine[0], key.did

    def code(self, number: int) -> str:
        """A fresh code of the desk for the record with this number."""
        record = f"P{number:03d}"
        with self.staff as client:
            codes = client.post("/local/v1/enrolments", {"records": [record], "method": "desk"})
        return joined(str(codes["codes"][record]), codes["letters"].get(record))

    @contextmanager
    def portal(self, *arguments: str, port: int | None = None) -> Iterator[str]:
        """`coop portal` as its user starts it: a process of its own; its address."""
        port = port or free_port()
        settings = {
            "COOP_HUB_URL": self.hub_url,
            "COOP_CA_FILE": str(self.hub.ca_file),
            "COOP_OIDC_ISSUER": self.provider.issuer,
            "COOP_OIDC_CLIENT_ID": CLIENT_ID,
            "COOP_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        }
        command = [str(Path(sys.executable).parent / "coop"), "portal", "--port", str(port)]
        log = (self.folder / f"portal-{port}.log").open("wb")
        process = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, **settings},  # noqa: TID251  (children need PATH)
            stdout=log,
            stderr=log,
        )
        url = f"http://localhost:{port}"
        try:
            _until(lambda: httpx.get(url, trust_env=False).is_success, process)
            yield url
        finally:
            process.terminate()
            process.wait(10)
            log.close()

    @contextmanager
    def console(self) -> Iterator[str]:
        """The hospital's console over this node."""
        folder = self.node.site.folder
        (folder / "local.url").write_text(self.node_url)
        with self.portal("--hospital", "--state", str(folder)) as url:
            yield url


def _until(probe: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, "the portal ended"
        try:
            if probe():
                return
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "the portal did not start"
        time.sleep(0.1)


@contextmanager
def house(folder: Path, *, portal_port: int = 8460) -> Iterator[House]:
    """The house, open; passkeys sign at a portal on that port."""
    with ExitStack() as stack:
        provider = _provider(stack)
        port = free_port()
        url = f"https://127.0.0.1:{port}"
        settings = Settings(
            state=folder / "hub",
            port=port,
            hub_url=url,
            oidc_issuer=provider.issuer,
            oidc_client_id=CLIENT_ID,
            portal_port=portal_port,
        )
        hub = HubFolder.init(
            settings, legal_mode=LegalMode.STRICTEST, origin="hub.test/log", now=now()
        )
        app = create_app(settings)
        stack.enter_context(served(app, certificate=hub.path / "tls", port=port))
        stack.callback(app.state.stopping)
        node = _node(stack, folder, settings, hub)
        node_port = stack.enter_context(served(application(node)))
        yield House(
            folder=folder,
            hub=hub,
            hub_url=url,
            provider=provider,
            node=node,
            node_url=f"http://127.0.0.1:{node_port}",
        )


def _provider(stack: ExitStack) -> Provider:
    port = free_port()
    people: dict[str, tuple[str, ...]] = {
        "ada": ("patient", "member"),
        "bea": ("patient", "member"),
        "cyd": ("patient", "member"),
        "dan": ("patient", "member"),
        "eve": ("patient", "member"),
        "mei": ("researcher",),
    }
    provider = Provider(
        issuer=f"http://127.0.0.1:{port}/idp",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        personas={
            name: Persona(name=name, subject=f"s-{name}", passphrase=f"pass-{name}", roles=roles)
            for name, roles in people.items()
        },
    )
    stack.enter_context(served(provider.application(), port=port))
    return provider


def _node(stack: ExitStack, folder: Path, settings: Settings, hub: HubFolder) -> Node:
    database = Database(settings.database())
    with database.unit_of_work() as connection:
        token = members.create_invite(connection, SITE, now=now())
    database.close()
    site = join(folder / SITE, SITE, token=token, hub_url=settings.hub_url, ca_file=hub.ca_file)
    path = folder / "patients.csv"
    path.write_text(HEADER + "".join(csv_line(number) for number in range(RECORDS)))
    import_csv(site, path)
    node = Node(site)
    parts: dict[str, Any] = {"witness": node._witness, "desk": node._desk, "jobs": node._jobs}
    for name, once in parts.items():
        node._thread(name, once)
    stack.callback(site.close)
    stack.callback(node.client.close)
    stack.callback(node.stop.set)
    return node
