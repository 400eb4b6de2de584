"""The cooperative's own certificate authority: TLS without anybody else's permission.

`coop hub init` makes an authority and a server certificate. Hospitals, researchers and the portal
pin the authority's certificate (`ca.crt`); nothing else is trusted.
"""

import ipaddress
import os
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coop.errors import ConflictError, InvalidInputError

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 397  # the longest that clients accept
_BACKDATE: Final = timedelta(minutes=5)  # clocks of members differ
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


def make_authority(folder: Path, *, name: str, now: int) -> None:
    """Write `ca.key` (owner only) and `ca.crt`.

    Raises:
        ConflictError: There is an authority already; it is never overwritten.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, key.public_key(), now=now, days=CA_DAYS)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / "ca.key", key)
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(
    folder: Path, *, names: Collection[str], now: int, stem: str = "server"
) -> None:
    """Write `server.key` and `server.crt`, good for `names`, signed by the folder's authority.

    Args:
        folder: Holds `ca.key` and `ca.crt`.
        names: DNS names and IP addresses clients use.
        now: UTC seconds.
        stem: Name of the two files.

    Raises:
        InvalidInputError: No name is given.
        ConflictError: The key exists; renewing writes under another stem first.
    """
    if not names:
        raise InvalidInputError("names: at least one name or address must be given")
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    authority_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise InvalidInputError("ca.key: must be an elliptic-curve key made by coop hub init")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, next(iter(names)))])
    certificate = (
        _builder(subject, key.public_key(), now=now, days=SERVER_DAYS)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    _write_key(folder / f"{stem}.key", key)
    (folder / f"{stem}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def valid_until(certificate: Path) -> int:
    """UTC seconds at which the certificate ends."""
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    return int(loaded.not_valid_after_utc.timestamp())


def _builder(
    subject: x509.Name, public: ec.EllipticCurvePublicKey, *, now: int, days: int
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now, tz=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BACKDATE)
        .not_valid_after(start + timedelta(days=days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConflictError(f"{path.name} exists; refusing to overwrite a key") from error
    with os.fdopen(handle, "wb") as file:
        file.write(text)
