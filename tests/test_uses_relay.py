import threading
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
import sqlalchemy as sa
from gateway_world import NOON, World

from consent.speakers import Speakers
from consent.store import enrolment
from coop.db import Database
from coop.documents.consent import (
    Use,
    UseRequest,
    UseStatement,
    request_uses,
    use_request_header,
)
from coop.documents.envelope import issue, open_document
from coop.keys import SigningKey
from coop.signed_request import sign
from inference_gateway import api, jobs
from inference_gateway.store import OFFLINE_S
from inference_gateway.uses import REQUEST_CHARS_MAX, WAIT_S

PID = "a" * 26
OTHER_PID = "b" * 26


@pytest.fixture
def world(sqlite_database: Database) -> World:
    world = World(sqlite_database)
    world.patient = SigningKey.generate()
    row = {"site": "zurich", "custody": "self", "digest": "0" * 64, "log_index": 0}
    with world.database.unit_of_work() as connection:
        for pid, did in ((PID, world.patient.did), (OTHER_PID, SigningKey.generate().did)):
            speakers = Speakers(
                key=did, custody="self", since=0, head="0" * 64, enrolled_at=0, enrolments=()
            )
            key = {"pid": pid, "did": did, "speakers": speakers.to_text()}
            connection.execute(enrolment.insert(), row | key)
    return world


def send(client, key: SigningKey, method: str, path: str, body: object = None, more=()):
    content = b"" if body is None else orjson.dumps(body)
    headers = sign(key, method=method, path=path, body=content, now=NOON)
    headers |= {"Content-Type": "application/json", "Authorization": ""} | dict(more)
    return client.request(method, path, content=content, headers=headers)


def ask(client, world: World, pid: str = PID, of: str | None = None):
    return ask_with(client, world, request_uses(world.patient, "zurich", of or pid, NOON), pid)


def ask_with(client, world: World, more: dict[str, str], pid: str = PID):
    return send(client, world.patient, "GET", f"/v1/me/uses?pid={pid}", more=more)


def statement(world: World, pid: str = PID, signed_by: str = "zurich") -> dict:
    use = Use(
        what="training round",
        study_id="heart",
        version=1,
        document_sha256="1" * 64,
        salt="2" * 64,
        at=NOON,
        round=1,
    )
    subject = UseStatement(site="zurich", pid=pid, uses=[use])
    return issue(subject, world.sites[signed_by], NOON)


def answer_next(client, world: World, result: dict):
    """Claim as the hospital until the job is there, then answer it."""
    key = world.sites["zurich"]
    for _ in range(500):
        claimed = send(client, key, "POST", "/v1/sites/zurich/jobs:claim", {"wait": 0})
        if claimed.status_code == 200:
            break
        threading.Event().wait(0.01)
    job = claimed.json()
    assert (job["kind"], job["payload"]["pid"]) == ("uses", PID)
    request = open_document(UseRequest, job["payload"]["request"], issuers={world.patient.did})
    assert (request.subject.pid, request.at) == (PID, NOON)
    path = f"/v1/sites/zurich/jobs/{job['id']}/attempts/{job['attempt']}/result"
    return send(client, key, "PUT", path, result)


def call_in(client, world: World) -> None:
    send(client, world.sites["zurich"], "POST", "/v1/sites/zurich/jobs:claim", {"wait": 0})


def rows(world: World) -> int:
    with world.database.reading() as connection:
        count = sa.select(sa.func.count()).select_from(jobs.job)
        return int(connection.execute(count).scalar_one())


def test_a_patient_gets_her_hospitals_signed_list_and_the_hub_keeps_nothing(world: World):
    with world.client() as client, ThreadPoolExecutor(1) as pool:
        call_in(client, world)
        asked = pool.submit(ask, client, world)
        assert answer_next(client, world, {"document": statement(world)}).status_code == 200
        reply = asked.result(timeout=10)
    assert reply.status_code == 200
    site = world.sites["zurich"].did
    said = open_document(UseStatement, reply.json(), issuers={site}).subject
    assert (said.pid, said.uses[0].round) == (PID, 1)
    assert rows(world) == 0


def test_a_hospitals_refusal_comes_as_its_code(world: World):
    with world.client() as client, ThreadPoolExecutor(1) as pool:
        call_in(client, world)
        asked = pool.submit(ask, client, world)
        answer_next(client, world, {"refused": "coop.not-found"})
        reply = asked.result(timeout=10)
    assert (reply.status_code, reply.json()["code"]) == (409, "site.refused")
    assert "coop.not-found" in reply.json()["detail"]
    assert rows(world) == 0


def test_a_statement_about_another_or_by_another_is_refused(world: World):
    with world.client() as client, ThreadPoolExecutor(1) as pool:
        call_in(client, world)
        asked = pool.submit(ask, client, world)
        forged = answer_next(client, world, {"document": statement(world, signed_by="budapest")})
        assert forged.status_code == 403
        with world.database.reading() as connection:
            (job_id,) = connection.execute(sa.select(jobs.job.c.id)).scalars()
        path = f"/v1/sites/zurich/jobs/{job_id}/attempts/1/result"
        key = world.sites["zurich"]
        wrong = send(client, key, "PUT", path, {"document": statement(world, OTHER_PID)})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "uses.wrong-statement")
        assert send(client, key, "PUT", path, {"document": statement(world)}).status_code == 200
        assert asked.result(timeout=10).status_code == 200


def test_without_her_signed_request_the_hospital_is_not_even_asked(world: World):
    good = issue(UseRequest(site="zurich", pid=PID), world.patient, NOON)
    wrong = {
        "missing": {},
        "base64url": {"Coop-Use-Request": "!"},
        "ÿ": {"Coop-Use-Request": "\xff".encode("latin-1")},
        "not a use-request": {"Coop-Use-Request": "e30"},
        "too long": {"Coop-Use-Request": "e" * (REQUEST_CHARS_MAX + 1)},
        "another kind": use_request_header(statement(world)),
        "another record": request_uses(world.patient, "zurich", OTHER_PID, NOON),
        "another hospital": request_uses(world.patient, "budapest", PID, NOON),
        "altered": use_request_header(good | {"validFrom": "2030-01-01T00:00:00Z"}),
    }
    with world.client() as client:
        call_in(client, world)
        for what, header in wrong.items():
            reply = ask_with(client, world, header)
            assert (reply.status_code, reply.json()["code"]) == (400, "uses.request"), what
            assert "record's key signed just now" in reply.json()["detail"], what
    assert rows(world) == 0


def test_somebody_elses_record_and_an_unknown_one_look_alike(world: World):
    with world.client() as client:
        call_in(client, world)
        for pid in (OTHER_PID, "c" * 26):
            reply = ask(client, world, pid)
            assert (reply.status_code, reply.json()["detail"]) == (404, "pid: not found")
    assert rows(world) == 0


def test_an_offline_hospital_is_shown_as_such_at_once_with_the_time(world: World):
    with world.client() as client:
        never = ask(client, world)
        assert (never.status_code, never.json()["code"]) == (503, "site.offline")
        assert never.json()["last_seen"] == 0
        call_in(client, world)
        world.clock.at += OFFLINE_S + 1
        offline = ask(client, world)
        assert (offline.status_code, offline.json()["last_seen"]) == (503, NOON)
        assert "2027-01-15T08:00:00Z" in offline.json()["detail"]
    assert rows(world) == 0


def test_a_hospital_that_went_silent_is_offline_after_the_wait_and_nothing_stays(
    world: World, monkeypatch
):
    assert WAIT_S <= 20
    monkeypatch.setattr(api, "WAIT_S", 0)
    with world.client() as client:
        call_in(client, world)
        reply = ask(client, world)
    assert (reply.status_code, reply.json()["code"]) == (503, "site.offline")
    assert reply.json()["last_seen"] == NOON
    assert rows(world) == 0


def test_what_a_crash_left_is_erased_by_the_sweep(world: World):
    from coop.doors import Caller, Principal

    with world.client() as client:
        call_in(client, world)
    patient = Caller(principal=Principal.PATIENT, subject=world.patient.did, did=world.patient.did)
    (signed,) = request_uses(world.patient, "zurich", PID, NOON).values()
    world.gateway.uses.start(patient, PID, signed)
    world.gateway.sweep()
    assert rows(world) == 1
    world.clock.at += 61
    world.restart().sweep()
    assert rows(world) == 0


def test_a_researcher_cannot_ask_for_a_patients_uses(world: World):
    with world.client() as client:
        assert client.get("/v1/me/uses", params={"pid": PID}).status_code == 403
        assert client.get(
            "/v1/me/uses", params={"pid": PID}, headers={"Authorization": ""}
        ).is_error
