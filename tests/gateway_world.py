"""A small real hub for the gateway's tests: log, ledger, study, approvals, model, sites."""

from dataclasses import dataclass, field

import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient

from coop import catalogue, credentials, ledger, members, problems, studies
from coop.artefacts import onnx_file
from coop.canonical import document_digest, jcs, sha256
from coop.db import Database
from coop.documents.envelope import issue
from coop.documents.serving import CohortAnswer, CohortQuery
from coop.documents.study import (
    Approval,
    Budget,
    CategoryFeature,
    CohortGrammar,
    Evaluation,
    FeatureSchema,
    FlagFeature,
    Label,
    NumberFeature,
    Recipe,
    Study,
)
from coop.documents.training import Artefact, Passport
from coop.doors import Doors
from coop.families import LOGISTIC_REGRESSION
from coop.hub import catalogue_api, studies_api
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.ledger import Leg
from coop.money import NANO, NanoCredits
from inference_gateway import api, pricing
from inference_gateway.gateway import Gateway

NOON = 1_800_000_000
DS = "DUO:0000007"
SITES = ("budapest", "cleveland", "zurich")
WEIGHTS = [0.5, -0.25, 0.75, 1.0, -1.0]
SCHEMA = FeatureSchema(
    features=[
        NumberFeature(
            kind="number",
            name="age",
            center_micro=50_000_000,
            scale_micro=10_000_000,
            clip_micro=3_000_000,
            gain_micro=1_000_000,
        ),
        CategoryFeature(kind="category", name="sex", values=["female", "male"]),
        FlagFeature(kind="flag", name="angina", missing="refuse"),
    ],
    site_intercepts=[],
)


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> int:
        return self.at


def study_of(**changes) -> Study:
    fields = {
        "study_id": "heart",
        "version": 1,
        "title": "Heart disease from routine fields",
        "lay_summary": "We learn to tell heart disease from routine measurements.",
        "proposer": "A researcher",
        "commercial": False,
        "purpose": DS,
        "disease": "MONDO:0005010",
        "data_class": "cardiology",
        "uses": ["train-federated", "evaluate", "infer-aggregate"],
        "ethics_reference": "EC 1/2026",
        "ethics_sha256": "0" * 64,
        "features": SCHEMA,
        "label": Label(field="severity", above=0),
        "recipe": Recipe(
            family="logistic-regression",
            rounds=3,
            learning_rate_micro=1_000_000,
            clip_micro=1_000_000,
            average_last=1,
            population=500,
        ),
        "budget": Budget(
            epsilon_micro=1_000_000,
            delta_pico=1_000_000,
            training_percent=80,
            evaluation_percent=15,
            reserve_percent=5,
            cohort_rho_nano=20_000_000,
        ),
        "evaluation": Evaluation(fold_percent=20, bins=10, group_field="sex", groups=["female"]),
        "cohort": CohortGrammar(number_fields=["age"], category_fields=["sex"]),
        "fee_point_nano": NANO // 100,
        "fee_cohort_nano": NANO,
        "hospitals_quorum": 2,
        "expires": NOON + 365 * 86_400,
    }
    return Study.model_validate(fields | changes)


def onnx_of(weights: list[float]) -> bytes:
    """The model's file as the hub's release builds it."""
    vector = np.array(weights, dtype=np.float32)
    return onnx_file(LOGISTIC_REGRESSION, len(weights), {"weight": vector})


@dataclass
class World:
    """Everything a test needs to stand at the counter."""

    database: Database
    clock: Clock = field(default_factory=Clock)
    hub: SigningKey = field(default_factory=SigningKey.generate)
    log: SigningKey = field(default_factory=SigningKey.generate)
    sites: dict[str, SigningKey] = field(
        default_factory=lambda: {name: SigningKey.generate() for name in SITES}
    )
    study: Study = field(default_factory=study_of)
    account: int = 0
    api_key: str = ""
    model_id: str = "heart-1"
    origin: str = "test.example/log"

    def __post_init__(self) -> None:
        self.journal = Journal(self.database, self.log, self.origin, self.clock)
        self.gateway = self.restart()
        proposer = SigningKey.generate()
        document = issue(self.study, proposer, NOON)
        self.study_sha256 = document_digest(document)
        with self.database.unit_of_work() as connection:
            self.account = members.account_of(connection, "https://idp", "researcher")
            self.api_key, _ = credentials.create_api_key(
                connection, self.account, label="test", scope=credentials.Scope(), now=NOON
            )
            studies.propose(connection, self.journal, document, account_id=self.account, now=NOON)
            for name, key in self.sites.items():
                self._join(connection, name, key)
        self.fund(1000 * NANO)
        self.release(onnx_of(WEIGHTS))

    def restart(self) -> Gateway:
        """The gateway as after a crash: nothing in memory."""
        self.gateway = Gateway(self.database, self.journal, self.hub, now=self.clock)
        return self.gateway

    def _join(self, connection, name: str, key: SigningKey) -> None:
        connection.execute(
            members.site_table.insert(),
            {
                "name": name,
                "did": key.did,
                "supernode_key": f"key of {name}",
                "joined_at": NOON,
                "state": "active",
            },
        )
        approval = Approval(
            study_sha256=self.study_sha256,
            study_id=self.study.study_id,
            version=self.study.version,
            site=name,
            data_version=1,
            epsilon_cap_micro=max(1_000_000, self.study.budget.epsilon_micro),
            software="test",
            fab_sha256="0" * 64,
            witnesses={},
            expires=self.study.expires,
        )
        studies.approve(
            connection,
            self.journal,
            issue(approval, key, NOON),
            site=name,
            did=key.did,
            now=NOON,
        )

    def release(
        self,
        body: bytes,
        *,
        named: str | None = None,
        model_id: str = "heart-1",
        training_epsilon_micro: int = 800_000,
    ) -> None:
        """Put a model into the catalogue as the hub's release does."""
        passport = Passport(
            model_id=model_id,
            study_sha256=self.study_sha256,
            order_sha256="3" * 64,
            study_id=self.study.study_id,
            version=self.study.version,
            record_sha256="4" * 64,
            training_root="5" * 64,
            purpose=self.study.purpose,
            commercial=False,
            epsilon_micro=1_000_000,
            training_epsilon_micro=training_epsilon_micro,
            cohort_epsilon_micro=600_000,
            together_epsilon_micro=1_350_000,
            delta_pico=1_000_000,
            relation="add/remove one patient",
            accountant="exact Gaussian",
            adversary="mode A: holds against the coordinator and all other hospitals",
            mechanism=["train q=1 sigma=1 rounds=3"],
            metrics=[],
            artefacts=[Artefact(name="model.onnx", sha256=named or sha256(body).hex())],
            hospital_weights=dict.fromkeys(self.sites, 1),
            intended_use="Research only.",
        )
        document = issue(passport, self.hub, NOON)
        row = {
            "model_id": model_id,
            "study_id": self.study.study_id,
            "version": self.study.version,
            "order_sha256": f"order of {model_id}",
            "passport_digest": document_digest(document),
            "card": jcs(catalogue._card(self.study)).decode(),
            "state": "released",
        }
        file = {"model_id": model_id, "name": "model.onnx", "sha256": "", "body": body}
        with self.database.unit_of_work() as connection:
            connection.execute(catalogue.model_table.insert(), row)
            connection.execute(catalogue.artefact_table.insert(), file)
            self.journal.record(connection, "passport", document)

    def retire(self) -> None:
        table = catalogue.model_table
        with self.database.unit_of_work() as connection:
            connection.execute(table.update().values(state="retired"))

    def app(self) -> FastAPI:
        """The gateway's routes behind real doors."""
        doors = Doors(self.database, now=self.clock)
        app = FastAPI()
        problems.install(app)
        models = catalogue.Catalogue(self.journal, self.hub, self.clock)
        for router in (
            api.routes(doors, self.gateway),
            catalogue_api.routes(doors, models),
            studies_api.routes(doors, self.journal),
        ):
            app.include_router(router)
        return app

    def client(self) -> TestClient:
        """The routes called as the researcher, by API key."""
        return TestClient(self.app(), headers={"Authorization": f"Bearer {self.api_key}"})

    def fund(self, amount: int) -> None:
        with self.database.unit_of_work() as connection:
            legs = [Leg("issuance", f"researcher:{self.account}", NanoCredits(amount))]
            ledger.post(connection, key=f"issue:{amount}", kind="issue", legs=legs, now=NOON)

    def balance(self, code: str | None = None) -> ledger.Balance:
        with self.database.reading() as connection:
            return ledger.balance(connection, code or f"researcher:{self.account}")

    def answer_job(
        self, claimed, *, count: int = 40, risk_sum_micro: int | None = None, **changes
    ) -> dict:
        """A site's real signed answer to a claimed cohort job."""
        job = claimed.payload["credentialSubject"]
        sigma = pricing.sigma_micro(CohortQuery.model_validate(job["query"]))
        fields = {
            "job_id": job["job_id"],
            "job_sha256": document_digest(claimed.payload),
            "site": job["site"],
            "lease_sha256": "1" * 64,
            "count_noised": count,
            "risk_sum_noised_micro": risk_sum_micro,
            "sigma_count_micro": sigma,
            "sigma_risk_micro": None if risk_sum_micro is None else sigma,
            "rho_nano": job["query"]["rho_nano"],
            "debit_sequence": 7,
            "data_version": 1,
            "cohort_commitment": "2" * 64,
        }
        key = self.sites[changes.pop("signed_by", job["site"])]
        return issue(CohortAnswer(**(fields | changes)), key, self.clock())
