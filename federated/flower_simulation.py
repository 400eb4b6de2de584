"""What we touch of Flower's simulation, in one place; running it needs the `simulation` extra.

Flower's documented ways are a deprecated function, and `flwr run` with a packaged app, which costs
a SuperLink and a minute; both end in the function called here. A contract test runs it.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from federated.flower_compat import ConfigRecord, Context, Message, RecordDict

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # noqa: TID251  (Ray reads nothing else)

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.telemetry import EventType

__all__ = ["Context", "Grid", "Message", "collect", "content", "reply", "run", "send"]

_TTL_S: Final = 3600.0


def run(
    main: Callable[[Grid, Context], None],
    app: Callable[[Message, Context], Message],
    *,
    hospitals: int,
    processors: int,
) -> None:
    """Run `main` as the hub and `app` at every virtual hospital; every process ends with it."""
    server, client = ServerApp(), ClientApp()
    server.main()(main)
    client.train()(app)
    init: dict[str, Any] = {
        "num_cpus": processors,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "logging_level": logging.ERROR,
        "log_to_driver": False,
    }
    backend: Any = {"init_args": init, "client_resources": {"num_cpus": 1, "num_gpus": 0}}
    _run_simulation(
        num_supernodes=hospitals,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client,
        server_app=server,
        backend_config=backend,
    )


def send(grid: Grid, nodes: Iterable[int], name: str, body: Mapping[str, bytes]) -> set[str]:
    """The same record to every node; the ids of the messages that wait for an answer."""
    record = RecordDict({name: ConfigRecord(dict(body))})
    messages = [
        Message(content=record, dst_node_id=node, message_type="train", ttl=_TTL_S)
        for node in nodes
    ]
    return set(grid.push_messages(messages))


def collect(grid: Grid, waiting: set[str], name: str) -> list[dict[str, bytes]]:
    """The answers that are there now; their messages leave `waiting`.

    Raises:
        RuntimeError: A hospital's app failed.
    """
    found = []
    for message in grid.pull_messages(list(waiting)):
        waiting.discard(message.metadata.reply_to_message_id)
        if message.has_error():
            raise RuntimeError(f"a virtual hospital failed: {message.error.reason}")
        found.append(content(message, name))
    return found


def content(message: Message, name: str) -> dict[str, bytes]:
    """The bytes in a message's record."""
    record = message.content.config_records[name]
    return {key: value for key, value in record.items() if isinstance(value, bytes)}


def reply(message: Message, name: str, body: Mapping[str, bytes]) -> Message:
    """An answer of a hospital."""
    return Message(RecordDict({name: ConfigRecord(dict(body))}), reply_to=message)
