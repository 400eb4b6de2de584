import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import pytest
import sqlalchemy as sa
from budget import budget
from gateway_world import DS, NOON, WEIGHTS, World, onnx_of

from consent import freshness
from coop import credentials, ledger
from coop.canonical import document_digest, sha256
from coop.db import Database
from coop.documents.envelope import open_document
from coop.documents.serving import InferenceReceipt
from coop.errors import InvariantError, NotFoundError
from coop.journal import note
from coop.money import NANO
from inference_gateway import answer as answer_module
from inference_gateway import registry_state
from inference_gateway.answer import PointRequest
from inference_gateway.commitments import request_commitment, result_sha256
from inference_gateway.models import ModelDamagedError, ModelRetiredError
from inference_gateway.oip import BadTensorError
from inference_gateway.registry_state import RegistryStaleError
from inference_gateway.scope import (
    Asker,
    OutOfScopeError,
    StudyExpiredError,
    UndeclaredUseError,
)
from inference_gateway.store import (
    REPLAY_S,
    IdempotencyMismatchError,
    ReplayExpiredError,
    inference_answer,
)

FEE = NANO // 100


@pytest.fixture
def world(sqlite_database: Database) -> World:
    return World(sqlite_database)


@pytest.fixture
def both(database: Database) -> World:
    return World(database)


def body_of(*ages: float, **more: object) -> bytes:
    rows = len(ages)
    inputs = [
        {"name": "age", "datatype": "FP64", "shape": [rows], "data": list(ages)},
        {"name": "sex", "datatype": "BYTES", "shape": [rows], "data": ["male"] * rows},
        {"name": "angina", "datatype": "BOOL", "shape": [rows], "data": [True] * rows},
    ]
    return orjson.dumps({"inputs": inputs, **more})


def ask(
    world: World,
    body: bytes | None = None,
    key: str | None = None,
    fresh: str | None = None,
    **asker: object,
):
    said = {"account_id": world.account, "key_id": None, "study_id": "heart", "purpose": DS}
    request = PointRequest(
        asker=Asker(**(said | asker)),
        model_id="heart-1",
        body=body_of(63.0) if body is None else body,
        idempotency_key=key,
        at_least_as_fresh=fresh,
    )
    return world.gateway.answer(request)


def risks(stored) -> list[float]:
    return orjson.loads(stored.response)["outputs"][0]["data"]


def spent(world: World) -> int:
    return 1000 * NANO - world.balance().posted


def test_the_risk_is_the_models_own_rounded_to_three_digits(world: World):
    ages = [63.0, 20.0, 95.5]
    x = np.array([[(min(max(age - 50, -30), 30)) / 10, 0, 1, 1, 1] for age in ages])
    expected = 1 / (1 + np.exp(-x @ np.array(WEIGHTS)))
    assert risks(ask(world, body_of(*ages))) == [round(float(value), 3) for value in expected]


def test_an_answer_is_charged_once_logged_and_its_receipt_binds_everything(both: World):
    body = body_of(63.0, 41.0)
    stored = ask(both, body)
    assert spent(both) == stored.fee_nano == 2 * FEE
    assert both.balance().held == 0
    assert both.balance("revenue:heart-1").posted == 2 * FEE
    with both.database.reading() as connection:
        document = both.journal.document(connection, stored.receipt_sha256)
        logged = both.journal.logged(connection, stored.receipt_sha256)
    opened = open_document(InferenceReceipt, document, issuers={both.hub.did})
    receipt, nonce = opened.subject, bytes.fromhex(stored.nonce)
    assert (receipt.mode, receipt.model_id, receipt.training_root) == ("point", "heart-1", "5" * 64)
    assert (receipt.study_id, receipt.purpose, receipt.fee_nano) == ("heart", DS, 2 * FEE)
    assert receipt.result_sha256 == result_sha256(nonce, stored.response)
    with both.database.reading() as connection:
        row = connection.execute(sa.select(inference_answer)).one()
    assert receipt.request_commitment == request_commitment(nonce, row.body_sha256)
    seen = note.open_checkpoint(
        receipt.checkpoint, origin=both.journal.origin, log_did=both.log.did
    )
    assert 0 < seen.size <= logged.index


def test_no_request_is_stored(world: World):
    ask(world, body_of(63.25, id="canary-id"))
    with world.database.reading() as connection:
        row = connection.execute(sa.select(inference_answer)).one()
    assert "63.25" not in str(row)


def test_the_same_key_and_body_get_the_same_bytes_for_one_charge(both: World):
    first = ask(both, key="k")
    assert ask(both, key="k") == first
    assert spent(both) == FEE


def test_the_same_key_with_another_request_is_a_mismatch(world: World):
    ask(world, key="k")
    with pytest.raises(IdempotencyMismatchError):
        ask(world, body_of(64.0), key="k")
    with pytest.raises(IdempotencyMismatchError):
        ask(world, key="k", purpose="DUO:0000042")
    assert spent(world) == FEE


def test_another_accounts_key_is_another_key(world: World):
    ask(world, key="k")
    with pytest.raises(ledger.InsufficientCreditsError):
        ask(world, key="k", account_id=world.account + 1)


def test_a_replay_needs_neither_model_nor_credits_and_expires_after_a_day(world: World):
    first = ask(world, key="k")
    world.retire()
    assert ask(world, key="k") == first
    world.clock.at += REPLAY_S + 1
    world.gateway.sweep()
    with pytest.raises(ReplayExpiredError):
        ask(world, key="k")


def test_no_credits_says_what_is_missing_and_holds_nothing(world: World):
    with pytest.raises(ledger.InsufficientCreditsError) as caught:
        ask(world, body_of(*[50.0] * 100), account_id=world.account + 1)
    assert caught.value.facts["missing_nano"] == 100 * FEE
    with world.database.reading() as connection:
        assert connection.execute(sa.select(inference_answer)).all() == []


def test_a_malformed_request_and_a_missing_feature_cost_nothing(world: World):
    with pytest.raises(BadTensorError):
        ask(world, b"{}")
    no_angina = orjson.loads(body_of(63.0))
    no_angina["inputs"].pop()
    with pytest.raises(BadTensorError):
        ask(world, orjson.dumps(no_angina))
    assert (spent(world), world.balance().held) == (0, 0)


@pytest.mark.parametrize(
    ("asker", "error"),
    [
        ({"study_id": None}, UndeclaredUseError),
        ({"purpose": None}, UndeclaredUseError),
        ({"study_id": "other"}, OutOfScopeError),
        ({"purpose": "DUO:0000042"}, OutOfScopeError),
        ({"purpose": "nonsense"}, OutOfScopeError),
    ],
)
def test_a_use_must_be_declared_and_covered(world: World, asker, error):
    with pytest.raises(error):
        ask(world, **asker)
    assert spent(world) == 0


def test_an_api_key_narrows_and_a_header_cannot_widen_it(world: World):
    with world.database.unit_of_work() as connection:
        make = credentials.create_api_key
        scope = credentials.Scope(study_id="heart", purposes=(DS,))
        _, narrow = make(connection, world.account, label="n", now=NOON, scope=scope)
        scope = credentials.Scope(study_id="other", purposes=("DUO:0000042",))
        _, other = make(connection, world.account, label="o", now=NOON, scope=scope)
    assert ask(world, key_id=narrow.id, study_id=None, purpose=None).fee_nano == FEE
    for declared in ({}, {"study_id": None}, {"purpose": None}):
        with pytest.raises(OutOfScopeError):
            ask(world, key_id=other.id, **declared)


def test_an_expired_study_answers_nothing(world: World):
    world.clock.at = world.study.expires - 1
    ask(world)
    world.clock.at = world.study.expires
    with pytest.raises(StudyExpiredError):
        ask(world)


def log_size(world: World) -> int:
    with world.database.reading() as connection:
        return world.journal.size(connection)


def test_an_answer_knows_what_was_demanded_of_it_or_there_is_none(world: World):
    ask(world)  # a view of the log is at hand, and not five seconds old
    world.release(onnx_of(WEIGHTS), model_id="m2")  # something new is logged
    newest = log_size(world)
    stored = ask(world, fresh=freshness.token(world.journal.origin, newest))
    with world.database.reading() as connection:
        receipt = world.journal.document(connection, stored.receipt_sha256)
    said = receipt["credentialSubject"]["checkpoint"]
    assert note.parse_checkpoint(said).size >= newest
    paid = spent(world)
    with pytest.raises(freshness.BehindError):
        ask(world, fresh=freshness.token(world.journal.origin, log_size(world) + 1))
    for token in ("x", freshness.token("other.test/log", 1)):
        with pytest.raises(freshness.FreshTokenError):
            ask(world, fresh=token)
    assert spent(world) == paid


def test_a_stored_answer_is_not_given_where_a_fresher_one_is_demanded(world: World):
    first = ask(world, key="k")
    token = freshness.token(world.journal.origin, log_size(world))
    with pytest.raises(IdempotencyMismatchError):
        ask(world, key="k", fresh=token)
    fresh = ask(world, key="k2", fresh=token)
    assert fresh.receipt_sha256 != first.receipt_sha256
    assert ask(world, key="k2", fresh=token) == fresh


def test_an_unknown_model_is_not_found_and_a_retired_one_says_so(world: World):
    request = PointRequest(
        asker=Asker(account_id=world.account, key_id=None, study_id="heart", purpose=DS),
        model_id="nothing",
        body=body_of(1.0),
    )
    with pytest.raises(NotFoundError):
        world.gateway.answer(request)
    world.retire()
    with pytest.raises(ModelRetiredError):
        ask(world)
    assert spent(world) == 0


def test_a_file_that_is_not_the_passports_is_never_run(world: World):
    world.release(onnx_of([9.0] * 5), named=sha256(onnx_of(WEIGHTS)).hex(), model_id="m2")
    with world.database.reading() as connection, pytest.raises(ModelDamagedError):
        world.gateway.models.found(connection, "m2")
    world.release(onnx_of([1.0] * 4), model_id="m3")
    with world.database.reading() as connection, pytest.raises(ModelDamagedError):
        world.gateway.models.found(connection, "m3")


def test_a_view_of_the_registry_is_used_for_a_minute_and_not_longer(world: World, monkeypatch):
    ask(world)

    def unreachable(*_args, **_kw):
        raise sa.exc.OperationalError("select", {}, Exception("gone"))

    monkeypatch.setattr(world.journal, "checkpoint", unreachable)
    world.clock.at += registry_state.AGE_MAX_S
    ask(world)
    world.clock.at += 1
    with pytest.raises(RegistryStaleError):
        ask(world)
    assert spent(world) == 2 * FEE


def test_a_registry_that_was_rolled_back_answers_nothing(world: World, monkeypatch):
    ask(world)
    with world.database.reading() as connection:
        old = world.journal._note(connection, 1)
    monkeypatch.setattr(world.journal, "checkpoint", lambda _connection: old)
    world.clock.at += registry_state.REFRESH_S
    with pytest.raises(RegistryStaleError):
        ask(world)


class CrashError(BaseException):
    """The process is gone: nothing may catch this."""


def test_a_failure_after_the_hold_gives_the_fee_back(both: World, monkeypatch):
    def broken(*_args):
        assert both.balance().held == FEE
        raise InvariantError("the model broke")

    monkeypatch.setattr(answer_module, "risk_of", broken)
    with pytest.raises(InvariantError):
        ask(both, key="k")
    assert (spent(both), both.balance().held) == (0, 0)
    monkeypatch.undo()
    assert ask(both, key="k").fee_nano == spent(both) == FEE


def test_a_model_retired_while_it_ran_is_neither_answered_nor_charged(world: World, monkeypatch):
    run = answer_module.risk_of

    def retire_then_run(*args):
        world.retire()
        return run(*args)

    monkeypatch.setattr(answer_module, "risk_of", retire_then_run)
    with pytest.raises(ModelRetiredError):
        ask(world)
    assert (spent(world), world.balance().held) == (0, 0)


def test_a_crash_before_the_commit_loses_the_whole_answer_and_its_hold_expires(
    world: World, monkeypatch
):
    """Killed inside the settling transaction: no charge, no receipt, no row; only the hold."""

    def die(*_args, **_kw):
        raise CrashError

    monkeypatch.setattr(world.journal, "record", die)
    monkeypatch.setattr(ledger, "void", die)
    with pytest.raises(CrashError):
        ask(world, key="k")
    monkeypatch.undo()
    assert (spent(world), world.balance().held) == (0, FEE)
    with world.database.reading() as connection:
        assert connection.execute(sa.select(inference_answer)).all() == []
    world.clock.at += answer_module.HOLD_S
    world.restart().sweep()
    assert (spent(world), world.balance().held) == (0, 0)
    ask(world, key="k")
    assert spent(world) == FEE


def test_a_crash_between_capture_and_response_loses_only_the_reply(both: World, monkeypatch):
    """Killed after the commit, before the reply: the retry gets the same answer, charged once."""
    settle = both.gateway.points._settle
    lost = []

    def settle_then_die(answered, charge):
        lost.append(settle(answered, charge))
        raise CrashError

    monkeypatch.setattr(both.gateway.points, "_settle", settle_then_die)
    with pytest.raises(CrashError):
        ask(both, key="k")
    both.restart()
    assert ask(both, key="k") == lost[0]
    assert (spent(both), both.balance().held) == (FEE, 0)


def test_equal_requests_at_once_are_one_answer_and_one_charge(both: World):
    barrier = threading.Barrier(4)

    def together(_worker: int):
        barrier.wait()
        return ask(both, key="k")

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(together, range(4)))
    assert len({stored.response for stored in answers}) == 1
    assert len({stored.receipt_sha256 for stored in answers}) == 1
    assert (spent(both), both.balance().held) == (FEE, 0)


def test_many_spenders_at_once_never_overspend(both: World):
    start, room = 1000 * NANO, 5
    ask(both, body_of(*[50.0] * 10))
    with both.database.unit_of_work() as connection:
        ledger.hold(
            connection,
            key="most of it",
            leg=ledger.Leg(
                f"researcher:{both.account}", "revenue:heart-1", start - (10 + room) * FEE
            ),
            expires=NOON + 86_400,
            now=NOON,
        )

    def spend(_worker: int) -> int:
        paid = 0
        for _ in range(budget(3, 20)):
            try:
                paid += ask(both).fee_nano
            except ledger.InsufficientCreditsError:
                continue
        return paid

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(spend, range(4))) == room * FEE
    assert both.balance().available == 0


def test_a_free_study_needs_no_credits(sqlite_database: Database):
    from gateway_world import study_of

    world = World(sqlite_database, study=study_of(fee_point_nano=0))
    stored = ask(world, key="k")
    assert (stored.fee_nano, spent(world)) == (0, 0)
    assert ask(world, key="k") == stored


def test_usage_adds_up_by_day_and_model(world: World):
    ask(world, body_of(1.0, 2.0))
    ask(world)
    world.clock.at += 86_400
    ask(world)
    day = NOON // 86_400 * 86_400
    assert [(line["day"], line["answers"], line["rows"]) for line in world.gateway.usage(1)] == [
        (day + 86_400, 1, 1),
        (day, 2, 3),
    ]
    assert sum(line["fee_nano"] for line in world.gateway.usage(1)) == spent(world)


HEADERS = {"Coop-Study": "heart", "Coop-Purpose": DS}


def test_the_route_answers_with_the_receipt_in_its_headers(world: World):
    with world.client() as client:
        reply = client.post("/v2/models/heart-1/infer", content=body_of(63.0), headers=HEADERS)
        assert reply.status_code == 200
        assert reply.json()["outputs"][0]["name"] == "risk"
        assert reply.headers["Coop-Credits-Charged"] == str(FEE)
        with world.database.reading() as connection:
            found = world.journal.document(connection, reply.headers["Coop-Receipt"])
        assert document_digest(found) == reply.headers["Coop-Receipt"]


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Authorization": "Bearer coop_sk_no_no"}, b"{}", 401),
        ({}, b"{}", 400),
        ({"Content-Encoding": "gzip"}, body_of(1.0), 400),
        ({"Inference-Header-Content-Length": "3"}, body_of(1.0), 400),
        ({"Idempotency-Key": "has space"}, body_of(1.0), 400),
        ({"Idempotency-Key": ""}, body_of(1.0), 400),
        ({"Coop-At-Least-As-Fresh": "no token"}, body_of(1.0), 400),
        ({"Coop-At-Least-As-Fresh": freshness.token("test.example/log", 10**6)}, body_of(1.0), 503),
        ({"Coop-Purpose": "DUO:0000042"}, body_of(1.0), 403),
        ({}, b"[" * 100_000, 400),
        ({}, body_of(*[1.0] * 10_001), 413),
    ],
)
def test_every_refusal_on_v2_is_a_problem_that_also_says_error(world, headers, body, status):
    with world.client() as client:
        reply = client.post("/v2/models/heart-1/infer", content=body, headers=HEADERS | headers)
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json()["error"].startswith(reply.json()["code"])


def test_no_credits_is_402_over_http(world: World):
    with world.database.unit_of_work() as connection:
        key, _ = credentials.create_api_key(
            connection, world.account + 1, label="x", now=NOON, scope=credentials.Scope()
        )
    with world.client() as client:
        poor = HEADERS | {"Authorization": f"Bearer {key}"}
        reply = client.post("/v2/models/heart-1/infer", content=body_of(1.0), headers=poor)
    assert (reply.status_code, reply.json()["missing_nano"]) == (402, FEE)


def test_health_and_metadata_are_json_for_every_client(world: World):
    with world.client() as client:
        for path, said in (
            ("/v2/health/live", {"live": True}),
            ("/v2/health/ready", {"ready": True}),
            ("/v2/models/heart-1/ready", {"name": "heart-1", "ready": True}),
        ):
            assert client.get(path).json() == said
        assert client.get("/v2").json()["extensions"] == []
        assert client.get("/v2/models/heart-1").json()["inputs"][0]["name"] == "age"
        assert client.get("/v2/models/none").status_code == 404
