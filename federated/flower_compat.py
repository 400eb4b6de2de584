"""Every Flower internal we touch stands here, so that a new Flower is one file's work.

Holds for flwr 1.41 (`tests/test_flower_compat.py` is the contract). Importing this module costs
some CPU-seconds: hub modules import it inside functions, so that a hub which trains nothing never
pays.
"""

import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

# Before flwr is imported: no telemetry, no update check, no installing of packages at run time.
OFF: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_LOG_LEVEL": "WARNING",
}
for _name, _value in OFF.items():
    os.environ[_name] = _value  # noqa: TID251  (Flower reads these; they are no settings of ours)

import httpx  # noqa: E402
from flwr.app import (  # noqa: E402
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    RecordDict,
)
from flwr.app.message import make_message, remove_content_from_message  # noqa: E402
from flwr.common.constant import (  # noqa: E402
    SUPERLINK_NODE_ID,
    ErrorCode,
    Status,
    SubStatus,
)
from flwr.common.serde import context_from_proto, message_to_proto, run_from_proto  # noqa: E402
from flwr.proto.control_pb2 import (  # noqa: E402
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab  # noqa: E402
from flwr.proto.node_pb2 import Node  # noqa: E402
from flwr.proto.runtime_pb2 import (  # noqa: E402
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType  # noqa: E402
from flwr.supercore.control.control_http_client import ControlHttpClient  # noqa: E402
from flwr.supercore.inflatable import inflatable_utils  # noqa: E402
from flwr.supercore.inflatable.inflatable_object import (  # noqa: E402
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (  # noqa: E402
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.interceptors import (  # noqa: E402
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.interceptors.http.utils import add_headers  # noqa: E402
from flwr.supercore.primitives.asymmetric import public_key_to_bytes  # noqa: E402
from flwr.supercore.retry import exponential, make_simple_http_retry_invoker  # noqa: E402
from flwr.supercore.run import Run  # noqa: E402
from flwr.supercore.runtime import RuntimeHttpClient  # noqa: E402
from flwr.superlink.grid import HttpGrid, http_grid  # noqa: E402

__all__ = [
    "AcquireTaskRequest",
    "ConfigRecord",
    "Context",
    "ControlHttpClient",
    "Error",
    "ErrorCode",
    "Fab",
    "HttpGrid",
    "ListNodesRequest",
    "ListRunsRequest",
    "Message",
    "PullTaskInputRequest",
    "PushTaskOutputRequest",
    "RecordDict",
    "RegisterNodeRequest",
    "Run",
    "RuntimeHttpClient",
    "StartRunRequest",
    "Status",
    "StopRunRequest",
    "SubStatus",
    "TaskType",
    "UnregisterNodeRequest",
    "httpx",
    "run_from_proto",
]

UNUSED_LAYERS: Final = frozenset(
    {
        "ControlEventLogMiddleware",
        "ControlLicenseMiddleware",
        "ControlSensitiveResponseMiddleware",
        "FleetEventLogMiddleware",
        "RuntimeTracingMiddleware",
    }
)

NODE_GONE: Final = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
OUR_ERRORS: Final = frozenset({ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.INVALID_FAB})
"""Their reason is a code our executor wrote; any other reason is Flower's prose."""

ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"
RETRY_S: Final = 4
INPUT_S: Final = 900.0  # a message of 16 MiB over a line of 0.15 Mbit/s
BACKOFF_S: Final = 0.05  # Flower waits 1 s for an object that is still on its way
_pull_soon: Final = functools.partial(inflatable_utils.pull_objects, initial_backoff=BACKOFF_S)
_HEARTBEAT_S: Final = 8.0  # a claimed task must speak within 30 s; each beat is good for 60 s


class Token:
    """Adds the current task's token to a client's requests; one client serves many tasks."""

    def __init__(self) -> None:
        self.value = ""

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:  # noqa: ANN401  (Flower's protocol)
        """Flower's client interceptor protocol."""
        if self.value:
            add_headers(context.request, {TASK_TOKEN_HEADER: self.value})
        return call_next(context)


def runtime_client(
    address: str, ca_file: Path | None, secret: bytes, token: Token, component: str
) -> RuntimeHttpClient:
    """A client of a Runtime API that may acquire tasks (`secret`) and act in them (`token`).

    No retry invoker: Flower's raises SIGINT in this process when a token is refused.
    """
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=ca_file is None,
        root_certificates=None if ca_file is None else ca_file.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name=component),
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=frozenset({ACQUIRE})
            ),
            token,
        ],
    )


def control_client(address: str, ca_file: Path) -> ControlHttpClient:
    """A client of the SuperLink's Control API: only the hub has one, over loopback."""
    return ControlHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=ca_file.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )


class Heartbeat:
    """Tells a Runtime API that the claimed task lives, until `stop`.

    Flower's own sender raises SIGINT in this process when the task was given up; ours sets `lost`.
    """

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client = client
        self._stop = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flower-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the beating."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_HEARTBEAT_S):
            try:
                if not self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self.lost.set()
                    return
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    self.lost.set()
                    return
            except httpx.HTTPError:
                continue  # the link restarts; the next beat may pass


ObjectPullError: Final = inflatable_utils.ObjectPullError


def pull_input(client: RuntimeHttpClient) -> tuple[Message, Context, str]:
    """The message of the claimed task, its context and the digest of the app it is meant for.

    The app bundle arrives with it and is dropped unread.

    Raises:
        ObjectPullError: The message never arrived whole.
    """
    answer = client.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(answer.context)
    waiting = client.PullMessages(PullAppMessagesRequest())
    tree = waiting.message_object_trees[0]
    node = Node(node_id=context.node_id)
    message = inflatable_utils.pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, context.run_id),
        make_confirm_message_received_fn_protobuf(
            client.ConfirmMessageReceived, node, context.run_id
        ),
        return_type=Message,
        initial_backoff=BACKOFF_S,
        backoff_cap=1.0,
        max_time=INPUT_S,
        max_tries_per_object=None,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message, context, answer.fab.hash_str


def push_reply(client: RuntimeHttpClient, reply: Message, context: Context) -> None:
    """Hand the reply of the claimed task to the SuperNode."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    head = message_to_proto(remove_content_from_message(reply))
    with no_object_id_recompute():
        pushed = client.PushMessages(
            PushAppMessagesRequest(
                messages_list=[head], message_object_trees=[get_object_tree(reply)]
            )
        )
        inflatable_utils.push_objects(
            get_all_nested_objects(reply),
            make_push_object_fn_protobuf(
                client.PushObject,
                Node(node_id=context.node_id),
                run_id=context.run_id,
                session_id=pushed.session_id,
            ),
            object_ids_to_push=set(pushed.objects_to_push),
        )


def grid(address: str, ca_file: Path, token: str, run: Run) -> HttpGrid:
    """Flower's own grid of a claimed ServerApp task, without its SIGINT on a refused token."""
    made = HttpGrid(address, insecure=False, root_certificates=ca_file.read_bytes(), token=token)
    made._retry_invoker = None  # type: ignore[assignment]  # noqa: SLF001  (see `runtime_client`)
    made.set_run(run)
    vars(http_grid)["pull_objects"] = _pull_soon
    return made


def outgoing(
    content: RecordDict, *, kind: str, node_id: int, run_id: int, task_id: int, ttl_s: float
) -> Message:
    """A message of the hub to a node.

    Flower's own constructor reads run and task from process-wide state; two runs, or a hub and a
    node in one process, would write each other's ids.
    """
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=ttl_s,
        message_type=kind,
        src_task_id=task_id,
    )
    metadata.delivered_at = ""
    return make_message(metadata=metadata, content=content)


def ssh_key_to_pem(text: str) -> bytes:
    """The PEM form Flower registers, of an ECDSA public key in ssh form.

    Raises:
        ValueError: Not an ECDSA public key.
    """
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key  # noqa: PLC0415

    key = load_ssh_public_key(text.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not an ECDSA key")  # noqa: TRY004
    return public_key_to_bytes(key)


def run_supernode(sleep: Callable[[float], None], *, heartbeat_s: int) -> None:
    """Run `flower-supernode` with `sys.argv`, its loop sleeping by `sleep`."""
    from flwr.supercore import heartbeat  # noqa: PLC0415
    from flwr.supernode import fleet_http_connection, start_client_internal  # noqa: PLC0415
    from flwr.supernode.cli.flower_supernode import flower_supernode  # noqa: PLC0415
    from uvicorn.config import LOGGING_CONFIG  # noqa: PLC0415

    LOGGING_CONFIG["loggers"]["uvicorn"]["level"] = "WARNING"
    vars(start_client_internal)["time"] = SimpleNamespace(sleep=sleep)
    vars(start_client_internal)["pull_objects"] = _pull_soon
    pull = start_client_internal._pull_and_store_message  # noqa: SLF001
    vars(start_client_internal)["_pull_and_store_message"] = functools.partial(pull_whole, pull)
    vars(fleet_http_connection)["make_simple_http_retry_invoker"] = _patient_invoker
    for module in (heartbeat, fleet_http_connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = heartbeat_s
    flower_supernode()


def pull_whole(pull: Callable[..., int | None], **arguments: Any) -> int | None:  # noqa: ANN401
    """Flower's step that fetches one message, without what it leaves behind when that fails.

    If the run ends in the middle (the hub restarted), Flower keeps a task whose objects may never
    come: an executor that claims it waits for hours. Or it keeps the reply of an executor that was
    quicker, and sends every later reply one message late.
    """
    receive, state = arguments["receive"], arguments["state"]
    came: list[object] = []

    def noted() -> object:
        came.append(received := receive())
        return received

    run_id = pull(**{**arguments, "receive": noted})
    if run_id is None and any(came):
        for task in state.get_tasks(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING]):
            state.finish_task(
                task.task_id, sub_status=SubStatus.FAILED, details="the run has ended"
            )
        for reply in state.get_messages_legacy(is_reply=True):
            ids = [reply.metadata.message_id, reply.metadata.reply_to_message_id]
            state.delete_messages(message_ids=ids)
            state.object_store.delete(reply.metadata.message_id)
    return run_id


def _patient_invoker() -> Any:  # noqa: ANN401
    """Flower's retries, at most 4 s apart instead of 20: a restarted hub is found again soon."""
    made = make_simple_http_retry_invoker()
    made.wait_gen_factory = lambda: exponential(max_delay=RETRY_S)
    return made


def run_superlink() -> None:
    """Run `flower-superlink` with `sys.argv`; returns when it ends."""
    from flwr.superlink import main  # noqa: PLC0415
    from flwr.superlink.cli.flower_superlink import flower_superlink  # noqa: PLC0415

    # Each layer costs every request about a millisecond of CPU; these serve the enterprise edition.
    kept = [layer for layer in main._get_middleware() if layer_name(layer) not in UNUSED_LAYERS]  # noqa: SLF001
    vars(main)["_get_middleware"] = lambda: kept
    flower_superlink()


def layer_name(layer: Any) -> str:  # noqa: ANN401  (starlette's Middleware)
    """The class name of one of the SuperLink's layers."""
    return str(layer.cls.__name__)
