"""A real hub over real HTTP on loopback, three real hospitals, enrolled and consenting patients.

No Flower and no Trainer: tests sign orders with the hub's key themselves, to forge them at will.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

import consent.api
import consent.people_api
from consent.notice import shipped
from consent.policy import preset
from consent.registry import Registry
from coop import members, problems, studies
from coop.catalogue import Catalogue
from coop.client import Client
from coop.db import Database
from coop.documents.consent import Consent
from coop.documents.envelope import issue, open_document
from coop.documents.provision import Policy
from coop.documents.study import Study
from coop.documents.training import ApprovalRef, Order, RoundRequest
from coop.doors import Doors
from coop.enrolment import redemption
from coop.features import columns
from coop.hub import catalogue_api, chain_api, emergency_api, log_api, members_api, studies_api
from coop.hub.folder import HubFolder, LegalMode
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.settings import Settings
from coop.studyfile import load_study
from federated import desk
from federated.accounting import plan
from federated.approval import approve, software_version
from federated.fab import fab_hash
from federated.importers import import_csv
from federated.join import join
from federated.mirror import Mirror
from federated.models import Weights, weights_digest
from federated.round import RoundInput
from federated.rounds import Rounds
from federated.site import Site

ROOT = Path(__file__).parent.parent
HOSPITAL, WITNESSES = "cleveland", ("budapest", "zurich")
PATIENTS = 60
HEADER = (
    "patient,age_years,sex,chest_pain,resting_bp_mmhg,cholesterol_mgdl,fasting_sugar_high,"
    "rest_ecg,max_heart_rate,exercise_angina,st_depression,severity\n"
)


def now() -> int:
    return int(time.time())


def csv_line(number: int) -> str:
    """A patient; every third is a woman, every second is ill."""
    sex = "female" if number % 3 == 0 else "male"
    pain = ["typical angina", "atypical angina", "non-anginal", "asymptomatic"][number % 4]
    return (
        f"P{number:03d},{40 + number % 35},{sex},{pain},{110 + number % 50},{180 + number},"
        f"{'TRUE' if number % 5 == 0 else 'FALSE'},normal,{120 + number % 60},"
        f"{'TRUE' if number % 2 else 'FALSE'},{number % 3}.5,{number % 2}\n"
    )


@dataclass
class Patient:
    """A person with a key of her own and a consent chain."""

    pid: str
    key: SigningKey
    sequence: int = 0
    head: str | None = None


@dataclass
class World:
    """Everything of one cooperative."""

    folder: HubFolder
    database: Database
    registry: Registry
    journal: Journal
    url: str
    sites: dict[str, Site] = field(default_factory=dict)
    mirrors: dict[str, Mirror] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)
    patients: list[Patient] = field(default_factory=list)
    researcher: SigningKey = field(default_factory=SigningKey.generate)

    @property
    def site(self) -> Site:
        return self.sites[HOSPITAL]

    @property
    def mirror(self) -> Mirror:
        return self.mirrors[HOSPITAL]

    @property
    def client(self) -> Client:
        return self.clients[HOSPITAL]

    def add_site(self, name: str, folder: Path, database_url: str = "") -> None:
        with self.database.unit_of_work() as connection:
            token = members.create_invite(connection, name, now=now())
        if database_url:
            site = Site.create(folder / name, name, database_url=database_url)
            asked = members.join_request(token, name, site.key, "a key")
            with Client(self.url) as client:
                trust = client.post("/v1/members/join", asked)["trust"]
            site.pin(trust, self.url, None)
        else:
            site = join(folder / name, name, token=token, hub_url=self.url, ca_file=None)
        self.sites[name] = site
        self.clients[name] = Client(self.url, key=site.key)
        self.mirrors[name] = Mirror(site, self.clients[name])

    def pin_everyone(self) -> None:
        """Pin the hospitals that joined later, as `coop hospital run` does."""
        with self.database.reading() as connection:
            trust = self.folder.trust(connection).to_json()
        for site in self.sites.values():
            site.pin(trust, self.url, None)

    def enrol(self, record_keys: list[str]) -> list[Patient]:
        codes = desk.enrol(self.site, record_keys, method="desk", now=now())
        keys = {key: SigningKey.generate() for key in record_keys}
        self.registry.redeem([redemption(codes[k], keys[k]) for k in record_keys], None)
        waiting = self.registry.pending_redemptions(HOSPITAL)
        answer = desk.answer(self.site, waiting, now=now())  # type: ignore[arg-type]
        assert answer.refused == []
        self.registry.add_enrolments(HOSPITAL, answer.documents)
        return [Patient(pid=self.site.pid_of(k), key=keys[k]) for k in record_keys]

    def say(self, event: str, patients: list[Patient], policy: Policy | None = None) -> None:
        """Consent events signed by the patients themselves."""
        documents = []
        for patient in patients:
            patient.sequence += 1
            subject = Consent(
                pid=patient.pid,
                site=HOSPITAL,
                domain="research",
                sequence=patient.sequence,
                previous=patient.head,
                event=event,
                policy=policy,
                notice=shipped()[-1].reference() if policy else None,
            )
            document = issue(subject, patient.key, now())
            patient.head = open_document(Consent, document, issuers=None).digest
            documents.append(document)
        problems_ = [result["problem"] for result in self.registry.submit(documents)]
        assert problems_ == [None] * len(patients)

    def cosign(self) -> None:
        """The other hospitals witness the log as it stands."""
        for name in WITNESSES:
            self.mirrors[name].witness()

    def newcomers(self, count: int) -> list[Patient]:
        """Fresh consenting patients with rows, to withdraw or to spend."""
        first = PATIENTS + len(self.patients)
        numbers = range(first, first + count)
        path = self.site.folder / "more.csv"
        path.write_text(HEADER + "".join(csv_line(number) for number in numbers))
        import_csv(self.site, path)
        made = self.enrol([f"P{number:03d}" for number in numbers])
        self.say("grant", made, preset("all-research"))
        self.cosign()
        self.patients += made
        return made

    # -- studies and orders ------------------------------------------------------------------------

    def study(self, study_id: str, **changes: Any) -> tuple[Study, dict[str, Any]]:
        """The demo study under another id, proposed at the hub; dotted names change parts."""
        values = load_study(ROOT / "examples" / "heart.yaml")
        values |= {"study_id": study_id, "hospitals_quorum": 1}
        values["recipe"] |= {"rounds": 4}
        values["evaluation"] |= {"fold_percent": 40}
        for name, value in changes.items():
            part, _, member = name.partition("__")
            if member:
                values[part] |= {member: value}
            else:
                values[part] = value
        study = Study.model_validate(values)
        document = issue(study, self.researcher, now())
        with self.database.unit_of_work() as connection:
            studies.propose(connection, self.journal, document, account_id=1, now=now())
        return study, document

    def approve(self, study: Study, **terms: Any) -> dict[str, Any]:
        return approve(self.site, self.client, study.study_id, now=now(), **terms)

    def order(
        self,
        study: Study,
        study_document: Mapping[str, Any],
        approval: Mapping[str, Any],
        *,
        by: SigningKey | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """An order as the hub makes them, or one with `changes`, signed by `by`."""
        split = plan(study.budget, study.recipe.schedule)
        values: dict[str, Any] = {
            "study_sha256": digest(study_document),
            "study_id": study.study_id,
            "version": study.version,
            "roster": [
                ApprovalRef(site=HOSPITAL, did=self.site.key.did, approval_sha256=digest(approval))
            ],
            "quorum": 1,
            "rounds": study.recipe.rounds,
            "sampling_micro": study.recipe.sampling_micro,
            "training_sigma_micro": split.training_sigma_micro,
            "evaluation_sigma_micro": max(split.evaluation_sigma_micro, 1),
            "clip_micro": study.recipe.clip_micro,
            "delta_pico": study.budget.delta_pico,
            "mode": "A",
            "honest": 1,
            "fab_sha256": fab_hash(),
            "software": software_version(),
            "not_before": now() - 10,
            "not_after": now() + 3600,
        }
        return issue(Order.model_validate({**values, **changes}), by or self.folder.hub_key, now())

    def request(
        self,
        order: Mapping[str, Any],
        weights: Weights,
        round_: int = 1,
        phase: str = "train",
        *,
        by: SigningKey | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        values = {
            "order_sha256": digest(order),
            "phase": phase,
            "round": round_,
            "weights_sha256": weights_digest(weights),
        }
        subject = RoundRequest.model_validate({**values, **changes})
        return issue(subject, by or self.folder.hub_key, now())

    def ready(self, study_id: str, **changes: Any) -> "Run":
        """A study proposed and approved here, with its order."""
        study, document = self.study(study_id, **changes)
        approval = self.approve(study)
        order = self.order(study, document, approval)
        return Run(world=self, study=study, document=document, approval=approval, order=order)


@dataclass
class Run:
    """An approved study and its order."""

    world: World
    study: Study
    document: dict[str, Any]
    approval: dict[str, Any]
    order: dict[str, Any]

    @property
    def weights(self) -> Weights:
        return {"weight": np.zeros(len(columns(self.study.schema_)), dtype=np.float32)}

    def input(self, round_: int = 1, phase: str = "train", **changes: Any) -> RoundInput:
        return RoundInput(
            order=self.order,
            request=self.world.request(self.order, self.weights, round_, phase, **changes),
            weights=self.weights,
        )


def digest(document: Mapping[str, Any]) -> str:
    from coop.canonical import document_digest

    return document_digest(document)


@contextmanager
def world(folder: Path, database_url: str = "") -> Iterator[World]:
    """The cooperative, running; the hospital under test keeps its rows at `database_url`."""
    settings = Settings(state=folder / "hub")
    hub = HubFolder.init(settings, legal_mode=LegalMode.STRICTEST, origin="hub.test/log", now=now())
    database = Database(settings.database())
    database.upgrade()
    journal = Journal(database, hub.log_key, hub.origin, now)
    registry = Registry(database, journal, hub.hub_key, now)
    doors = Doors(database, now=now)
    app = FastAPI()
    problems.install(app)
    for router in (
        members_api.routes(doors, hub),
        studies_api.routes(doors, journal),
        log_api.routes(doors, journal),
        log_api.witness_routes(doors, journal),
        consent.api.routes(doors, registry),
        consent.people_api.routes(doors, registry),
        catalogue_api.routes(doors, Catalogue(journal, hub.hub_key, now)),
        emergency_api.routes(doors, journal),
        chain_api.routes(doors, journal, Rounds(database, journal, hub.hub_key, now=now)),
    ):
        app.include_router(router)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with database.unit_of_work() as connection:
        _researcher(connection)
    made = World(
        folder=hub,
        database=database,
        registry=registry,
        journal=journal,
        url=f"http://127.0.0.1:{port}",
    )
    try:
        for name in (HOSPITAL, *WITNESSES):
            made.add_site(name, folder, database_url if name == HOSPITAL else "")
        made.pin_everyone()
        path = folder / "patients.csv"
        path.write_text(HEADER + "".join(csv_line(number) for number in range(PATIENTS)))
        import_csv(made.site, path)
        made.patients = made.enrol([f"P{number:03d}" for number in range(PATIENTS)])
        made.say("grant", made.patients, preset("all-research"))
        made.cosign()
        yield made
    finally:
        for client in made.clients.values():
            client.close()
        server.should_exit = True
        thread.join()
        for site in made.sites.values():
            site.close()
        database.close()


def _researcher(connection: sa.Connection) -> None:
    connection.execute(
        sa.insert(members.account_table).values(id=1, issuer="test", subject_sha256="0" * 64)
    )
