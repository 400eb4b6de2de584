"""The front of the SuperLink: ten operations pass, everything else does not exist."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from federated.front import BODY_BYTES_MAX, OPERATIONS, Front
from federated.superlink import SuperLink

HOSTILE = [
    "/v1/control/start-run",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/v1/runtime/pull-task-input",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/..%2fcontrol%2fstart-run",
    "/v1/fleet/%2E%2E%2Fruntime%2Facquire-task",
    "/v1/fleet/pull-messages/../../control/start-run",
    "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2fstart-run",
    "/v1/fleet/%70ull-messages",
    "/v1/fleet//pull-messages",
    "/v1/fleet/./pull-messages",
    "/v1/fleet/x/pull-messages",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages;x",
    "/v1/fleet/pull-messages?x=1",
    "/v1/fleet/pull-messages%00",
    "/v1/fleet/pull-messages%20",
    "/v1/fleet/PULL-MESSAGES",
    "/v1/fleet/..\\control\\start-run",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/",
    "/v1/fleet",
    "/health",
    "/docs",
    "/openapi.json",
    "//v1/fleet/pull-messages",
    "/v1//fleet/pull-messages",
]


class Upstream:
    """A tiny SuperLink that remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.app = Starlette(
            routes=[Route("/{path:path}", self.take, methods=["GET", "POST", "PUT", "DELETE"])]
        )

    async def take(self, request: Request) -> Response:
        body = await request.body()
        headers = dict(request.headers)
        self.seen.append((request.method, request.scope["raw_path"].decode(), headers, body))
        return Response(b"answer", 201, {"flwr-runtime-version": "1.41.0"}, "application/protobuf")


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture(scope="module")
def port(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("link")
    link = SuperLink(folder)
    link._prepare()
    with served(upstream.app, certificate=folder) as behind:
        front = Front(f"127.0.0.1:{behind}", link.ca_file)
        # As the hub does it: under a mount, beside other routes.
        app = Starlette(routes=[Mount("/v1/fleet", app=front)])
        with served(app, close=front.close) as port:
            yield port


def send(port: int, method: str, path: str, body: bytes = b"x") -> int:
    """The status of a request whose path is sent byte for byte."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        raw.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        return int(raw.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_fleet_operation_passes_unchanged(name: str, port: int, upstream: Upstream):
    upstream.seen.clear()
    headers = {
        "flwr-public-key": "k",
        "flwr-timestamp": "t",
        "flwr-signature": "s",
        "content-type": "application/protobuf",
        "cookie": "portal=secret",
    }
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/fleet/{name}", content=b"\x00body", headers=headers
    )
    assert (answer.status_code, answer.content) == (201, b"answer")
    assert answer.headers["flwr-runtime-version"] == "1.41.0"
    [(method, path, seen, body)] = upstream.seen
    assert (method, path, body) == ("POST", f"/v1/fleet/{name}", b"\x00body")
    assert {key: seen[key] for key in headers if key != "cookie"} == {
        key: value for key, value in headers.items() if key != "cookie"
    }
    assert "cookie" not in seen


@pytest.mark.parametrize("path", HOSTILE)
def test_nothing_else_reaches_the_superlink(path: str, port: int, upstream: Upstream):
    upstream.seen.clear()
    assert send(port, "POST", path) in {404, 400, 307}
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"])
def test_only_post_passes(method: str, port: int, upstream: Upstream):
    upstream.seen.clear()
    assert send(port, method, "/v1/fleet/pull-messages") == 404
    assert upstream.seen == []


def test_a_body_over_the_cap_is_refused_before_it_is_passed_on(port: int, upstream: Upstream):
    upstream.seen.clear()
    body = b"x" * (BODY_BYTES_MAX + 1)
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/fleet/push-object", content=body)
    assert answer.status_code == 413
    assert upstream.seen == []


def test_a_dead_superlink_is_a_502_that_nodes_retry(tmp_path: Path):
    link = SuperLink(tmp_path)
    link._prepare()
    front = Front(link.address, link.ca_file)
    with served(front, close=front.close) as port:
        assert send(port, "POST", "/v1/fleet/pull-messages") == 502


def test_only_the_links_own_authority_is_trusted(tmp_path: Path, upstream: Upstream):
    ours, foreign = SuperLink(tmp_path / "a"), SuperLink(tmp_path / "b")
    ours._prepare()
    foreign._prepare()
    upstream.seen.clear()
    with served(upstream.app, certificate=foreign.folder) as behind:
        front = Front(f"127.0.0.1:{behind}", ours.ca_file)
        with served(front, close=front.close) as port:
            assert send(port, "POST", "/v1/fleet/pull-messages") == 502
    assert upstream.seen == []
