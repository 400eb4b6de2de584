"""One training round among the hospitals of `small_world`, logged in its order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from small_world import DIDS, HUB, NOW, PATIENT, SITES, World

from coop.canonical import document_digest
from coop.documents.envelope import Subject, issue
from coop.documents.study import Approval, Study
from coop.documents.training import Order, Passport, RoundReceipt, RoundRecord, RoundRequest
from coop.keys import SigningKey

ONE, TWO = "1" * 64, "2" * 64
EXPIRES = NOW + 86_400
Json = dict[str, object]


def study() -> Json:
    """A study as its proposer signs it."""
    said = {
        "study_id": "heart",
        "version": 1,
        "title": "A heart study",
        "lay_summary": "Learns from four hospitals who may have a heart disease.",
        "proposer": "A researcher",
        "commercial": False,
        "purpose": "DUO:0000006",
        "data_class": "cardiology",
        "uses": ["train-federated"],
        "ethics_reference": "EK-1",
        "ethics_sha256": ONE,
        "features": {"features": [{"kind": "flag", "name": "fbs"}], "site_intercepts": []},
        "label": {"field": "severity", "above": 0},
        "recipe": {
            "family": "logistic-regression",
            "rounds": 3,
            "learning_rate_micro": 1,
            "clip_micro": 1_000_000,
            "average_last": 1,
            "population": 100,
        },
        "budget": {
            "epsilon_micro": 1_000_000,
            "delta_pico": 1,
            "training_percent": 80,
            "evaluation_percent": 15,
            "reserve_percent": 5,
            "cohort_rho_nano": 0,
        },
        "evaluation": {"fold_percent": 20, "bins": 10, "group_field": "sex", "groups": ["all"]},
        "cohort": {"number_fields": [], "category_fields": []},
        "fee_point_nano": 1,
        "fee_cohort_nano": 1,
        "hospitals_quorum": 2,
        "expires": EXPIRES,
    }
    return issue(Study.model_validate(said), PATIENT, NOW)


@dataclass
class Round:
    """The subjects of one round; `change` replaces members of one kind before it is signed."""

    world: World
    change: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    signer: Mapping[str, SigningKey] = field(default_factory=dict)

    def chain(self) -> Json:
        """The file that `coop verify round` reads."""
        study_document = study()
        self._log("study", study_document)
        approvals = {name: self._approval(name, study_document) for name in DIDS}
        order = self._order(study_document, approvals)
        request = self._said(
            RoundRequest,
            HUB,
            {
                "order_sha256": document_digest(order),
                "phase": "train",
                "round": 1,
                "weights_sha256": ONE,
            },
        )
        receipts = {name: self._receipt(name, order, request) for name in ("cleveland", "zurich")}
        record = self._said(
            RoundRecord,
            HUB,
            {
                "order_sha256": document_digest(order),
                "phase": "train",
                "round": 1,
                "request_sha256": document_digest(request),
                "accepted": [
                    {"site": name, "receipt_sha256": document_digest(receipt)}
                    for name, receipt in receipts.items()
                ],
                "refused": [{"site": "budapest", "code": "budget.exhausted"}],
                "aggregate_sha256": TWO,
            },
        )
        self.world.witness(*DIDS)
        bundle = self._bundle
        return {
            "v": 1,
            "order": bundle(order),
            "study": bundle(study_document),
            "approvals": [bundle(approval) for approval in approvals.values()],
            "request": bundle(request),
            "receipts": [bundle(receipt) for receipt in receipts.values()],
            "record": bundle(record),
        }

    def _approval(self, name: str, study_document: Json) -> Json:
        return self._said(
            Approval,
            SITES[name],
            {
                "study_sha256": document_digest(study_document),
                "study_id": "heart",
                "version": 1,
                "site": name,
                "data_version": 1,
                "epsilon_cap_micro": 1_000_000,
                "software": "0.1.0",
                "fab_sha256": ONE,
                "witnesses": {other: did for other, did in DIDS.items() if other != name},
                "expires": EXPIRES,
            },
        )

    def _order(self, study_document: Json, approvals: Mapping[str, Json]) -> Json:
        roster = [
            {"site": name, "did": DIDS[name], "approval_sha256": document_digest(approval)}
            for name, approval in approvals.items()
        ]
        said = {
            "study_sha256": document_digest(study_document),
            "study_id": "heart",
            "version": 1,
            "roster": roster,
            "quorum": 2,
            "rounds": 3,
            "sampling_micro": 1_000_000,
            "training_sigma_micro": 15_000_000,
            "evaluation_sigma_micro": 30_000_000,
            "clip_micro": 1_000_000,
            "delta_pico": 1,
            "mode": "A",
            "honest": 1,
            "fab_sha256": ONE,
            "software": "0.1.0",
            "not_before": NOW,
            "not_after": NOW + 3600,
        }
        return self._said(Order, HUB, said)

    def _receipt(self, name: str, order: Json, request: Json) -> Json:
        said = {
            "site": name,
            "order_sha256": document_digest(order),
            "phase": "train",
            "round": 1,
            "request_sha256": document_digest(request),
            "lease_sha256": ONE,
            "release_lease_sha256": ONE,
            "cohort_commitment": ONE,
            "count_commitment": ONE,
            "debit_sequence": 1,
            "sigma_micro": 15_000_000,
            "clip_micro": 1_000_000,
            "update_sha256": TWO,
        }
        return self._said(RoundReceipt, SITES[name], said)

    def records(self, count: int) -> list[Json]:
        """Bundles of `count` chained round records of one order."""
        documents: list[Json] = []
        for number in range(1, count + 1):
            said = {
                "order_sha256": ONE,
                "phase": "train",
                "round": number,
                "request_sha256": ONE,
                "accepted": [],
                "refused": [],
                "aggregate_sha256": TWO,
            }
            if documents:
                said["previous_sha256"] = document_digest(documents[-1])
            documents.append(self._said(RoundRecord, HUB, said))
        return [self._bundle(document) for document in documents]

    def passport(self, artefacts: Mapping[str, str]) -> Json:
        """The receipt bundle of a passport naming these files."""
        said = {
            "model_id": "heart-1",
            "study_sha256": ONE,
            "order_sha256": ONE,
            "study_id": "heart",
            "version": 1,
            "record_sha256": ONE,
            "training_root": ONE,
            "purpose": "DUO:0000006",
            "commercial": False,
            "epsilon_micro": 1_000_000,
            "training_epsilon_micro": 800_000,
            "cohort_epsilon_micro": 0,
            "together_epsilon_micro": 1_000_000,
            "delta_pico": 1,
            "relation": "add/remove one patient",
            "accountant": "exact Gaussian",
            "adversary": "mode A: holds against the coordinator and all other hospitals",
            "mechanism": [],
            "metrics": [],
            "artefacts": [{"name": name, "sha256": digest} for name, digest in artefacts.items()],
            "hospital_weights": {"zurich": 1},
            "intended_use": "research only",
        }
        return self._bundle(self._said(Passport, HUB, said))

    def _said(self, kind: type[Subject], key: SigningKey, said: Mapping[str, object]) -> Json:
        subject = kind.model_validate({**said, **self.change.get(kind.kind, {})})
        document = issue(subject, self.signer.get(kind.kind, key), NOW)
        self._log(kind.kind, document)
        return document

    def _log(self, kind: str, document: Json) -> None:
        self.world.record(kind, document)

    def _bundle(self, document: Json) -> Json:
        return self.world.bundle(document_digest(document))
