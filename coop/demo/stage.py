"""The demo's stage: its folder, its processes, and the promise that nothing is left behind.

The folder carries a marker file; only a folder with that marker is ever deleted, and never while
the processes recorded in it still run.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coop.errors import ConflictError, UnavailableError

MARKER: Final = ".coop-demo"
_STOP_S: Final = 10.0  # how long a child may take to stop before it is killed


class DemoFolderError(ConflictError):
    """The demo's folder is not the demo's, or another demo runs in it."""

    code = "demo.folder-refused"


@dataclass(slots=True)
class Child:
    """A process of the demo and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(slots=True)
class Stage:
    """A demo folder with its running children. `close` stops them all, the last started first."""

    folder: Path
    children: list[Child] = field(default_factory=list)

    def start(self, name: str, command: list[str], environment: Mapping[str, str]) -> Child:
        """Start `command` in a session of its own, its output in `logs/NAME.log`."""
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        inherited = dict(os.environ)  # noqa: TID251  (children need PATH; settings are overlaid)
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603  (our own programs)
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**inherited, **environment, "PATH": path},
                start_new_session=True,
            )
        child = Child(name=name, process=process, log=log)
        self.children.append(child)
        # The pids stand in the marker so that a later demo can tell whether this one still runs.
        (self.folder / MARKER).write_text("\n".join(str(c.process.pid) for c in self.children))
        return child

    def check(self) -> None:
        """Raise if a child has died, showing the end of its log."""
        for child in self.children:
            if child.process.poll() is not None:
                tail = "\n".join(child.log.read_text(errors="replace").splitlines()[-15:])
                raise UnavailableError(f"{child.name} stopped; the end of {child.log}:\n{tail}")

    def stop(self, child: Child) -> None:
        """Stop one child and everything it started; kill what does not listen."""
        self.children.remove(child)
        _end(child.process)

    def close(self) -> None:
        """Stop every child: all are asked at once, then waited for, the last started first."""
        for child in self.children:
            _signal(child.process, signal.SIGTERM)
        while self.children:
            self.stop(self.children[-1])
        if (self.folder / MARKER).exists():
            (self.folder / MARKER).write_text("")


def prepare(folder: Path) -> Stage:
    """A fresh, empty demo folder.

    Raises:
        DemoFolderError: The folder exists without the marker, or a demo's processes run in it.
    """
    if folder.exists():
        marker = folder / MARKER
        if not marker.exists():
            raise DemoFolderError(
                f"{folder} exists and carries no {MARKER} file; it stays as it is. "
                "Name another folder with --folder or move it away."
            )
        alive = " ".join(pid for pid in marker.read_text().split() if _is_ours(int(pid)))
        if alive:
            raise DemoFolderError(f"a demo still runs in {folder} (pids {alive}); stop it")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("")
    return Stage(folder)


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ours(pid: int) -> bool:
    """Whether `pid` is a running process of this program (pids are reused by others)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # Between exec and its first instruction a process has no command line yet: not known, so ours.
    return state != "Z" and (not command or b"coop" in command or b"federated" in command)


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # The whole session: grandchildren must not outlive a child that forgot them.
    _signal(process, signal.SIGKILL, group=True)
    process.wait()


def _signal(
    process: subprocess.Popen[bytes], number: signal.Signals, *, group: bool = False
) -> None:
    try:
        if group:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.send_signal(number)
    except ProcessLookupError:
        pass
