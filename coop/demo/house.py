"""The demo's house: sign-in provider, hub and four hospital nodes, each a real process."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

from coop.client import Client
from coop.demo.identity import Persona, Provider
from coop.demo.narrator import Narrator
from coop.demo.stage import Child, Stage, free_port
from coop.errors import CoopError, UnavailableError

SITES: Final = ("cleveland", "budapest", "zurich", "longbeach")
CLIENT_ID: Final = "coop-portal"
_START_S: Final = 60.0
_COOP: Final = [str(Path(sys.executable).parent / "coop")]


@dataclass(slots=True, kw_only=True)
class Hospital:
    """One hospital: its folder, process, loopback client and record numbers in file order."""

    name: str
    folder: Path
    records: list[str]
    child: Child | None = None
    local: Client | None = None

    @property
    def node(self) -> Client:
        """The client of its staff."""
        if self.local is None:
            raise UnavailableError(f"{self.name}: its node has not started")
        return self.local


@dataclass(slots=True, kw_only=True)
class House:
    """Everything that runs, and how to reach it."""

    stage: Stage
    narrator: Narrator
    provider: Provider
    client_secret: str
    hub_port: int
    portal_port: int = field(default_factory=free_port)
    hub: Child | None = None
    hospitals: dict[str, Hospital] = field(default_factory=dict)
    researcher: Client | None = None

    @property
    def researcher_client(self) -> Client:
        """Mei's client, speaking with her API key."""
        if self.researcher is None:
            raise UnavailableError("the researcher has no API key yet")
        return self.researcher

    @property
    def folder(self) -> Path:
        """The demo's folder."""
        return self.stage.folder

    @property
    def hub_url(self) -> str:
        """Where the hub answers."""
        return f"https://127.0.0.1:{self.hub_port}"

    @property
    def portal_url(self) -> str:
        """Where the portal answers while the demo serves it."""
        return f"http://localhost:{self.portal_port}"

    @property
    def ca_file(self) -> Path:
        """The hub's certificate authority."""
        return self.folder / "hub/tls/ca.crt"

    @property
    def trust_file(self) -> Path:
        """The keys that everybody in the demo pinned."""
        return self.folder / "trust.json"

    def environment(self) -> dict[str, str]:
        """The settings of the demo's processes."""
        return {
            "COOP_STATE": str(self.folder / "hub"),
            "COOP_PORT": str(self.hub_port),
            "COOP_HUB_URL": self.hub_url,
            "COOP_CA_FILE": str(self.ca_file),
            "COOP_TRUST_FILE": str(self.trust_file),
            "COOP_OIDC_ISSUER": self.provider.issuer,
            "COOP_OIDC_CLIENT_ID": CLIENT_ID,
            "COOP_OIDC_CLIENT_SECRET": self.client_secret,
            "COOP_DEMO": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def public(self) -> Client:
        """A client that is nobody in particular."""
        return Client(self.hub_url, self.ca_file)

    def session(self, name: str) -> str:
        """A session token of the persona, by the same exchange the portal makes."""
        token = self.provider.id_token(self.provider.personas[name], now=int(time.time()))
        with self.public() as client:
            return str(client.post("/v1/token", {"subject_token": token})["access_token"])

    def signed_in(self, name: str) -> Client:
        """A client signed in as the persona."""
        return Client(self.hub_url, self.ca_file, token=self.session(name))

    def save(self, name: str, content: object) -> Path:
        """Keep a receipt in the demo's folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1))  # noqa: TID251  (a copy for people; its signature is inside)
        return path

    def receipt(self, digest: str, *, mine: bool = False) -> dict[str, Any]:
        """The receipt bundle of a signed document; `mine` for what only Mei may see."""
        if mine:
            found: dict[str, Any] = self.researcher_client.get(f"/v1/receipts/{digest}")
            return found
        with self.public() as client:
            public: dict[str, Any] = client.get(f"/v1/receipts/{digest}")
        return public

    def coop(self, *arguments: str) -> dict[str, Any]:
        """Run one of our own commands as its user would, with `--json`; its answer."""
        command = [*_COOP, *arguments, "--json"]
        done = subprocess.run(  # noqa: S603  (our own program)
            command,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment()},  # noqa: TID251  (children need PATH)
        )
        if done.returncode:
            raise UnavailableError(f"coop {' '.join(arguments)} failed: {done.stderr.strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def check(self, command: str) -> None:
        """Print a command that checks the step, over the running hub."""
        self.narrator.check(f". {shown(self.folder / 'env')}; {program()} {command}")

    def check_books(self, command: str) -> None:
        """Print a command that checks the hub's books, whether it still runs or not."""
        options = f"--state {shown(self.folder / 'hub')}"
        if command.startswith("dividends"):
            options += f" --trust {shown(self.trust_file)}"
        self.narrator.check(f"{program()} {command} {options}")

    def check_file(self, kind: str, name: str) -> None:
        """Print the offline check of a kept receipt."""
        path = self.folder / "receipts" / name
        trust = shown(self.trust_file)
        self.narrator.check(f"{program()} verify {kind} {shown(path)} --trust {trust}")

    def close(self) -> None:
        """Stop every process and give back the connections."""
        for client in (self.researcher, *(one.local for one in self.hospitals.values())):
            if client is not None:
                client.close()
        self.stage.close()

    # --- starting ---------------------------------------------------------------------------------

    def compare_keys(self) -> None:
        """Each hospital hears the keys of those that joined after it from themselves."""
        keys = {
            name: hospital.node.get("/local/v1/status")["did"]
            for name, hospital in self.hospitals.items()
        }
        for name, hospital in self.hospitals.items():
            others = {other: did for other, did in keys.items() if other != name}
            hospital.node.post("/local/v1/witnesses", {"hospitals": others})
        self.narrator.say("each hospital compared the others' keys with them; they are witnesses")

    def start_hub(self) -> None:
        """Start (or start again) the hub and wait until it is ready."""
        self.hub = self.stage.start("hub", [*_COOP, "hub", "run"], self.environment())
        with self.public() as client:
            self._wait(lambda: client.get("/readyz"), "the hub")

    def start_node(self, hospital: Hospital) -> None:
        """Start (or start again) one hospital's node; returns at once."""
        (hospital.folder / "local.url").unlink(missing_ok=True)
        if hospital.local is not None:
            hospital.local.close()
            hospital.local = None
        command = [*_COOP, "hospital", "run", "--state", str(hospital.folder), "--port", "0"]
        hospital.child = self.stage.start(hospital.name, command, self.environment())

    def await_node(self, hospital: Hospital) -> None:
        """Wait until the node's loopback API answers."""
        address = hospital.folder / "local.url"
        self._wait(address.read_text, f"{hospital.name}'s node")
        token = (hospital.folder / "staff.token").read_text().strip()
        hospital.local = Client(address.read_text().strip(), token=token)
        self._wait(lambda: hospital.node.get("/local/v1/status"), f"{hospital.name}'s node")

    def await_portal(self, origin: str) -> None:
        """Wait until the portal serves its pages."""
        with httpx.Client(trust_env=False) as client:  # a proxy does not know this machine's ports
            self._wait(lambda: client.get(f"{origin}/_stcore/health").raise_for_status(), "portal")

    def _wait(self, probe: Any, what: str) -> None:  # noqa: ANN401  (any callable that raises while not ready)
        deadline = time.monotonic() + _START_S
        while True:
            self.stage.check()
            try:
                probe()
            except (CoopError, OSError, httpx.HTTPError) as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{what} did not start ({error}); see {self.folder}/logs"
                    ) from error
                time.sleep(0.1)
            else:
                return


def program() -> str:
    """Our command line as a person here would call it."""
    return "coop" if shutil.which("coop") else str(shown(Path(_COOP[0])))


def shown(path: Path) -> Path:
    """`path` as a person here would type it: relative if it lies below the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def open_house(stage: Stage, narrator: Narrator) -> House:
    """Make the hub, start it, let four hospitals join and import, start their nodes.

    The sign-in provider runs in this process; hub and nodes are children of their own.
    """
    from coop import members
    from coop.db import Database
    from coop.hub.folder import HubFolder, LegalMode
    from coop.settings import Settings
    from federated.importers import import_csv
    from federated.join import join

    house = House(
        stage=stage,
        narrator=narrator,
        provider=_provider(),
        client_secret="",
        hub_port=free_port(),
    )
    house.client_secret = house.provider.client_secret
    _serve(house.provider)
    settings = Settings(
        state=house.folder / "hub",
        port=house.hub_port,
        hub_url=house.hub_url,
        portal_url=house.portal_url,
        demo=True,
    )
    folder = HubFolder.init(
        settings, legal_mode=LegalMode.STRICTEST, origin="demo.coop/log", now=int(time.time())
    )
    house.start_hub()
    database = Database(settings.database())
    for name in SITES:
        with database.unit_of_work() as connection:
            token = members.create_invite(connection, name, now=int(time.time()))
        hospital = Hospital(name=name, folder=house.folder / name, records=_records(name))
        site = join(
            hospital.folder, name, token=token, hub_url=house.hub_url, ca_file=house.ca_file
        )
        report = import_csv(site, _data(name))
        site.close()
        narrator.say(
            f"{name}: joined with a single-use token, {report.rows} records imported, "
            f"{len(report.quarantined)} set aside"
        )
        house.hospitals[name] = hospital
        house.start_node(hospital)
    with database.reading() as connection:
        folder.trust(connection).save(house.trust_file)
    database.close()
    lines = [f"export {name}={value}" for name, value in house.environment().items()]
    (house.folder / "env").write_text("\n".join(lines) + "\n")
    (house.folder / "env").chmod(0o600)
    for hospital in house.hospitals.values():
        house.await_node(hospital)
    house.compare_keys()
    return house


def _provider() -> Provider:
    port = free_port()
    people = [
        ("ada", ("patient", "member")),
        ("bea", ("patient", "member")),
        ("mei", ("researcher",)),
        ("rui", ("staff:cleveland",)),
        ("kim", ("staff:coop",)),
    ]
    return Provider(
        issuer=f"http://127.0.0.1:{port}/idp",
        client_id=CLIENT_ID,
        client_secret=secrets.token_urlsafe(24),
        personas={
            name: Persona(
                name=name,
                subject=secrets.token_hex(16),
                passphrase="-".join(secrets.token_hex(2) for _ in range(3)),
                roles=roles,
            )
            for name, roles in people
        },
    )


def _serve(provider: Provider) -> None:
    port = int(provider.issuer.split(":")[2].split("/")[0])
    config = uvicorn.Config(
        provider.application(),
        host="127.0.0.1",
        port=port,
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="identity", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise UnavailableError("the demo's sign-in provider did not start")
        time.sleep(0.02)


def _data(name: str) -> Path:
    return Path(str(files("federated").joinpath(f"data/{name}.csv")))


def _records(name: str) -> list[str]:
    lines = _data(name).read_text().splitlines()
    return [line.split(",", 1)[0] for line in lines[1:]]
