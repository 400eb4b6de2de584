"""Ada's recovery file: what the portal's signing component would have let her download.

Twin of `create` in the component's script; a test brings it into a browser and signs with it.
"""

import base64
import unicodedata
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from coop.canonical import Json, jcs
from coop.keys import SigningKey, random_bytes

ROUNDS: Final = 600_000
_PKCS8_ED25519: Final = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410: then the seed


def recovery_file(key: SigningKey, seed: bytes, passphrase: str) -> dict[str, Json]:
    """The file that brings `key` to a browser, sealed under `passphrase`.

    Args:
        key: Whose did stands in the file.
        seed: Its 32 secret bytes.
        passphrase: Of twelve letters or more.
    """
    salt, nonce = random_bytes(16), random_bytes(12)
    header: dict[str, Json] = {
        "v": 1,
        "did": key.did,
        "rounds": ROUNDS,
        "salt": base64.b64encode(salt).decode(),
        "iv": base64.b64encode(nonce).decode(),
    }
    typed = unicodedata.normalize("NFKC", passphrase).encode()
    wrapping = PBKDF2HMAC(SHA256(), 32, salt, ROUNDS).derive(typed)
    sealed = AESGCM(wrapping).encrypt(nonce, _PKCS8_ED25519 + seed, jcs(header))
    return {**header, "sealed": base64.b64encode(sealed).decode()}
