"""A hub's tables with an approved study and member hospitals, for tests of orders and rounds."""

from dataclasses import dataclass, field
from pathlib import Path

from coop import members, studies
from coop.db import Database
from coop.documents.envelope import issue
from coop.documents.study import (
    Approval,
    Budget,
    CohortGrammar,
    Evaluation,
    FeatureSchema,
    FlagFeature,
    Label,
    Recipe,
    Study,
)
from coop.journal.store import Journal
from coop.keys import SigningKey
from federated.approval import software_version
from federated.fab import fab_hash
from federated.rounds import Rounds

NOW = 1_790_000_000
FAR = NOW + 10_000_000


def study_of(**changes) -> Study:
    values = {
        "study_id": "heart",
        "version": 1,
        "title": "A study for tests",
        "lay_summary": "A study that exists for tests and for nothing else.",
        "proposer": "Tests",
        "commercial": False,
        "purpose": "DUO:0000042",
        "data_class": "cardiology",
        "uses": ["train-federated", "evaluate"],
        "ethics_reference": "none",
        "ethics_sha256": "0" * 64,
        "schema_": FeatureSchema(
            features=[FlagFeature(kind="flag", name="smoker")], site_intercepts=[]
        ),
        "label": Label(field="severity", above=0),
        "recipe": Recipe(
            family="logistic-regression",
            rounds=2,
            learning_rate_micro=1_000_000,
            clip_micro=1_000_000,
            average_last=2,
            population=100,
        ),
        "budget": Budget(
            epsilon_micro=1_000_000,
            delta_pico=1_000_000,
            training_percent=80,
            evaluation_percent=15,
            reserve_percent=5,
            cohort_rho_nano=0,
        ),
        "evaluation": Evaluation(
            fold_percent=20, bins=10, group_field="sex", groups=["female", "male"]
        ),
        "cohort": CohortGrammar(number_fields=[], category_fields=[]),
        "fee_point_nano": 0,
        "fee_cohort_nano": 0,
        "hospitals_quorum": 1,
        "expires": FAR,
    }
    return Study(**{**values, **changes})


@dataclass
class TrainingWorld:
    database: Database
    now: int = NOW
    hub_key: SigningKey = field(default_factory=SigningKey.generate)
    researcher: SigningKey = field(default_factory=SigningKey.generate)
    keys: dict[str, SigningKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.journal = Journal(
            self.database, SigningKey.generate(), "test.example/log", lambda: self.now
        )
        self.rounds = Rounds(self.database, self.journal, self.hub_key, now=lambda: self.now)

    def join(self, name: str, supernode_key: str = "") -> SigningKey:
        key = self.keys[name] = SigningKey.generate()
        with self.database.unit_of_work() as connection:
            connection.execute(
                members.site_table.insert().values(
                    name=name,
                    did=key.did,
                    supernode_key=supernode_key,
                    joined_at=self.now,
                    state="active",
                )
            )
        return key

    def propose(self, study: Study, account: int = 1) -> str:
        document = issue(study, self.researcher, self.now)
        with self.database.unit_of_work() as connection:
            row = studies.propose(
                connection, self.journal, document, account_id=account, now=self.now
            )
        return row.digest

    def approve(self, study: Study, digest: str, site: str, **changes) -> None:
        values = {
            "study_sha256": digest,
            "study_id": study.study_id,
            "version": study.version,
            "site": site,
            "data_version": 1,
            "epsilon_cap_micro": 1_000_000,
            "software": software_version(),
            "fab_sha256": fab_hash(),
            "witnesses": {},
            "expires": FAR,
        }
        key = self.keys[site]
        document = issue(Approval(**{**values, **changes}), key, self.now)
        with self.database.unit_of_work() as connection:
            studies.approve(
                connection, self.journal, document, site=site, did=key.did, now=self.now
            )

    def ready(self, *sites: str, **changes) -> Study:
        study = study_of(**changes)
        digest = self.propose(study)
        for site in sites:
            self.approve(study, digest, site)
        return study


def sqlite_world(folder: Path) -> TrainingWorld:
    database = Database(f"sqlite:///{folder / 'hub.sqlite'}")
    database.upgrade()
    return TrainingWorld(database)
