"""The hospital's warm executor: runs the installed app on allow-listed tasks, never sent code.

It lives in the node's process, imports the learning stack once and speaks to the SuperNode over
loopback. Content of a bundle is never written, unpacked or imported: only its digest is compared.
What leaves on a failure is a code or the bare name of the error's type, because a message can hold
a patient's number.
"""

import threading
from collections.abc import Callable, Collection
from typing import Final

from coop.errors import CoopError
from coop.logs import logger
from federated.flower_compat import (
    AcquireTaskRequest,
    Context,
    Error,
    ErrorCode,
    Heartbeat,
    Message,
    ObjectPullError,
    PushTaskOutputRequest,
    RuntimeHttpClient,
    SubStatus,
    TaskType,
    Token,
    httpx,
    pull_input,
    push_reply,
    runtime_client,
)

App = Callable[[Message, Context], Message]

BUSY_POLL_S: Final = 0.1  # while a round may follow soon
IDLE_POLL_S: Final = 0.5
_BUSY_FOR_POLLS: Final = 300  # polls without a task before the executor calls itself idle
_DOWN_POLL_S: Final = 1.0  # the SuperNode does not answer yet, or any more
NOT_ALLOWED: Final = "node.app-not-allowed"


def serve(
    address: str,
    secret: bytes,
    app: App,
    allowed_fab_hashes: Collection[str],
    stop: threading.Event,
) -> None:
    """Run tasks one after the other until `stop` is set.

    Args:
        address: `127.0.0.1:PORT` of the SuperNode's Runtime API.
        secret: What the SuperNode's secret file holds.
        app: The installed app.
        allowed_fab_hashes: Digests this site approved; empty refuses everything. Looked at anew
            for every task, so a live set works.
        stop: Ends the loop within a second.
    """
    token = Token()
    client = runtime_client(address, None, secret, token, "flwr-clientapp")
    since_task = _BUSY_FOR_POLLS
    try:
        while not stop.is_set():
            pause = BUSY_POLL_S if since_task < _BUSY_FOR_POLLS else IDLE_POLL_S
            try:
                worked = _one_task(client, token, app, allowed_fab_hashes)
                since_task = 0 if worked else since_task + 1
            except (httpx.HTTPError, ObjectPullError, OSError) as error:
                # Down, restarted (the token is void), or a message that never came whole.
                logger().warning("supernode does not answer", error_type=type(error).__name__)
                worked, pause = False, _DOWN_POLL_S
            if not worked:
                stop.wait(pause)
    finally:
        client.close()


def _one_task(client: RuntimeHttpClient, token: Token, app: App, allowed: Collection[str]) -> bool:
    token.value = ""
    claimed = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
    if not claimed.HasField("task") or not claimed.token:
        return False
    token.value = claimed.token
    heartbeat = Heartbeat(client)
    try:
        message, context, fab_hash = pull_input(client)
        reply = answer(app, message, context, fab_hash=fab_hash, allowed=allowed)
        push_reply(client, reply, context)
    finally:
        heartbeat.stop()
    # Only with a reply: a task reported as failed without one would leave the SuperNode waiting for
    # ever. Without a report the task expires within a minute, and Flower writes the error itself.
    client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED))
    return True


def answer(
    app: App, message: Message, context: Context, *, fab_hash: str, allowed: Collection[str]
) -> Message:
    """The app's reply, or an error that says nothing but a code.

    Steps: (1) the bundle's digest is allow-listed; (2) the installed app runs; (3) whatever it
    raises leaves as `CoopError.code` or the name of the type.
    """
    # (1)
    if fab_hash not in allowed:
        return Message(Error(ErrorCode.INVALID_FAB, NOT_ALLOWED), reply_to=message)
    # (2)
    try:
        return app(message, context)
    # (3)
    except CoopError as error:
        reason = error.code
    except Exception as error:  # noqa: BLE001  (outermost: a hospital must answer, and say nothing)
        reason = type(error).__name__
    logger().warning("task refused", code=reason)
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
