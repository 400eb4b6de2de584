"""Who may call what: every route of the real hub, every kind of caller, somebody else's object."""

import asyncio
import base64
import itertools
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from doors_world import PID, STUDY_FILE, Actor, World, now, persona, provider, world
from fastapi import APIRouter, FastAPI
from joserfc import jwt
from joserfc.jwk import OctKey

from coop import credentials, members
from coop.db import Database
from coop.documents.envelope import issue
from coop.documents.study import Study
from coop.doorbell import WAIT_MAX_S, Doorbell
from coop.doors import Doors, Principal, check_every_route
from coop.errors import InvariantError
from coop.hub.limits import BODY_BYTES_MAX, DEPTH_MAX, json_depth
from coop.keys import SigningKey
from coop.oidc import Oidc, SignInRefusedError
from coop.signed_request import SKEW_MAX_S, sign
from coop.studyfile import load_study


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("doors")) as here:
        yield here


# -- every route, every kind of caller, somebody else's object -------------------------------------

ORDER = "0" * 64
JOB = "01jfirstjobofsomebodyelse0"
QUESTION = {
    "action": "train-federated",
    "purpose": "DUO:0000006",
    "data_class": "cardiology",
    "study_id": "heart",
    "organisation": "somebody",
    "commercial": False,
}
FOREIGN: dict[str, tuple[str, object, tuple[str, ...]]] = {
    # route: (path with somebody else's object, a body that passes validation, strangers to it)
    "GET /v1/sites/{site}/checkpoints": ("/v1/sites/cleveland/checkpoints", None, ("budapest",)),
    "POST /v1/sites/{site}/cosignatures": (
        "/v1/sites/cleveland/cosignatures",
        {"checkpoint": "x"},
        ("budapest",),
    ),
    "GET /v1/sites/{site}/enrolments": ("/v1/sites/cleveland/enrolments", None, ("budapest",)),
    "POST /v1/sites/{site}/enrolments": (
        "/v1/sites/cleveland/enrolments",
        {"documents": []},
        ("budapest",),
    ),
    "POST /v1/sites/{site}/jobs:claim": ("/v1/sites/cleveland/jobs:claim", {}, ("budapest",)),
    "PUT /v1/sites/{site}/jobs/{job_id}/attempts/{attempt}/result": (
        f"/v1/sites/cleveland/jobs/{JOB}/attempts/1/result",
        {"refused": "site.busy"},
        ("budapest",),
    ),
    "POST /v1/sites/{site}/emergencies": (
        "/v1/sites/cleveland/emergencies",
        {"document": {}},
        ("budapest",),
    ),
    "POST /v1/sites/{site}/erasures": (
        "/v1/sites/cleveland/erasures",
        {"document": {}, "pid": PID},
        ("budapest",),
    ),
    "GET /v1/consents/{pid}": (
        f"/v1/consents/{PID}",
        None,
        ("bea", "stranger", "staff-budapest", "staff-coop", "budapest"),
    ),
    "GET /v1/consents/{pid}/history": (f"/v1/consents/{PID}/history", None, ("bea", "stranger")),
    "POST /v1/consents/{pid}/revoke": (
        f"/v1/consents/{PID}/revoke",
        {},
        ("bea", "stranger", "staff-budapest", "staff-coop"),
    ),
    "POST /v1/consents/{pid}/suspend": (
        f"/v1/consents/{PID}/suspend",
        {},
        ("bea", "stranger", "staff-budapest", "staff-coop"),
    ),
    "POST /v1/consents/{pid}/reject": (
        f"/v1/consents/{PID}/reject",
        {},
        ("bea", "stranger", "staff-budapest", "staff-coop"),
    ),
    "POST /v1/consents/{pid}/object": (
        f"/v1/consents/{PID}/object",
        {},
        ("bea", "stranger", "staff-budapest", "staff-coop"),
    ),
    "GET /v1/keys/{pid}": (f"/v1/keys/{PID}", None, ("bea", "stranger")),
    "POST /v1/keys/{pid}/revoke-all": (
        f"/v1/keys/{PID}/revoke-all",
        {},
        ("bea", "stranger", "staff-budapest", "staff-coop"),
    ),
    "POST /v1/keys/{pid}/end": (
        f"/v1/keys/{PID}/end",
        {"representation": "0" * 64},
        ("bea", "stranger", "staff-budapest", "staff-coop"),
    ),
    "POST /v1/consents:draft": (
        "/v1/consents:draft",
        {"pid": PID, "event": "revoke"},
        ("bea", "stranger"),
    ),
    "POST /v1/consents:sign": (
        "/v1/consents:sign",
        {"draft_id": "0" * 32, "did": "did:key:z6Mk", "signature": "AA"},
        ("bea", "stranger"),
    ),
    "POST /v1/decisions": (
        "/v1/decisions",
        {**QUESTION, "pid": PID},
        ("bea", "stranger", "staff-budapest", "staff-coop", "budapest"),
    ),
    "GET /fhir/Consent/{id}": (
        f"/fhir/Consent/{PID}-research",
        None,
        ("bea", "stranger", "staff-budapest", "staff-coop", "budapest"),
    ),
    "POST /fhir/Consent/{id}/$revoke": (
        f"/fhir/Consent/{PID}-research/$revoke",
        None,
        ("bea", "stranger", "staff-budapest", "staff-coop"),
    ),
    "GET /v1/me/uses": (f"/v1/me/uses?pid={PID}", None, ("bea", "stranger")),
    "DELETE /v1/api-keys/{key_id}": ("/v1/api-keys/{key_id}", None, ("rolf",)),
    "DELETE /v1/studies/{study_id}": (
        "/v1/studies/{study_id}",
        None,
        ("rolf", "staff-cleveland", "staff-budapest"),
    ),
    "POST /v1/studies/{study_id}/approvals": (
        "/v1/studies/{study_id}/approvals",
        {"document": {}},
        ("budapest",),
    ),
    "POST /v1/rounds": (
        "/v1/rounds",
        {"study_id": "{study_id}"},
        ("rolf", "staff-cleveland", "staff-budapest"),
    ),
    "DELETE /v1/rounds/{order_sha256}": (
        f"/v1/rounds/{ORDER}",
        None,
        ("rolf", "staff-cleveland", "staff-budapest"),
    ),
    "GET /v1/jobs/{job_id}": (f"/v1/jobs/{JOB}", None, ("rolf",)),
    "GET /v1/jobs/{job_id}/result": (f"/v1/jobs/{JOB}/result", None, ("rolf",)),
    "GET /v1/budgets": ("/v1/budgets?study={study_id}", None, ("rolf",)),
    "POST /v2/models/{model_id}/infer": (
        "/v2/models/heart/infer",
        {"inputs": []},
        ("rolf",),
    ),
    "GET /v1/receipts/{digest}": (
        "/v1/receipts/{digest}",
        None,
        ("public", "bea", "stranger", "rolf", "staff-cleveland", "cleveland", "budapest"),
    ),
    "GET /v1/ledger/accounts/{code}": (
        "/v1/ledger/accounts/researcher:{account}",
        None,
        ("public", "bea", "rolf", "staff-cleveland", "cleveland"),
    ),
    "POST /v1/ledger/issue": (
        "/v1/ledger/issue",
        {"account_id": 1, "amount_nano": 1, "key": "k"},
        ("staff-cleveland", "staff-budapest"),
    ),
    "POST /v1/models/{model_id}:retire": (
        "/v1/models/heart:retire",
        {},
        ("staff-cleveland", "staff-budapest"),
    ),
    "POST /v1/dividends/{model_id}:close": (
        "/v1/dividends/heart:close",
        {},
        ("staff-cleveland", "staff-budapest"),
    ),
}
REFUSED = {401, 403, 404}


def operations(app: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]


def filled(value: Any, objects: dict[str, str]) -> Any:
    """`value` with {name} replaced by the objects of that name."""
    text = orjson.dumps(value).decode()
    for name, thing in objects.items():
        text = text.replace(f"{{{name}}}", thing)
    return orjson.loads(text)


def plain(path: str) -> str:
    """A path with something harmless in every place."""
    places = {"site": "cleveland", "pid": PID, "digest": ORDER, "order_sha256": ORDER}
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda found: places.get(found[1], "1"), path)


def test_no_route_can_be_registered_past_the_doors(hub: World, tmp_path: Path):
    doors = Doors(Database(f"sqlite:///{tmp_path / 'd.sqlite'}"), now=now)
    with pytest.raises(InvariantError):
        doors.route(APIRouter(), "GET", "/v1/open")
    app = FastAPI()
    router = APIRouter()
    router.add_api_route("/v1/forgotten", lambda: None)
    app.include_router(router)
    with pytest.raises(InvariantError, match="forgotten"):
        check_every_route(app)
    check_every_route(hub.app)


def test_every_route_refuses_every_other_kind_of_caller(hub: World):
    """Bodies are left out: the door stands before the question what is in them."""
    wrong = []
    for (method, path, operation), actor in itertools.product(
        operations(hub.app), hub.actors.values()
    ):
        allowed = set(operation["x-principals"])
        if allowed & {"public", actor.principal}:
            continue
        status = actor.send(method, plain(path)).status_code
        if status != (401 if actor.principal == "public" else 403):
            wrong.append((method, path, actor.name, status))
    assert wrong == []


def test_no_route_gives_or_changes_somebody_elses_object(hub: World):
    wrong = []
    consent = hub.actors["ada"].ok("GET", f"/v1/consents/{PID}")
    for route, (path, body, strangers) in FOREIGN.items():
        method = route.partition(" ")[0]
        for name in strangers:
            actor = hub.actors[name]
            answer = actor.send(method, filled(path, hub.objects), filled(body, hub.objects))
            if answer.status_code not in REFUSED:
                wrong.append((route, name, answer.status_code, answer.text))
    assert wrong == []
    # Nothing changed: the consent is as it was, the study stands, the key works.
    assert hub.actors["ada"].ok("GET", f"/v1/consents/{PID}") == consent
    assert hub.actors["rosa-api-key"].ok("GET", "/v1/whoami")["key_id"] == hub.objects["key_id"]
    state = hub.actors["public"].ok("GET", f"/v1/studies/{hub.objects['study_id']}")["state"]
    assert state == "proposed"


def test_every_route_with_an_object_is_in_the_list_of_foreign_objects(hub: World):
    """A route added later must say here whose object it serves, or be public."""
    unlisted = [
        f"{method} {path}"
        for method, path, operation in operations(hub.app)
        if "{" in path
        and "public" not in operation["x-principals"]
        and f"{method} {path}" not in FOREIGN
    ]
    known = {f"{method} {path}" for method, path, _ in operations(hub.app)}
    assert unlisted == []
    assert set(FOREIGN) - known == set()


def test_no_caller_and_no_nonsense_makes_the_hub_fail(hub: World):
    """Nonsense in every place: refused by name, never a 5xx."""
    # Asked last: the hub has no SuperLink here, and no hospital answers.
    unavailable = {"/readyz", "/v1/me/uses"}
    failed = []
    for (method, path, _), actor in itertools.product(operations(hub.app), hub.actors.values()):
        if path in unavailable or (method, path) == ("DELETE", "/v1/token"):
            continue
        for body in (None, {}, {"document": {"a": [1]}}, [], "text"):
            if body is not None and method in {"GET", "DELETE"}:
                continue
            answer = actor.send(method, plain(path), body)
            if answer.status_code >= 500:
                failed.append((method, path, actor.name, body, answer.status_code, answer.text))
    assert failed == []


def test_no_number_or_text_is_too_large_for_the_hub(hub: World):
    """A 20-digit version or a NUL is the caller's mistake, not the database's."""
    huge, failed = 10**22, []
    for method, path, operation in operations(hub.app):
        names = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
        asked = "&".join(f"{name}={huge}" for name in names)
        for place in (str(huge), "%00", "%F0%9F%92%A9", "x" * 5000):
            filled_in = re.sub(r"\{(\w+)(:\w+)?\}", place, path)
            for name in ("rosa", "cleveland", "ada", "staff-coop"):
                if path in {"/v1/me/uses", "/readyz"} or (method, path) == ("DELETE", "/v1/token"):
                    continue
                answer = hub.actors[name].send(method, f"{filled_in}?{asked}")
                if answer.status_code >= 500:
                    failed.append((method, path, place[:30], answer.text))
            if "{" not in path:
                break
    bodies = [
        ("rosa", "/v1/rounds", {"study_id": "heart", "version": 2**64 - 1}),
        ("rosa", "/v1/rounds", {"study_id": "a\u0000b"}),
        ("staff-coop", "/v1/ledger/issue", {"account_id": 2**64 - 1, "amount_nano": 1, "key": "k"}),
        ("public", "/v1/token", {"subject_token": "\u0000"}),
    ]
    for name, path, body in bodies:
        answer = hub.actors[name].send("POST", path, body)
        if answer.status_code >= 500:
            failed.append(("POST", path, str(body), answer.text))
    assert failed == []


def test_every_refusal_is_a_problem_and_the_description_says_so(hub: World):
    for method, path, operation in operations(hub.app):
        assert "4XX" in operation["responses"], (method, path)
        assert "5XX" in operation["responses"], (method, path)
        assert operation["x-principals"], (method, path)
        assert operation.get("description") or operation.get("summary"), (method, path)
    answer = hub.actors["public"].send("GET", "/v1/whoami")
    assert answer.headers["content-type"] == "application/problem+json"
    problem = hub.app.openapi()["components"]["schemas"]["Problem"]
    assert set(problem["required"]) <= set(answer.json())
    ids = [operation["operationId"] for _, _, operation in operations(hub.app)]
    assert len(ids) == len(set(ids))


# -- sessions, keys, signatures --------------------------------------------------------------------


def test_one_session_acts_in_the_role_that_the_route_is_for(hub: World):
    token = hub.sign_in("both", "patient", "researcher")
    both = Actor(hub.client, "both", "both", token)
    assert both.ok("GET", "/v1/me") == {"pids": []}
    assert both.ok("GET", "/v1/api-keys") == []
    who = both.ok("GET", "/v1/whoami")
    assert who["roles"] == ["patient", "researcher"]


def test_a_person_without_a_role_is_a_patient_and_unknown_roles_are_nothing(hub: World):
    for roles in ((), ("admin", "site", "staff:", "STAFF:coop", "staff:../coop")):
        someone = Actor(hub.client, "x", "patient", hub.sign_in("nobody", *roles))
        assert someone.ok("GET", "/v1/whoami")["roles"] == ["patient"]


def test_staff_of_two_hospitals_must_choose(hub: World):
    id_token = hub.idp.id_token(persona("two", "staff:a", "staff:b"), now=now())
    answer = hub.client.post("/v1/token", json={"subject_token": id_token})
    assert (answer.status_code, answer.json()["code"]) == (403, "members.several-hospitals")


@pytest.mark.parametrize("path", ["/v1/whoami", "/v1/studies"])
@pytest.mark.parametrize(
    "value",
    [
        "Bearer coop_st_" + "A" * 43,
        "Bearer coop_sk_000000000000_" + "A" * 43,
        "Bearer coop_sk_",
        "Bearer",
        "Bearer ",
        "Basic cm9zYTpyb3Nh",
        "Bearer " + "x" * 4000,
        "coop_st_x",
    ],
)
def test_bad_credentials_are_refused_even_where_none_are_needed(hub: World, path: str, value: str):
    answer = hub.client.get(path, headers={"authorization": value})
    assert answer.status_code == 401
    assert answer.json()["code"] == "doors.bad-credentials"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_session_of_another_hub_is_worth_nothing(hub: World, tmp_path: Path):
    other = Database(f"sqlite:///{tmp_path / 'other.sqlite'}")
    other.upgrade()
    with other.unit_of_work() as connection:
        account = members.account_of(connection, "issuer", "sub")
        token, _ = credentials.open_session(connection, account, roles=["researcher"], now=now())
    other.close()
    answer = hub.client.get("/v1/whoami", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401


def test_a_session_ends_at_the_very_second_and_at_sign_out(hub: World, database: Database):
    start = 1_800_000_000
    with database.unit_of_work() as connection:
        account = members.account_of(connection, "issuer", "sub")
        token, session = credentials.open_session(connection, account, roles=["patient"], now=start)
        live = session.expires - 1
        assert credentials.find_session(connection, token, live) is not None
        assert credentials.find_session(connection, token, session.expires) is None
    someone = Actor(hub.client, "x", "patient", hub.sign_in("leaving", "patient"))
    someone.ok("DELETE", "/v1/token")
    assert someone.send("GET", "/v1/whoami").status_code == 401


def test_an_api_key_works_until_it_is_revoked_or_expires_and_makes_no_keys(hub: World):
    rosa = hub.actors["rosa"]
    made = rosa.ok("POST", "/v1/api-keys", {"label": "short", "study_id": "heart"})
    holder = Actor(hub.client, "holder", "researcher", made["key"])
    assert holder.ok("GET", "/v1/whoami")["key_id"] == made["id"]
    assert holder.send("POST", "/v1/api-keys", {"label": "more"}).status_code == 403
    assert holder.send("DELETE", f"/v1/api-keys/{made['id']}").status_code == 403
    shown = next(key for key in rosa.ok("GET", "/v1/api-keys") if key["id"] == made["id"])
    assert "key" not in shown
    rosa.ok("DELETE", f"/v1/api-keys/{made['id']}")
    assert holder.send("GET", "/v1/whoami").status_code == 401


def test_api_keys_expire_at_the_very_second(database: Database):
    start = 1_800_000_000
    with database.unit_of_work() as connection:
        scope = credentials.Scope(seconds=60)
        text, _ = credentials.create_api_key(connection, 1, label="k", scope=scope, now=start)
        assert credentials.find_api_key(connection, text, start + 59) is not None
        assert credentials.find_api_key(connection, text, start + 60) is None
        assert (
            credentials.find_api_key(connection, text[:-1] + "A", start) is None or text[-1] == "A"
        )
        secret = text.rpartition("_")[2]
        dump = "".join(str(row) for row in connection.execute(credentials.api_key_table.select()))
        assert secret not in dump


def signed(key: SigningKey, at: int | None = None, **changes: Any) -> dict[str, str]:
    asked = {"method": "GET", "path": "/v1/whoami", "body": b"", **changes}
    return sign(key, now=now() if at is None else at, **asked)


def test_a_replayed_request_is_refused(hub: World):
    headers = signed(SigningKey.generate())
    assert hub.client.get("/v1/whoami", headers=headers).status_code == 200
    again = hub.client.get("/v1/whoami", headers=headers)
    assert (again.status_code, again.json()["code"]) == (401, "doors.replayed")


def test_of_twenty_replays_at_once_one_is_answered(hub: World):
    headers = signed(SigningKey.generate())
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: hub.client.get("/v1/whoami", headers=headers), range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 19


def test_a_signature_is_for_one_method_path_body_and_time(hub: World):
    key = SigningKey.generate()
    cases = {
        "stale": signed(key, now() - SKEW_MAX_S - 2),
        "early": signed(key, now() + SKEW_MAX_S + 60),
        "other path": signed(key, path="/v1/me"),
        "other query": signed(key, path="/v1/whoami?a=1"),
        "other method": signed(key, method="POST"),
        "other body": signed(key, body=b"{}"),
        "other key": {**signed(key), "Coop-Did": SigningKey.generate().did},
        "no nonce": {**signed(key), "Coop-Nonce": ""},
        "other nonce": {**signed(key), "Coop-Nonce": "0" * 32},
        "no signature": {**signed(key), "Coop-Signature": ""},
        "signature and token": {**signed(key), "Authorization": "Bearer coop_st_x"},
        "not a did": {**signed(key), "Coop-Did": "did:web:example"},
        "endless time": {**signed(key), "Coop-Time": "9" * 5000},
    }
    for name, headers in cases.items():
        answer = hub.client.get("/v1/whoami", headers=headers)
        assert answer.status_code == 401, name


def test_a_hospital_is_known_by_its_key_and_acts_for_itself_only(hub: World):
    cleveland = hub.actors["cleveland"]
    who = cleveland.ok("GET", "/v1/whoami")
    assert (who["principal"], who["subject"]) == ("site", "cleveland")
    assert cleveland.send("GET", "/v1/sites/cleveland/checkpoints").status_code == 200
    for site in ("budapest", "nowhere"):
        assert cleveland.send("GET", f"/v1/sites/{site}/checkpoints").status_code == 404


def test_the_owner_sees_her_receipt_by_account_and_by_key(hub: World):
    public = hub.actors["public"]
    consent, enrolment = (f"/v1/receipts/{hub.objects[name]}" for name in ("digest", "enrolment"))
    for name in ("ada", "ada-key"):
        assert hub.actors[name].ok("GET", consent)["kind"] == "consent"
        bundle = hub.actors[name].ok("GET", enrolment)
        assert public.ok("POST", "/v1/receipts:verify", {"bundle": bundle})["steps"]
        # The whole proof of a consent carries the enrolment that names its signer.
        proof = hub.actors[name].ok("GET", f"/v1/consents/{PID}/history")["events"][0]["proof"]
        assert len(public.ok("POST", "/v1/receipts:verify", {"bundle": proof})["steps"]) > 2
    for stranger in ("public", "bea", "rosa", "budapest"):
        assert hub.actors[stranger].send("GET", enrolment).status_code == 404
    forged = {**bundle, "salt": "0" * 64}
    assert public.send("POST", "/v1/receipts:verify", {"bundle": forged}).status_code == 403


# -- joining ---------------------------------------------------------------------------------------


def test_of_twenty_hospitals_with_one_token_one_joins(hub: World):
    token = hub.invite("crowded")
    bodies = [
        members.join_request(token, "crowded", SigningKey.generate(), f"key-{number}")
        for number in range(20)
    ]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda b: hub.client.post("/v1/members/join", json=b), bodies))
    assert sorted(answer.status_code for answer in answers) == [200] + [403] * 19
    winner = next(b for b, a in zip(bodies, answers, strict=True) if a.status_code == 200)
    sites = hub.actors["public"].ok("GET", "/v1/members/sites")["sites"]
    assert [s["did"] for s in sites if s["name"] == "crowded"] == [winner["did"]]
    # Its answer was lost: the same keys get it again, and nothing new happens.
    assert hub.client.post("/v1/members/join", json=winner).status_code == 200
    other = {**winner, "supernode_key": "another"}
    assert hub.client.post("/v1/members/join", json=other).status_code == 403


def test_a_join_needs_a_live_token_for_this_name_and_the_key_itself(database: Database):
    start = 1_800_000_000
    key = SigningKey.generate()
    with database.unit_of_work() as connection:
        token = members.create_invite(connection, "geneva", now=start)
        good = members.join_request(token, "geneva", key, "k")
        others_proof = members.join_request(token, "geneva", SigningKey.generate(), "k")["proof"]
        bad = [
            ({**good, "proof": others_proof}, start),
            ({**good, "did": SigningKey.generate().did}, start),
            (members.join_request(token, "basel", key, "k"), start),
            (members.join_request("coop_join_x", "geneva", key, "k"), start),
            (good, start + members.INVITE_S),
        ]
        for request, at in bad:
            with pytest.raises(members.CoopError):
                members.redeem_invite(connection, request, now=at)
        joined = members.redeem_invite(connection, good, now=start + members.INVITE_S - 1)
        assert members.site_dids(connection) == {"geneva": key.did}
        assert joined.state == "active"
        with pytest.raises(members.ConflictError):
            members.create_invite(connection, "geneva", now=start)
        for name in ("coop", "hub", "../x", "A", ""):
            with pytest.raises(members.InvalidInputError):
                members.create_invite(connection, name, now=start)


def test_a_joining_hospital_pins_the_hubs_keys(hub: World):
    token = hub.invite("pinning")
    key = SigningKey.generate()
    body = members.join_request(token, "pinning", key, "k")
    trust = hub.client.post("/v1/members/join", json=body).json()["trust"]
    assert trust["hub"] == hub.folder.hub_key.did
    assert trust["log"] == hub.folder.log_key.did
    assert trust["sites"]["pinning"] == key.did
    assert trust["k"] == 2


# -- signing in ------------------------------------------------------------------------------------


def b64(value: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()


def test_only_a_live_token_of_our_issuer_for_us_signs_in(hub: World):
    idp = hub.idp
    good = {
        "iss": idp.issuer,
        "aud": idp.client_id,
        "sub": "sub-eve",
        "iat": now(),
        "exp": now() + 600,
        "roles": ["staff:coop"],
    }

    def token(key: Any = None, alg: str = "ES256", kid: str | None = None, **claims: Any) -> str:
        kept = {name: value for name, value in {**good, **claims}.items() if value is not ...}
        chosen = key or idp._key
        header = {"alg": alg, "kid": kid or idp._key.kid}
        return str(jwt.encode(header, kept, chosen, algorithms=[alg]))

    none = f"{b64({'alg': 'none'})}.{b64(good)}."
    public = orjson.dumps(idp._key.as_dict(private=False))
    with provider() as other:
        foreign_key = token(other._key)
    refused = {
        "alg none": none,
        "alg none with signature": none + token().rpartition(".")[2],
        "shared secret": token(OctKey.import_key(public), "HS256"),
        "foreign key": foreign_key,
        "wrong aud": token(aud="someone-else"),
        "no aud": token(aud=...),
        "aud list without azp": token(aud=[idp.client_id, "x"]),
        "wrong issuer": token(iss="https://evil.example"),
        "expired": token(exp=now() - 1),
        "no exp": token(exp=...),
        "exp as text": token(exp="never"),
        "from the future": token(iat=now() + 3600),
        "no subject": token(sub=""),
        "not a token": "abc",
        "empty": "",
        "payload changed": ".".join(
            [token().split(".")[0], b64({**good, "sub": "root"}), token().split(".")[2]]
        ),
    }
    for name, text in refused.items():
        answer = hub.client.post("/v1/token", json={"subject_token": text})
        assert answer.status_code == 401, (name, answer.text)
    for claims in (
        {},
        {"aud": [idp.client_id]},
        {"aud": [idp.client_id, "x"], "azp": idp.client_id},
    ):
        answer = hub.client.post("/v1/token", json={"subject_token": token(**claims)})
        assert answer.status_code == 200
        assert answer.json()["roles"] == ["staff:coop"]


def test_the_token_route_takes_the_form_of_rfc_8693(hub: World):
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "subject_token": hub.idp.id_token(persona("ada", "patient"), now=now()),
    }
    answer = hub.client.post("/v1/token", data=form)
    assert answer.json()["token_type"] == "Bearer"
    wrong = hub.client.post("/v1/token", data={**form, "grant_type": "password"})
    assert (wrong.status_code, "grant_type" in wrong.json()["detail"]) == (400, True)


def test_the_account_is_the_same_at_every_sign_in_and_holds_no_name(hub: World):
    first, second = (Actor(hub.client, "x", "p", hub.sign_in("same", "patient")) for _ in range(2))
    subjects = {actor.ok("GET", "/v1/whoami")["subject"] for actor in (first, second)}
    assert len(subjects) == 1
    database = hub.database()
    with database.reading() as connection:
        rows = str(connection.execute(members.account_table.select()).all())
    database.close()
    assert "sub-same" not in rows


def test_an_issuer_must_be_https_or_this_machine():
    for issuer in ("http://idp.example", "ftp://127.0.0.1", "idp.example"):
        with pytest.raises(SignInRefusedError):
            Oidc(issuer, "client")


# -- limits and waiting ----------------------------------------------------------------------------


def test_bodies_too_long_or_too_deep_are_refused_before_they_are_read(hub: World):
    send = hub.client.post
    long = send("/v1/members/join", content=b"x" * (BODY_BYTES_MAX + 1))
    assert (long.status_code, long.json()["code"]) == (413, "request.too-large")
    chunks = send("/v1/members/join", content=iter([b"x" * 65_536] * 20))
    assert chunks.status_code == 413
    deep = send("/v1/members/join", content=b"[" * (DEPTH_MAX + 1))
    assert (deep.status_code, deep.json()["code"]) == (400, "request.too-deep")
    batch = hub.client.post("/v1/consents", content=b" " * (BODY_BYTES_MAX + 1))
    assert batch.status_code != 413


@pytest.mark.parametrize(
    ("data", "depth"),
    [
        (b"", 0),
        (b"[]", 1),
        (b'{"a": [{"b": []}]}', 4),
        (b'"[[[["', 0),
        (rb'["\"[[", "\\", []]', 2),
        (b'["[[[', 1),
        (b'"\\', 0),
        (b"]]]][", 0),
    ],
)
def test_the_depth_of_json_counts_brackets_outside_strings(data: bytes, depth: int):
    assert max(json_depth(data), 0) == depth


def test_a_bomb_of_quotes_is_measured_in_no_time():
    started = time.perf_counter()
    json_depth(b'"\\' * (BODY_BYTES_MAX // 2))
    json_depth(b"[]" * (BODY_BYTES_MAX // 2))
    assert time.perf_counter() - started < 2


def test_a_waiting_poll_wakes_at_the_commit_and_asks_the_database_rarely(
    sqlite_database: Database,
):
    doors = Doors(sqlite_database, now=now)
    looks = 0

    def look() -> int | None:
        nonlocal looks
        looks += 1
        with sqlite_database.reading() as connection:
            return len(members.sites(connection)) or None

    def join() -> None:
        time.sleep(0.4)
        with sqlite_database.unit_of_work() as connection:
            key = SigningKey.generate()
            token = members.create_invite(connection, "geneva", now=now())
            request = members.join_request(token, "geneva", key, "k")
            members.redeem_invite(connection, request, now=now())

    async def wait() -> int | None:
        return await doors.bell.poll(look, WAIT_MAX_S)

    thread = threading.Thread(target=join)
    thread.start()
    started = time.monotonic()
    assert asyncio.run(wait()) == 1
    thread.join()
    assert time.monotonic() - started < 4
    assert looks <= 3


def test_reading_and_nonces_wake_nobody(sqlite_database: Database):
    doors = Doors(sqlite_database, now=now)
    looks: list[int] = []

    def quiet() -> None:
        with sqlite_database.reading() as connection:
            members.sites(connection)
        headers = sign(SigningKey.generate(), method="GET", path="/", body=b"", now=now())
        lower = {name.lower(): value for name, value in headers.items()}
        doors.authenticate(lower, method="GET", path="/", body=b"")

    def loud() -> None:
        with sqlite_database.unit_of_work() as connection:
            members.account_of(connection, "issuer", "sub")

    async def watch() -> list[int]:
        poll = asyncio.create_task(doors.bell.poll(lambda: looks.append(1), 2))
        counts = []
        for act in (lambda: None, quiet, loud):
            await asyncio.to_thread(act)
            await asyncio.sleep(0.3)
            counts.append(len(looks))
        await poll
        return counts

    assert asyncio.run(watch()) == [1, 1, 2]


def test_a_hundred_waiting_hospitals_hold_no_thread():
    bell = Doorbell()

    async def wait() -> float:
        started = time.monotonic()
        waiting = [asyncio.create_task(bell.poll(lambda: None, 1)) for _ in range(100)]
        await asyncio.sleep(0.2)
        before = threading.active_count()
        await asyncio.gather(*waiting)
        assert before < 60
        return time.monotonic() - started

    assert asyncio.run(wait()) < 5


def test_the_principals_of_a_route_stand_in_its_description(hub: World):
    operation = hub.app.openapi()["paths"]["/v1/studies"]["post"]
    assert operation["x-principals"] == [Principal.RESEARCHER]
    assert operation["security"] == [{"apiKey": []}, {"session": []}]


def test_a_study_that_says_no_purpose_waits_in_the_staffs_queue(hub: World):
    staff, rosa = hub.actors["staff-coop"], hub.actors["rosa"]
    assert staff.ok("GET", "/v1/studies?reading=people")["studies"] == []
    fields = {**load_study(STUDY_FILE), "study_id": "vague", "expires": now() + 86_400}
    vague = Study.model_validate({**fields, "purpose": "DUO:0000001"})
    document = issue(vague, SigningKey.generate(), now())
    assert rosa.ok("POST", "/v1/studies", {"document": document})["reading"] == "people"
    (waiting,) = staff.ok("GET", "/v1/studies?reading=people")["studies"]
    assert (waiting["study_id"], waiting["reason"]) == ("vague", "request.nothing-asserted")
    clear = staff.ok("GET", "/v1/studies?reading=clear")["studies"]
    assert [study["study_id"] for study in clear] == [hub.objects["study_id"]]
