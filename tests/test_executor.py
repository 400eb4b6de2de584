"""The executor at a real SuperNode runtime API: foreign apps refused, nothing personal leaves."""

import io
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving import served

from coop.errors import NotFoundError
from federated import executor
from federated.client_app import RECORD, make_app
from federated.fab import fab_bytes, fab_hash
from federated.flower_compat import (
    ConfigRecord,
    Context,
    ErrorCode,
    Message,
    RecordDict,
    TaskType,
    outgoing,
    pull_whole,
)

SECRET = b"s" * 32
RUN, NODE, SERIES = 7, 11, 13


class SuperNode:
    """Flower's own SuperNode state and runtime API in this process, without the fleet half."""

    def __init__(self) -> None:
        from flwr.supercore.object_store import ObjectStoreFactory
        from flwr.supernode.main import create_app
        from flwr.supernode.nodestate import NodeStateFactory

        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.app = create_app(state_factory=factory, superexec_auth_secret=SECRET)
        self.state = factory.state()
        self.store = factory.objectstore_factory.store()
        self.state.set_node_id(NODE)

    def deliver(self, content: dict[str, bytes], fab: bytes) -> None:
        """What Flower's loop does when a message and its app bundle arrive."""
        import hashlib

        from flwr.supercore.fab import Fab
        from flwr.supercore.run import Run
        from flwr.supernode.start_client_internal import _insert_message

        digest = hashlib.sha256(fab).hexdigest()
        run = Run.create_empty(RUN)
        run.fab_hash, run.series_id = digest, SERIES
        context = Context(
            run_id=RUN,
            node_id=NODE,
            node_config={},
            state=RecordDict(),
            run_config={},
            series_id=SERIES,
        )
        self.state.set_run_series_context(SERIES, context)
        self.state.store_run(run)
        self.state.store_fab(Fab(digest, fab, {}))
        message = outgoing(
            RecordDict({RECORD: ConfigRecord(content)}),
            kind="train",
            node_id=NODE,
            run_id=RUN,
            task_id=1,
            ttl_s=60,
        )
        _insert_message(message, self.state, self.store)
        assert self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash=digest)

    def reply(self) -> Message | None:
        """What Flower's loop would send on; taken once."""
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        messages = self.state.get_messages_legacy(is_reply=True)
        if not messages:
            return None
        tree = self.store.get_object_tree(messages[0].metadata.message_id)
        ids = [node.object_id for node in iterate_object_tree(tree)]
        while not all(self.store.get(name) for name in ids):
            time.sleep(0.02)  # the reply's objects follow its head
        return inflate_object_from_contents(tree.object_id, {n: self.store.get(n) for n in ids})


@pytest.fixture
def supernode() -> Iterator[SimpleNamespace]:
    made = SuperNode()
    with served(made.app) as port:
        yield SimpleNamespace(node=made, address=f"127.0.0.1:{port}")


def run_one(supernode, app, allowed, *, content=None, fab: bytes = b"") -> Message:
    """Serve until the reply is there."""
    node = supernode.node
    node.deliver(content or {"x": b"1"}, fab or fab_bytes())
    stop = threading.Event()
    thread = threading.Thread(
        target=executor.serve, args=(supernode.address, SECRET, app, allowed, stop)
    )
    thread.start()
    try:
        for _ in range(200):
            if (reply := node.reply()) is not None:
                return reply
            stop.wait(0.05)
        raise AssertionError("no reply came")
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def foreign_bundle(marker: Path) -> bytes:
    """An app bundle whose code would leave a marker as soon as it is imported."""
    buffer = io.BytesIO()
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\napp = None\n"
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(
            "pyproject.toml", zipfile.ZipFile(io.BytesIO(fab_bytes())).read("pyproject.toml")
        )
        for name in ("evil/__init__.py", "federated/client_app.py", "sitecustomize.py"):
            bundle.writestr(name, code)
    return buffer.getvalue()


def test_an_approved_bundle_runs_the_installed_app(supernode):
    reply = run_one(supernode, echo, {fab_hash()})
    assert not reply.has_error()
    assert dict(reply.content.config_records[RECORD].items()) == {"x": b"1"}


def test_foreign_code_is_refused_and_never_touches_the_disk(supernode, tmp_path: Path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.chdir(home)
    marker = tmp_path / "marker"
    reply = run_one(supernode, echo, {fab_hash()}, fab=foreign_bundle(marker))
    assert (reply.error.code, reply.error.reason) == (ErrorCode.INVALID_FAB, executor.NOT_ALLOWED)
    assert not marker.exists()
    assert list(home.rglob("*")) == []


def test_an_empty_allow_list_refuses_even_our_own(supernode):
    reply = run_one(supernode, echo, frozenset())
    assert reply.error.code == ErrorCode.INVALID_FAB


def test_the_text_of_an_exception_never_leaves(supernode, capsys):
    def leaky(message: Message, context: Context) -> Message:
        raise KeyError("patient 4711 of ward 3")

    reply = run_one(supernode, leaky, {fab_hash()})
    assert (reply.error.code, reply.error.reason) == (
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        "KeyError",
    )
    said = capsys.readouterr()
    assert "4711" not in said.out + said.err


def test_a_refusal_leaves_as_its_code_alone(supernode):
    def refusing(message: Message, context: Context) -> Message:
        raise NotFoundError("patient 4711 is not here")

    reply = run_one(supernode, refusing, {fab_hash()})
    assert reply.error.reason == "coop.not-found"


def test_a_message_without_order_request_and_weights_is_refused(supernode):
    reply = run_one(
        supernode, make_app(lambda _: None, lambda _: {}), {fab_hash()}, content={"order": b"{}"}
    )
    assert reply.error.reason == "round.malformed-message"


def test_the_wrong_secret_gets_no_task(supernode):
    supernode.node.deliver({"x": b"1"}, fab_bytes())
    stop = threading.Event()
    thread = threading.Thread(
        target=executor.serve, args=(supernode.address, b"w" * 32, echo, {fab_hash()}, stop)
    )
    thread.start()
    stop.wait(0.5)
    stop.set()
    thread.join(10)
    assert supernode.node.reply() is None


def test_a_message_that_never_came_whole_leaves_no_task_behind(supernode):
    """Or the executor would wait for its objects for hours, and answer nothing else."""
    node = supernode.node
    node.deliver({"x": b"1"}, fab_bytes())
    [task] = node.state.get_tasks()
    assert pull_whole(lambda **_: None, state=node.state, receive=lambda: None) is None
    assert node.state.get_tasks(task_ids=[task.task_id])[0].status.status == "pending"

    def broken(**arguments: Any) -> None:
        arguments["receive"]()  # the head comes, then the run ends

    assert pull_whole(broken, state=node.state, receive=lambda: ("head", "tree")) is None
    assert node.state.get_tasks(task_ids=[task.task_id])[0].status.status == "finished"
    reply = run_one(supernode, echo, {fab_hash()})
    assert not reply.has_error()


def test_a_reply_to_a_run_that_ended_does_not_delay_the_next_one(supernode):
    """Flower would send it as the next message's reply, and every later reply one too late."""
    node = supernode.node
    node.deliver({"x": b"1"}, fab_bytes())

    def quick(**arguments: Any) -> None:
        arguments["receive"]()
        stop = threading.Event()
        thread = threading.Thread(
            target=executor.serve, args=(supernode.address, SECRET, echo, {fab_hash()}, stop)
        )
        thread.start()
        while node.state.get_tasks()[0].status.status != "finished":
            time.sleep(0.02)
        stop.set()
        thread.join(10)

    assert pull_whole(quick, state=node.state, receive=lambda: ("head", "tree")) is None
    assert node.reply() is None
