"""Errors: one family with stable codes, one mapping to the web, and no word about a patient."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel

from coop.errors import (
    ConflictError,
    CoopError,
    InvalidInputError,
    InvariantError,
    Kind,
    NotFoundError,
    broken,
)
from coop.problems import MEDIA_TYPE, install, problem_of, status_of

ROOT = Path(__file__).parent.parent
PACKAGES = ["coop", "consent", "federated", "inference_gateway", "ui"]
CODE = re.compile(r"[a-z][a-z0-9-]*\.[a-z][a-z0-9-]*")


def classes() -> list[ast.ClassDef]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return classes_of(*(path.read_text() for path in paths))


def classes_of(*sources: str) -> list[ast.ClassDef]:
    """Every class of some modules; where a code is a module's constant, its value stands there."""
    trees = [ast.parse(source) for source in sources]
    constants = {
        name: value for tree in trees for line in tree.body for name, value in assigned(line)
    }

    class Resolve(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            known = isinstance(node.ctx, ast.Load) and constants.get(node.id)
            return known if isinstance(known, ast.Constant) else node

    resolved = [node for tree in trees for node in ast.walk(Resolve().visit(tree))]
    return [node for node in resolved if isinstance(node, ast.ClassDef)]


def assigned(line: ast.stmt) -> list[tuple[str, ast.expr]]:
    match line:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [(name, value)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [(name, value)]
        case _:
            return []


def code_of(node: ast.ClassDef) -> str | None:
    for line in node.body:
        for name, value in assigned(line):
            if name == "code" and isinstance(value, ast.Constant):
                return value.value
    return None


def family(found: list[ast.ClassDef]) -> dict[str, str | None]:
    """Every class below CoopError, by name, with the code it declares itself."""
    members: dict[str, str | None] = {"CoopError": "coop.failed"}
    for _ in range(10):
        for node in found:
            if {ast.unparse(base).split(".")[-1] for base in node.bases} & set(members):
                members[node.name] = code_of(node)
    return members


def test_every_error_has_a_code_of_its_own():
    members = family(classes())
    assert len(members) > 10
    assert [name for name, code in members.items() if code is None] == []
    assert [code for code, count in Counter(members.values()).items() if count > 1] == []
    assert [code for code in members.values() if not CODE.fullmatch(str(code))] == []


def test_the_rule_above_notices_a_class_without_a_code():
    source = "X = 'a.c'\nclass AError(CoopError):\n  pass\nclass BError(AError):\n  code = "
    found = family(classes_of(source + "'a.b'\nclass CError(AError):\n  code: str = X"))
    assert found == {"CoopError": "coop.failed", "AError": None, "BError": "a.b", "CError": "a.c"}


def test_an_error_shows_its_code_and_its_sentence():
    assert str(ConflictError("someone was faster")) == "coop.conflict: someone was faster"


def test_a_broken_invariant_is_a_bug():
    with pytest.raises(InvariantError) as caught:
        broken("two and two is five")
    assert caught.value.kind is Kind.BUG


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_its_own_status(kind):
    assert 400 <= status_of(kind) < 600
    assert len({status_of(other) for other in Kind}) == len(Kind)


def test_a_problem_carries_code_and_facts():
    status, problem = problem_of(NotFoundError("there is no such model", model="m1", missing=3))
    assert status == 404
    assert problem == {
        "type": "urn:coop:problem:coop.not-found",
        "title": "There is no such thing, or it is not yours",
        "status": 404,
        "detail": "there is no such model",
        "code": "coop.not-found",
        "model": "m1",
        "missing": 3,
    }


def test_a_fact_never_replaces_a_standard_member():
    _, problem = problem_of(NotFoundError("absent", status=200, code="fine", type="x"))
    assert (problem["status"], problem["code"]) == (404, "coop.not-found")


def test_a_bug_says_nothing_of_what_it_saw():
    status, problem = problem_of(InvariantError("patient 17 has two heads", pid="17"))
    assert status == 500
    assert "17" not in str(problem)


class Body(BaseModel):
    age: int


class HungryError(CoopError):
    """Wants a rest."""

    code = "test.hungry"
    kind = Kind.TOO_MANY


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install(app)

    @app.post("/echo")
    def echo(body: Body) -> Body:
        return body

    @app.get("/fail/{what}")
    @app.get("/v2/fail/{what}")
    def fail(what: str) -> None:
        raise {
            "ours": InvalidInputError("age: must be a number"),
            "bug": InvariantError("secret 17"),
            "crash": ZeroDivisionError("secret 17"),
            "framework": HTTPException(418, "short and stout", headers={"X-Tea": "yes"}),
            "slow": HungryError("too many requests", retry_after_s=7),
        }[what]

    return TestClient(app, raise_server_exceptions=False)


def problem(response) -> dict[str, object]:
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert body["status"] == response.status_code
    assert body["type"] == f"urn:coop:problem:{body['code']}"
    assert body["title"]
    assert body["detail"]
    return body


def test_our_refusal_reaches_the_caller(client: TestClient):
    response = client.get("/fail/ours")
    assert response.status_code == 400
    assert problem(response)["detail"] == "age: must be a number"


def test_a_wrong_body_names_the_field_and_not_its_value(client: TestClient):
    response = client.post("/echo", json={"age": "fifty-seven"})
    assert response.status_code == 422
    body = problem(response)
    assert body["code"] == "request.invalid"
    assert str(body["detail"]).startswith("body.age: ")
    assert "fifty-seven" not in response.text


def test_a_body_that_is_no_json_is_a_problem(client: TestClient):
    response = client.post("/echo", content=b"{", headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert problem(response)["code"] == "request.invalid"


def test_an_unknown_path_and_a_wrong_method_are_problems(client: TestClient):
    absent, wrong = client.get("/nowhere"), client.get("/echo")
    assert (absent.status_code, problem(absent)["code"]) == (404, "coop.not-found")
    assert (wrong.status_code, problem(wrong)["code"]) == (405, "request.method-not-allowed")
    assert wrong.headers["allow"] == "POST"


def test_a_refusal_of_the_framework_keeps_its_status_and_headers(client: TestClient):
    response = client.get("/fail/framework")
    assert (response.status_code, response.headers["x-tea"]) == (418, "yes")
    assert problem(response)["detail"] == "short and stout"


@pytest.mark.parametrize("what", ["bug", "crash"])
def test_a_crash_tells_the_caller_nothing(client: TestClient, what: str):
    response = client.get(f"/fail/{what}")
    assert response.status_code == 500
    assert problem(response)["code"] == "coop.invariant"
    assert "17" not in response.text


def test_too_many_requests_says_when_to_come_back(client: TestClient):
    response = client.get("/fail/slow")
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")


def test_the_open_inference_protocol_gets_its_error_text(client: TestClient):
    assert (
        problem(client.get("/v2/fail/ours"))["error"] == "coop.invalid-input: age: must be a number"
    )
    assert "error" in problem(client.get("/v2/nowhere"))
    assert "error" not in problem(client.get("/fail/ours"))
