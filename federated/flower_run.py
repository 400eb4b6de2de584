"""One Flower run, driven from the hub's own thread: no `flwr run`, no ServerApp process.

The stock way costs twelve seconds and five CPU-seconds for every run. Here the hub starts the run
over the loopback control API, takes its ServerApp task itself and sends and collects messages.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coop.logs import logger
from federated.fab import fab_bytes, fab_hash
from federated.superlink import SuperLink, SuperLinkDownError

if TYPE_CHECKING:
    from federated.flower_compat import ControlHttpClient, HttpGrid

_ACQUIRE_S: Final = 10.0  # a started run's task is there at once; longer means a broken link
_MESSAGE_TTL_S: Final = 3600.0
_LEFTOVERS_MAX: Final = 20  # of the newest runs; one that died is the newest or close to it
_RECORD: Final = "coop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back for one sent message: content, or the code the node refused with."""

    message_id: str
    content: Mapping[str, bytes] | None
    code: str | None
    node_gone: bool
    """Flower gave the node up; nothing more will come for this message."""


class FlowerRun:
    """A started run whose ServerApp task the hub holds. Made by `open_run`."""

    def __init__(self, run_id: int, task_id: int, grid: "HttpGrid") -> None:
        self.run_id = run_id
        self._task_id = task_id
        self._grid = grid

    def presence(self) -> dict[int, str]:
        """When each node that is connected now connected: another instant means it restarted."""
        with _down():
            return {
                int(node.node_id): str(node.last_activated_at) for node in self._grid.get_nodes()
            }

    def send(self, kind: str, content: Mapping[str, bytes], nodes: Iterable[int]) -> dict[str, int]:
        """Send the same content to `nodes`; node ids by message id."""
        from federated import flower_compat as flower  # noqa: PLC0415

        nodes = list(nodes)
        record = flower.RecordDict({_RECORD: flower.ConfigRecord(dict(content))})
        messages = [
            flower.outgoing(
                record,
                kind=kind,
                node_id=node,
                run_id=self.run_id,
                task_id=self._task_id,
                ttl_s=_MESSAGE_TTL_S,
            )
            for node in nodes
        ]
        with _down():
            ids = self._grid.push_messages(messages)
        return {message_id: node for message_id, node in zip(ids, nodes, strict=True) if message_id}

    def collect(self, message_ids: Iterable[str]) -> list[Reply]:
        """The replies that are there now."""
        with _down():
            return [_reply(message) for message in self._grid.pull_messages(list(message_ids))]


def _reply(message: object) -> Reply:
    from federated import flower_compat as flower  # noqa: PLC0415

    assert isinstance(message, flower.Message)  # noqa: S101  (narrowing)
    message_id = message.metadata.reply_to_message_id
    if message.has_error():
        error = message.error
        gone = error.code in flower.NODE_GONE
        code = error.reason if error.code in flower.OUR_ERRORS else f"flower.{error.code}"
        return Reply(message_id=message_id, content=None, code=code or "", node_gone=gone)
    records = message.content.config_records
    record = records.get(_RECORD)
    content = {name: value for name, value in (record or {}).items() if isinstance(value, bytes)}
    return Reply(message_id=message_id, content=content, code=None, node_gone=False)


@contextlib.contextmanager
def open_run(link: SuperLink) -> Iterator[FlowerRun]:
    """Start a run and hold its task; the run is finished at the end of the block.

    Raises:
        SuperLinkDownError: The link does not answer or gave the task up.
    """
    from federated import flower_compat as flower  # noqa: PLC0415

    token = flower.Token()
    with contextlib.ExitStack() as stack:
        with _down():
            fab = flower.Fab(hash_str=fab_hash(), content=fab_bytes())
            with link.control() as control:
                _stop_leftovers(control)
                run_id = int(control.StartRun(flower.StartRunRequest(fab=fab)).run_id)
            client = stack.enter_context(
                flower.runtime_client(
                    link.address, link.ca_file, link.secret(), token, "flwr-serverapp"
                )
            )
            token.value = _acquire(client, run_id)
            stack.callback(flower.Heartbeat(client).stop)
            started = client.PullTaskInput(flower.PullTaskInputRequest())
            run = flower.run_from_proto(started.run)
            grid = flower.grid(link.address, link.ca_file, token.value, run)
            stack.callback(grid.close)
        status = flower.SubStatus.FAILED
        try:
            yield FlowerRun(run_id, int(started.task_id), grid)
            status = flower.SubStatus.COMPLETED
        finally:
            with contextlib.suppress(flower.httpx.HTTPError):
                client.PushTaskOutput(flower.PushTaskOutputRequest(sub_status=status, details=""))


def _stop_leftovers(control: "ControlHttpClient") -> None:
    """End the runs of a hub that died: it has one at a time, so whatever still runs is one.

    Flower would end them itself after a minute without a beat. Until then a SuperNode that was
    sent half a message waits for the other half, and for nothing else.
    """
    from federated import flower_compat as flower  # noqa: PLC0415

    newest = control.ListRuns(flower.ListRunsRequest(limit=_LEFTOVERS_MAX)).run_dict
    for run_id, run in newest.items():
        if run.status.status != flower.Status.FINISHED:
            # Flower may end it between the two calls.
            with contextlib.suppress(flower.httpx.HTTPStatusError):
                control.StopRun(flower.StopRunRequest(run_id=run_id))
                logger().info("leftover run stopped")


def _acquire(client: object, run_id: int) -> str:
    from federated import flower_compat as flower  # noqa: PLC0415

    assert isinstance(client, flower.RuntimeHttpClient)  # noqa: S101  (narrowing)
    deadline = time.monotonic() + _ACQUIRE_S
    request = flower.AcquireTaskRequest(supported_task_types=[flower.TaskType.SERVER_APP])
    while time.monotonic() < deadline:
        claimed = client.AcquireTask(request)
        if claimed.HasField("task") and claimed.token and int(claimed.task.run_id) == run_id:
            return str(claimed.token)
        # A task of another run is a leftover of a hub that died between start and claim: without
        # a heartbeat Flower fails it by itself.
        if not claimed.HasField("task"):
            time.sleep(0.1)
    raise SuperLinkDownError("the SuperLink did not hand out the task of the run it started")


@contextlib.contextmanager
def _down() -> Iterator[None]:
    from federated import flower_compat as flower  # noqa: PLC0415

    try:
        yield
    except (flower.httpx.HTTPError, OSError) as error:
        logger().warning("superlink call failed", error_type=type(error).__name__)
        raise SuperLinkDownError("the SuperLink does not answer or ended the run") from error
