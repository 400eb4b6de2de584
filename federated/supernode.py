"""The hospital's SuperNode: the process that speaks to the hub's front and holds no data.

`python -m federated.supernode --superlink HOST:PORT --root-certificates CA --key KEY --folder DIR
--runtime-port PORT` runs Flower's own SuperNode in process isolation, with shorter waits. The
executor (`federated.executor`) fetches its tasks over loopback with the secret in DIR.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from coop.keys import random_bytes

_SECRET_BYTES: Final = 32
SECRET_FILE: Final = "runtime.secret"  # noqa: S105  (the name of the file)
FLOWER_IDLE_S: Final = 3.0  # what Flower's loop sleeps without a message …
FLOWER_REPLY_S: Final = 0.5  # … and while the executor works
REPLY_POLL_S: Final = 0.05  # looks into memory only
BUSY_POLL_S: Final = 0.25  # one signed request to the hub each
IDLE_POLL_S: Final = 1.0
_BUSY_FOR_S: Final = 20.0  # after the last message; a round of a running study follows sooner
_IDLE_FOR_S: Final = 900.0  # then Flower's own 3 s will do: a new study may wait that long
HEARTBEAT_S: Final = 10  # Flower's least; a silent node counts as gone after twice this
_PARENT_CHECK_S: Final = 1.0


def make_key(path: Path) -> str:
    """Make the SuperNode's ECDSA P-384 key file and return its public half in ssh form.

    An existing key is kept. Flower takes no passphrase, so the file's mode (0600) protects it.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  (only at join)
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    if path.exists():
        loaded = serialization.load_ssh_private_key(path.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)  # noqa: S101  (we wrote the file)
        key = loaded
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        _write_secret(
            path,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            ),
        )
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


def make_secret(folder: Path) -> bytes:
    """The secret the SuperNode and the executor share, made at the first call (mode 0600)."""
    path = folder / SECRET_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_secret(path, random_bytes(_SECRET_BYTES))
    return path.read_bytes()


def command(
    *, superlink: str, root_certificates: Path, key: Path, folder: Path, runtime_port: int
) -> list[str]:
    """The command line that starts a SuperNode, for `subprocess.Popen`."""
    return [
        sys.executable, "-m", "federated.supernode", "--superlink", superlink,
        "--root-certificates", str(root_certificates), "--key", str(key),
        "--folder", str(folder), "--runtime-port", str(runtime_port),
        "--parent", str(os.getpid()),
    ]  # fmt: skip


def main() -> None:
    """Run the SuperNode until a signal or the end of the parent process."""
    parser = argparse.ArgumentParser(prog="federated.supernode", description=__doc__)
    parser.add_argument("--superlink", required=True, help="HOST:PORT of the hub's front")
    parser.add_argument("--root-certificates", required=True, type=Path)
    parser.add_argument("--key", required=True, type=Path, help="file of make_key()")
    parser.add_argument("--folder", required=True, type=Path, help="own FLWR_HOME and secret")
    parser.add_argument("--runtime-port", required=True, type=int)
    parser.add_argument("--parent", type=int, default=0, help="stop when this process ends")
    options = parser.parse_args()
    make_secret(options.folder)
    if options.parent:
        threading.Thread(target=_watch, args=(options.parent,), daemon=True).start()
    environment = os.environ  # noqa: TID251  (Flower reads these; they are no settings of ours)
    environment["FLWR_HOME"] = str(options.folder / "flwr")
    # A hospital's proxy must never see the executor's loopback traffic.
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(
            part for part in (environment.get(name, ""), "127.0.0.1,localhost") if part
        )
    _run(options)


def _run(options: argparse.Namespace) -> None:
    from federated import flower_compat  # noqa: PLC0415  (after the environment is set)

    sys.argv = [
        "flower-supernode", "--superlink", options.superlink,
        "--root-certificates", str(options.root_certificates),
        "--auth-supernode-private-key", str(options.key),
        "--isolation", "process",
        "--superexec-auth-secret-file", str(options.folder / SECRET_FILE),
        "--host", "127.0.0.1", "--port", str(options.runtime_port),
    ]  # fmt: skip
    flower_compat.run_supernode(Pace().sleep, heartbeat_s=HEARTBEAT_S)


class Pace:
    """How long Flower's loop really sleeps: short while rounds come, longer in quiet hours.

    The stock 3 s and 0.5 s cost 6 s a round; 0.1 s for ever costs each node 0.1 core.
    """

    def __init__(self) -> None:
        self._last_message = time.monotonic() - _BUSY_FOR_S

    def sleep(self, seconds: float) -> None:
        """Stand in for `time.sleep` in Flower's loop."""
        if seconds <= FLOWER_REPLY_S:
            self._last_message = time.monotonic()
            time.sleep(min(seconds, REPLY_POLL_S))
            return
        time.sleep(min(seconds, self.idle_s(time.monotonic() - self._last_message)))

    @staticmethod
    def idle_s(quiet_s: float) -> float:
        """How long to sleep when the last message came `quiet_s` seconds ago."""
        if quiet_s < _BUSY_FOR_S:
            return BUSY_POLL_S
        return IDLE_POLL_S if quiet_s < _IDLE_FOR_S else FLOWER_IDLE_S


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    # A SuperNode without its node would hold messages nobody answers.
    os.kill(os.getpid(), signal.SIGTERM)


def _write_secret(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
