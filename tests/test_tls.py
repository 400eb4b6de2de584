"""The cooperative's certificate authority: what it signs is trusted, and nothing else is."""

import ssl
import stat
import threading
from pathlib import Path
from socket import create_connection, create_server

import pytest

from coop import tls
from coop.errors import ConflictError, InvalidInputError

NOW = 1_800_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import time

    tls.make_authority(tmp_path, name="a test authority", now=int(time.time()))
    tls.make_server_certificate(tmp_path, names=["localhost", "127.0.0.1"], now=int(time.time()))
    return tmp_path


def handshake(folder: Path, *, ca: Path, hostname: str) -> str:
    """The protocol of one real handshake over a loopback socket."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=str(ca))
    # The strictest reading of RFC 5280, the default from Python 3.13 on.
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(1)
            except ssl.SSLError:
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                create_connection(listening.getsockname(), timeout=5) as plain,
                client.wrap_socket(plain, server_hostname=hostname) as secure,
            ):
                secure.send(b"x")
                return str(secure.version())
        finally:
            thread.join(5)


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1"])
def test_a_client_that_pins_the_authority_reaches_the_hub(folder: Path, hostname: str):
    assert handshake(folder, ca=folder / "ca.crt", hostname=hostname) == "TLSv1.3"


def test_another_name_is_refused(folder: Path):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(folder, ca=folder / "ca.crt", hostname="hub.example")


def test_another_authority_is_refused(folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    tls.make_authority(other, name="a test authority", now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, ca=other / "ca.crt", hostname="localhost")


def test_private_keys_are_for_their_owner_alone_and_never_overwritten(folder: Path):
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    with pytest.raises(ConflictError):
        tls.make_authority(folder, name="again", now=NOW)
    with pytest.raises(ConflictError):
        tls.make_server_certificate(folder, names=["localhost"], now=NOW)
    with pytest.raises(InvalidInputError):
        tls.make_server_certificate(folder, names=[], now=NOW, stem="next")


def test_a_renewed_certificate_says_when_it_ends(folder: Path):
    tls.make_server_certificate(folder, names=["localhost"], now=NOW, stem="next")
    assert tls.valid_until(folder / "next.crt") == NOW + tls.SERVER_DAYS * 86_400
