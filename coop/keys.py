"""Ed25519 identities: the only place where signatures are made, and where Ed25519 is checked.

(What a passkey signed is checked in `coop.passkeys`.)

Keys are named `did:key:z6Mk…`. Signed documents are VC-2.0-shaped JSON with a Data Integrity
proof `eddsa-jcs-2022` (W3C Recommendation 2025-05-15, §3.3); the published vector reproduces byte
for byte.
"""

import os
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from nacl.exceptions import BadSignatureError as _NaclBadSignature
from nacl.exceptions import CryptoError as _NaclCryptoError
from nacl.signing import SigningKey as _NaclSigningKey
from nacl.signing import VerifyKey as _NaclVerifyKey

from coop.canonical import Json, jcs, sha256
from coop.errors import ConflictError, InvalidInputError, Kind, NotFoundError

_DID_PREFIX: Final = "did:key:z"
_ED25519_MULTICODEC: Final = b"\xed\x01"  # https://github.com/multiformats/multicodec, ed25519-pub
SUITE: Final = "eddsa-jcs-2022"
PASSKEY_SUITE: Final = "ES256-webauthn"
_PASSKEY_PREFIX: Final = "did:key:zDn"  # the multicodec of a compressed P-256 point
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
SEED_BYTES: Final = 32
_KEY_FILE: Final = re.compile(rb"[0-9a-f]{64}")
SIGNATURE_BYTES: Final = 64


class BadSignatureError(InvalidInputError):
    """The signature does not verify under the key that must have made it."""

    code = "keys.bad-signature"
    kind = Kind.FORBIDDEN


class SigningKey:
    """A private Ed25519 key. Its representation never shows the seed."""

    def __init__(self, seed: bytes) -> None:
        self._key = _NaclSigningKey(seed)
        self.public: bytes = bytes(self._key.verify_key)
        self.did: str = did_of(self.public)

    @classmethod
    def generate(cls) -> Self:
        """A fresh key from the operating system's generator."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file made by `save`.

        Raises:
            NotFoundError: There is no such file.
            InvalidInputError: It is something else.
        """
        if not path.is_file():
            raise NotFoundError(f"key file {path} is missing; make it, or name another")
        # A longer file is another kind of file; its content must not reach the message.
        text = path.read_bytes()[: 4 * SEED_BYTES].strip()
        if not _KEY_FILE.fullmatch(text):
            raise InvalidInputError(f"key file {path}: holds no key; name another file")
        return cls(bytes.fromhex(text.decode()))

    def save(self, path: Path) -> None:
        """Write the seed to a new file that only its owner can read.

        Raises:
            ConflictError: The file exists; a key is never overwritten.
        """
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise ConflictError(
                f"key file {path.name} exists; refusing to overwrite a key"
            ) from error
        with os.fdopen(handle, "w") as file:
            file.write(self._key.encode().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message` (domain-tag it with `canonical.encode`)."""
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"SigningKey({self.did})"


def did_of(public: bytes) -> str:
    """The `did:key` of a 32-byte Ed25519 public key."""
    return _DID_PREFIX + base58(_ED25519_MULTICODEC + public)


def public_of(did: str) -> bytes:
    """The public key of a `did:key`.

    Raises:
        InvalidInputError: Not an Ed25519 did:key.
    """
    data = from_base58(did.removeprefix(_DID_PREFIX)) if did.startswith(_DID_PREFIX) else b""
    if len(data) != len(_ED25519_MULTICODEC) + SEED_BYTES or data[:2] != _ED25519_MULTICODEC:
        raise InvalidInputError(f"did: {did[:80]!r} is not an Ed25519 did:key")
    return data[2:]


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Return if `signature` of `message` verifies under `public`.

    Raises:
        BadSignatureError: It does not.
    """
    try:
        _NaclVerifyKey(public).verify(message, signature)
    except (_NaclBadSignature, _NaclCryptoError, ValueError, TypeError) as error:
        raise BadSignatureError("signature: does not verify") from error


def to_sign(document: Mapping[str, Json], proof: Mapping[str, Json]) -> bytes:
    """What `eddsa-jcs-2022` signs: SHA-256(JCS(proof options)) ‖ SHA-256(JCS(document))."""
    bare = {name: value for name, value in document.items() if name != "proof"}
    options = {name: value for name, value in proof.items() if name != "proofValue"}
    return sha256(jcs(options)) + sha256(jcs(bare))


def is_passkey(did: str) -> bool:
    """Whether this did is a P-256 key, as passkeys have them."""
    return did.startswith(_PASSKEY_PREFIX)


def proof_options(did: str, created: int, context: Json) -> dict[str, Json]:
    """Proof options of a signature by `did` at `created` (UTC seconds), of the did's own suite."""
    return {
        "type": "DataIntegrityProof",
        "cryptosuite": PASSKEY_SUITE if is_passkey(did) else SUITE,
        "created": iso(created),
        "verificationMethod": f"{did}#{did.removeprefix('did:key:')}",
        "proofPurpose": "assertionMethod",
        "@context": context,
    }


def sign_document(
    document: Mapping[str, Json], key: SigningKey, *, created: int
) -> dict[str, Json]:
    """A copy of `document` with a proof by `key`.

    Args:
        document: VC-2.0-shaped, without `proof`; its `issuer` must be the key's did.
        key: The issuer's key.
        created: UTC seconds.
    """
    if document.get("issuer") != key.did:
        raise InvalidInputError("issuer: must be the did of the key that signs")
    proof = proof_options(key.did, created, document.get("@context"))
    signature = key.sign(to_sign(document, proof))
    return {**document, "proof": {**proof, "proofValue": "z" + base58(signature)}}


def verify_document(document: Mapping[str, Json]) -> str:
    """The did that signed `document`, after verifying its proof.

    The steps of Data Integrity EdDSA §3.3.2, and the caller's duty (4):
      (1) the proof is an `eddsa-jcs-2022` assertion over the document's own context;
      (2) its verification method is the document's issuer;
      (3) the signature verifies;
      (4) **the caller** decides whether this issuer may say this.

    Raises:
        BadSignatureError: Any of (1) to (3) fails.
    """
    # (1), (2)
    did, proof = checked_proof(document, SUITE)
    # (3)
    verify(public_of(did), to_sign(document, proof), signature_of(str(proof.get("proofValue"))))
    return did


def checked_proof(document: Mapping[str, Json], suite: str) -> tuple[str, dict[str, Json]]:
    """The issuer and its proof of this suite, in all but the signature itself.

    Raises:
        BadSignatureError: It is not an assertion by the issuer over the document's own context.
    """
    proof = document.get("proof")
    if not isinstance(proof, dict) or proof.get("cryptosuite") != suite:
        raise BadSignatureError(f"proof: must be an {suite} Data Integrity proof")
    if proof.get("type") != "DataIntegrityProof" or proof.get("proofPurpose") != "assertionMethod":
        raise BadSignatureError("proof: must be a DataIntegrityProof for assertionMethod")
    if proof.get("@context") != document.get("@context"):
        raise BadSignatureError("proof: its @context differs from the document's")
    did = str(document.get("issuer"))
    if proof.get("verificationMethod") != f"{did}#{did.removeprefix('did:key:')}":
        raise BadSignatureError("proof: its verificationMethod is not the issuer's key")
    return did, proof


def signature_of(proof_value: str) -> bytes:
    """The 64 signature bytes of a multibase `proofValue`."""
    data = from_base58(proof_value[1:]) if proof_value.startswith("z") else b""
    if len(data) != SIGNATURE_BYTES:
        raise BadSignatureError("proofValue: must be 'z' and the base58btc of 64 bytes")
    return data


def proof_value_of(signature: bytes) -> str:
    """The multibase `proofValue` of 64 signature bytes."""
    return "z" + base58(signature)


def iso(seconds: int) -> str:
    """UTC seconds as `2026-11-24T10:00:00Z`."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def random_bytes(count: int) -> bytes:
    """Secret random bytes from the operating system: salts, tokens, nonces."""
    return secrets.token_bytes(count)


def base58(data: bytes) -> str:
    """Base58btc."""
    number = int.from_bytes(data)
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def from_base58(text: str) -> bytes:
    """The inverse of `base58`, of a key or signature."""
    if len(text) > 128 or any(letter not in _ALPHABET for letter in text):  # noqa: PLR2004  (a key or signature is < 96)
        raise InvalidInputError("base58: not a key or signature")
    number = 0
    for letter in text:
        number = number * 58 + _ALPHABET.index(letter)
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8)
