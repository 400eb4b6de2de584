"""The SuperLink: Flower's relay, a child process of the hub that listens on loopback only.

Whoever reaches its port may submit code to every hospital, because open-source Flower
authenticates no user: so it binds 127.0.0.1, and `federated.front` publishes the ten node-signed
fleet operations and nothing else. All it stores can be made anew from the hub's own tables.
"""

import argparse
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
from cryptography.exceptions import UnsupportedAlgorithm

from coop.errors import UnavailableError
from coop.keys import random_bytes
from coop.logs import logger

if TYPE_CHECKING:
    from federated.flower_compat import ControlHttpClient

_SECRET_BYTES: Final = 32
_CERTIFICATE_DAYS: Final = 825
_STOP_S: Final = 5.0
_PARENT_CHECK_S: Final = 1.0
HOST: Final = "127.0.0.1"


class SuperLinkDownError(UnavailableError):
    """The SuperLink does not answer; it is restarted by the hub and rounds resume."""

    code = "training.superlink-down"


class SuperLink:
    """One SuperLink in `folder`: its certificate authority, database, secret and process."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.address = f"{HOST}:{self.port}"
        self.ca_file = self.folder / "ca.crt"
        self._secret_file = self.folder / "superexec.secret"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; returns at once (`wait_ready` waits). No-op while it runs."""
        if self.alive():
            return
        self._prepare()
        log = (self.folder / "superlink.log").open("ab")
        with log:
            self._process = subprocess.Popen(  # noqa: S603  (our own program)
                [
                    sys.executable, "-m", "federated.superlink", "--folder", str(self.folder),
                    "--port", str(self.port), "--parent", str(os.getpid()),
                ],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        logger().info("superlink started", port=self.port)

    def alive(self) -> bool:
        """Whether the process runs (it may still be starting)."""
        return self._process is not None and self._process.poll() is None

    def pid(self) -> int | None:
        """The process id, for measurements and fault tests."""
        return self._process.pid if self._process is not None else None

    def wait_ready(self, seconds: float, stop: threading.Event | None = None) -> None:
        """Return when it answers.

        Raises:
            SuperLinkDownError: It ended, or does not answer in time; the log says why.
        """
        context = ssl.create_default_context(cafile=str(self.ca_file))
        deadline = time.monotonic() + seconds
        with httpx.Client(verify=context, trust_env=False) as client:
            while time.monotonic() < deadline and self.alive():
                try:
                    client.get(f"https://{self.address}/health").raise_for_status()
                except httpx.HTTPError:
                    if stop is not None and stop.is_set():
                        break
                    time.sleep(0.1)
                else:
                    return
        raise SuperLinkDownError(f"the SuperLink does not answer; see {self.folder}/superlink.log")

    def stop(self) -> None:
        """Stop the process; its database stays."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def secret(self) -> bytes:
        """The secret that lets the hub, and nobody else, take ServerApp tasks."""
        return self._secret_file.read_bytes()

    def control(self) -> "ControlHttpClient":
        """A client of the control API."""
        from federated import flower_compat  # noqa: PLC0415  (costs seconds; only training pays)

        return flower_compat.control_client(self.address, self.ca_file)

    def register(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Node ids by site, registering SuperNode keys (ssh form) that are new.

        A site whose key changed gets a new id; ids of keys that no site has any more are removed,
        so a replaced key stops working. A key that is none, or that an earlier site of `keys` has,
        leaves its site without a node: one member's mistake must not stop the others.
        """
        from federated import flower_compat as flower  # noqa: PLC0415

        wanted: dict[str, bytes] = {}
        for site, text in keys.items():
            try:
                key = flower.ssh_key_to_pem(text)
            except (ValueError, UnsupportedAlgorithm):
                key = b""
            if not key or key in wanted.values():
                logger().warning("site has no usable node key", site=site)
            else:
                wanted[site] = key
        with self.control() as control:
            known = {
                bytes(node.public_key): int(node.node_id)
                for node in control.ListNodes(flower.ListNodesRequest()).nodes_info
                if node.status != "unregistered"
            }
            for key in set(known) - set(wanted.values()):
                control.UnregisterNode(flower.UnregisterNodeRequest(node_id=known[key]))
            for key in set(wanted.values()) - set(known):
                request = flower.RegisterNodeRequest(public_key=key)
                known[key] = int(control.RegisterNode(request).node_id)
        return {site: known[key] for site, key in wanted.items()}

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self._secret_file.exists():
            _write_secret(self._secret_file, random_bytes(_SECRET_BYTES))
        if not self.ca_file.exists():
            _make_certificates(self.folder)


def _make_certificates(folder: Path) -> None:
    """A certificate authority for this loopback link alone, and one certificate.

    The authority's key is never stored, so nobody can make a second certificate.
    """
    from cryptography import x509  # noqa: PLC0415  (once per installation)
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coop superlink loopback CA")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coop superlink")])
    start = datetime.fromtimestamp(time.time(), tz=UTC) - timedelta(hours=1)
    base = (
        x509.CertificateBuilder()
        .issuer_name(ca_name)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=_CERTIFICATE_DAYS))
    )
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
    ca = (
        base.subject_name(ca_name)
        .serial_number(x509.random_serial_number())
        .public_key(ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        base.subject_name(name)
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(IPv4Address(HOST))]
            ),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write_secret(
        folder / "server.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    # Last: its presence says that the set is complete.
    (folder / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))


def _write_secret(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    # The hub is gone; its successor starts a SuperLink of its own on this database.
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """The child: run `flower-superlink` on loopback until a signal or the end of the hub."""
    parser = argparse.ArgumentParser(prog="federated.superlink", description=__doc__)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--parent", required=True, type=int)
    options = parser.parse_args()
    folder: Path = options.folder
    threading.Thread(target=_watch, args=(options.parent,), daemon=True).start()
    os.environ["FLWR_HOME"] = str(folder / "flwr")  # noqa: TID251  (Flower reads it)
    sys.argv = [
        "flower-superlink",
        "--ssl-ca-certfile", str(folder / "ca.crt"),
        "--ssl-certfile", str(folder / "server.crt"),
        "--ssl-keyfile", str(folder / "server.key"),
        "--enable-supernode-auth", "--isolation", "process",
        "--superexec-auth-secret-file", str(folder / "superexec.secret"),
        "--database", str(folder / "link.sqlite"),
        "--disable-runtime-dependency-installation",
        "--host", HOST, "--port", str(options.port),
    ]  # fmt: skip
    from federated import flower_compat  # noqa: PLC0415  (after the environment is set)

    flower_compat.run_superlink()


if __name__ == "__main__":
    main()
