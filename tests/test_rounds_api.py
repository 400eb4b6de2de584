"""Ordering, following and cancelling a training run over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from doors_world import STUDY_FILE, World, now, world

from coop.canonical import document_digest
from coop.documents.envelope import issue, open_document
from coop.documents.study import Approval, Study
from coop.documents.training import Order
from coop.keys import SigningKey
from coop.studyfile import load_study
from federated.approval import software_version
from federated.fab import fab_hash


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("hub")
    with world(folder) as here:
        yield here


def ready_study(hub: World, study_id: str) -> str:
    """A study of rosa's that both hospitals approved; its order's digest after training it."""
    changes = {"study_id": study_id, "expires": now() + 86_400, "hospitals_quorum": 2}
    study = Study.model_validate({**load_study(STUDY_FILE), **changes})
    document = issue(study, SigningKey.generate(), now())
    hub.actors["rosa"].ok("POST", "/v1/studies", {"document": document})
    for name in ("cleveland", "budapest"):
        approval = Approval(
            study_sha256=document_digest(document),
            study_id=study_id,
            version=1,
            site=name,
            data_version=1,
            epsilon_cap_micro=1_000_000,
            software=software_version(),
            fab_sha256=fab_hash(),
            witnesses={},
            expires=now() + 80_000,
        )
        site = hub.actors[name]
        signed = issue(approval, site.key, now())
        site.ok("POST", f"/v1/studies/{study_id}/approvals", {"document": signed})
    return study_id


def test_the_proposer_orders_and_everybody_may_follow(hub: World):
    study = ready_study(hub, "followed")
    made = hub.actors["rosa"].ok("POST", "/v1/rounds", {"study_id": study})
    digest = document_digest(made["order"])
    assert made["run"] | {"created_at": 0, "updated_at": 0} == {
        "order_sha256": digest,
        "study_id": study,
        "version": 1,
        "state": "queued",
        "phase": "train",
        "round": 0,
        "rounds": 20,
        "error": None,
        "waiting": {},
        "created_at": 0,
        "updated_at": 0,
    }
    assert (
        hub.actors["rosa"].ok("POST", "/v1/rounds", {"study_id": study})["order"] == made["order"]
    )
    seen = hub.actors["public"].ok("GET", f"/v1/rounds/{digest}")
    order = open_document(Order, seen["order"], issuers=None).subject
    assert seen["sites"] == ["budapest", "cleveland"] == [entry.site for entry in order.roster]
    assert seen["records"] == []
    listed = hub.actors["public"].ok("GET", f"/v1/rounds?study_id={study}")["runs"]
    assert [run["order_sha256"] for run in listed] == [digest]


def test_nobody_else_orders_or_cancels(hub: World):
    study = ready_study(hub, "guarded")
    refused = hub.actors["rolf"].send("POST", "/v1/rounds", {"study_id": study})
    assert (refused.status_code, refused.json()["code"]) == (403, "training.not-your-study")
    assert (
        hub.actors["staff-cleveland"].send("POST", "/v1/rounds", {"study_id": study}).status_code
        == 403
    )
    made = hub.actors["staff-coop"].ok("POST", "/v1/rounds", {"study_id": study})
    path = f"/v1/rounds/{made['run']['order_sha256']}"
    assert hub.actors["rolf"].send("DELETE", path).status_code == 403
    assert hub.actors["rosa"].ok("DELETE", path)["state"] == "cancelled"
    again = hub.actors["rosa"].send("DELETE", path)
    assert (again.status_code, again.json()["code"]) == (409, "training.not-open")


def test_what_is_not_there_is_a_404_and_what_is_not_ready_a_409(hub: World):
    rosa = hub.actors["rosa"]
    assert rosa.send("POST", "/v1/rounds", {"study_id": "nothing"}).status_code == 404
    assert rosa.send("GET", f"/v1/rounds/{'0' * 64}").status_code == 404
    refused = rosa.send("POST", "/v1/rounds", {"study_id": hub.objects["study_id"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "training.below-quorum")
