"""One hospital's process: it dials out, trains on its own rows, and answers only its own staff.

Parts, each a thread or a child of this process:
- **witness**: mirrors the hub's log, verifies that it only grows, cosigns it;
- **desk**: answers redemptions of enrolment codes with signed enrolments;
- **jobs**: claims cohort questions and requests for use statements;
- **executor**: the warm Flower executor (`federated.executor`) that answers rounds;
- **SuperNode**: the child process that carries Flower's messages;
- **local API**: `/local/v1/*` on the loopback interface for the hospital's own staff.

No inbound port is opened to anyone else. Every part may die and start again at any moment: all
state is in the database, and each effect is written before it is answered.
"""

import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from coop.client import Client, RemoteError
from coop.errors import CoopError, Kind, NotFoundError
from coop.logs import logger
from federated import control, desk, emergency, erasure, representation, supernode
from federated.cohort import answer_cohort
from federated.masked_round import MaskedInput, answer_stage
from federated.masked_wire import AskReveal
from federated.mirror import Mirror
from federated.models import Weights
from federated.released import released
from federated.round import RoundAnswer, RoundInput, answer_round
from federated.site import Site, get_state, put_state
from federated.uses import asked_for, statement

_POLL_S: Final = 20  # how long the hub may hold a long poll; below its limit of 25
_BACKOFF_MAX_S: Final = 5.0  # a hub that is back is noticed so soon
DESK_BATCH: Final = 500  # enrolments in one request: half of what the hub takes as a body
_WITNESS_PAUSE_S: Final = 1.0  # at most one cosignature a second: a busy log is cosigned in batches
TOKEN_FILE: Final = "staff.token"  # noqa: S105  (the name of the file)
MODEL_ID: Final = re.compile(r"[a-z][a-z0-9_-]{0,127}")
SUPERNODE_KEY: Final = "supernode.key"


def clock() -> int:
    """UTC seconds now: the node is a composition root, everything below takes the time."""
    return int(time.time())


class NodeStoppedError(CoopError):
    """The hospital's staff stopped all use of its records."""

    code = "node.stopped"
    kind = Kind.UNAVAILABLE


class Node:
    """The running parts of one hospital; `run` returns when asked to stop."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.client = Client(site.hub_url, site.ca_file, key=site.key)
        self.mirror = Mirror(site, self.client)
        self.stop = threading.Event()
        self.health: dict[str, dict[str, str | int]] = {}
        self.flower_folder = site.folder / "flower"
        self._supernode: subprocess.Popen[bytes] | None = None

    # --- what the hospital's staff decide -------------------------------------------------------

    def paused(self) -> bool:
        """Whether the staff stopped all use of this hospital's records."""
        with self.site.database.reading() as connection:
            return get_state(connection, "stopped") == "yes"

    def pause(self, *, stopped: bool) -> None:
        """Stop all use of this hospital's records, or allow it again; durable."""
        with self.site.database.unit_of_work() as connection:
            put_state(connection, "stopped", "yes" if stopped else "no")

    def refuse_if_paused(self) -> None:
        """Raise `NodeStoppedError` while the staff's stop is in force."""
        if self.paused():
            raise NodeStoppedError("the hospital's staff stopped all use of its records")

    # --- life -----------------------------------------------------------------------------------

    def run(self, serve: Callable[[Self], None]) -> None:
        """Run every part until SIGTERM or Ctrl-C.

        Args:
            serve: Serves the loopback API (`federated.local_api.serve_local`) until `stop` is set.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())
        self._thread("witness", self._witness)
        self._thread("desk", self._desk)
        self._thread("jobs", self._jobs)
        self._thread("supernode", self._supernode_once)
        self._thread("executor", self._executor)
        try:
            serve(self)
        finally:
            self.stop.set()
            self._end_supernode()
            # The threads end with the process, wherever they are: what a kill -9 may do to them at
            # any instruction, a stop may do too. A long poll would hold a join for 20 seconds.
            self.client.close()

    def answer(self, asked: RoundInput) -> RoundAnswer:
        """One round, unless the staff stopped the node or train at other hours."""
        self.refuse_if_paused()
        control.refuse_outside_hours(self.site, clock())
        answered = answer_round(self.site, self.mirror, asked, now=clock)
        self.refuse_if_paused()  # a stop holds back what was under way, too
        return answered

    def answer_stage(self, asked: MaskedInput) -> dict[str, bytes]:
        """One stage of a masked round, unless the staff stopped the node or train at other hours.

        A round that was masked within the hours may still be revealed: others wait for it.
        """
        self.refuse_if_paused()
        if not isinstance(asked.ask, AskReveal):
            control.refuse_outside_hours(self.site, clock())
        answered = answer_stage(self.site, self.mirror, asked, now=clock)
        self.refuse_if_paused()
        return answered

    # --- loops ----------------------------------------------------------------------------------

    def _thread(self, name: str, once: Callable[[], None]) -> None:
        threading.Thread(target=self._forever, args=(name, once), name=name, daemon=True).start()

    def _forever(self, name: str, once: Callable[[], None]) -> None:
        """Call `once` until the node stops; after a failure wait longer each time."""
        pause = 0.5
        while not self.stop.is_set():
            try:
                once()
            except CoopError as error:
                self._note(name, error.code)
                pause = min(2 * pause, _BACKOFF_MAX_S)
                self.stop.wait(pause)
            except Exception as error:  # noqa: BLE001  (outermost loop: a bug must not end the node)
                logger().error("loop failed", process=name, error_type=type(error).__name__)
                self._note(name, "coop.invariant")
                self.stop.wait(_BACKOFF_MAX_S)
            else:
                self._note(name, "ok")
                pause = 0.5

    def _note(self, name: str, code: str) -> None:
        previous = self.health.get(name, {}).get("code")
        self.health[name] = {"code": code, "at": clock()}
        if code != previous:
            logger().info("part changed", process=name, code=code, site=self.site.name)

    def _witness(self) -> None:
        self.mirror.witness(wait=_POLL_S)
        self.stop.wait(_WITNESS_PAUSE_S)

    def _desk(self) -> None:
        representation.send(self.site, self.client, now=clock())
        emergency.send(self.site, self.client, now=clock())
        erasure.send(self.site, self.client, self.mirror, now=clock())
        path = f"/v1/sites/{self.site.name}/enrolments"
        waiting = self.client.get(path, wait=_POLL_S)["redemptions"]
        if waiting:
            said = desk.answer(self.site, waiting[:DESK_BATCH], now=clock())
            self.client.post(path, {"documents": said.documents, "refused": said.refused})

    def _jobs(self) -> None:
        base = f"/v1/sites/{self.site.name}/jobs"
        job = self.client.post(f"{base}:claim", {"wait": _POLL_S})
        if not job:
            return
        try:
            result: dict[str, object] = {"document": self._job(job)}
        except CoopError as error:
            result = {"refused": error.code}
        try:
            # The answer is stored here already: a crash now makes the hub ask again and get the
            # same bytes for no further budget.
            self.client.put(f"{base}/{job['id']}/attempts/{job['attempt']}/result", result)
        except RemoteError as error:
            logger().info("job result refused", job=job["id"], code=error.code)

    def _job(self, job: dict[str, object]) -> dict[str, object]:
        payload = job["payload"]
        if not isinstance(payload, dict):
            raise NotFoundError("job: has no payload")
        if job["kind"] == "uses":
            self.mirror.sync()  # a withdrawal of a moment ago belongs on the list she asked for
            request = payload.get("request")
            asked = request if isinstance(request, dict) else {}
            pid = asked_for(self.site, self.mirror.speakers(), asked, clock())
            return statement(self.site, pid, clock())
        if job["kind"] == "cohort":
            self.refuse_if_paused()
            weights = self._released_weights(payload)
            said = answer_cohort(self.site, self.mirror, payload, weights=weights, now=clock)
            self.refuse_if_paused()
            return said
        raise NotFoundError("job: this node knows no such kind")

    def _released_weights(self, job: dict[str, object]) -> Weights | None:
        """The weights a risk question names, believed only by the pinned hub's passport."""
        subject = job.get("credentialSubject")
        query = subject.get("query") if isinstance(subject, dict) else None
        model_id = query.get("model_id") if isinstance(query, dict) else None
        if not isinstance(model_id, str) or not MODEL_ID.fullmatch(model_id):
            return None  # the answer refuses a risk question without a model
        return released(self.site, self.client, model_id).weights

    def _executor(self) -> None:
        from federated import client_app, executor  # noqa: PLC0415  (imports torch and flwr once)
        from federated.fab import fab_hash  # noqa: PLC0415

        executor.serve(
            f"127.0.0.1:{self.runtime_port()}",
            supernode.make_secret(self.flower_folder),
            client_app.make_app(self.answer, self.answer_stage),
            frozenset({fab_hash()}),
            self.stop,
        )

    # --- the SuperNode child --------------------------------------------------------------------

    def runtime_port(self) -> int:
        """The loopback port of the SuperNode's runtime API, chosen once per start."""
        if not hasattr(self, "_port"):
            import socket  # noqa: PLC0415

            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = int(probe.getsockname()[1])
        return self._port

    def _supernode_once(self) -> None:
        """Start the SuperNode and wait for its end; `_forever` starts it again."""
        # Without a hub it would end at once, and each start costs seconds of CPU.
        self.client.get("/healthz")
        command = supernode.command(
            superlink=self.site.hub_url.removeprefix("https://").rstrip("/"),
            root_certificates=self.site.ca_file or Path("/etc/ssl/certs/ca-certificates.crt"),
            key=self.site.folder / SUPERNODE_KEY,
            folder=self.flower_folder,
            runtime_port=self.runtime_port(),
        )
        self._supernode = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603  (our own program)
        code = self._supernode.wait()
        if not self.stop.is_set():
            raise NodeStoppedError(f"the SuperNode ended with {code}; it is started again")

    def _end_supernode(self) -> None:
        child = self._supernode
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def staff_token(folder: Path) -> str:
    """The token of the hospital's staff for the loopback API; made at the first use, mode 0600."""
    path = folder / TOKEN_FILE
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text().strip()
