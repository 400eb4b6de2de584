"""Enrolment codes: how a key that a patient made comes to speak for her record.

The hospital prints a code = public id ‖ 128-bit secret. The patient makes a key for this record
only and sends the *redemption*: code id, public key, proof of possession, and an HMAC of the key
under the secret. The secret itself never leaves her device, so the hub can check that whoever
redeems holds the key, and only the hospital can check that she held the code.

Bytes (the browser's twin must make the same): `mac = b64u(HMAC-SHA256(secret, encode("coop/enrol/
mac/v1", {"code_id", "did"})))`, `proof = b64u(Ed25519(encode("coop/enrol/v1", {"code_id", "did",
"mac"})))`.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

from coop.canonical import Json, b64u, encode, from_b64u
from coop.errors import InvalidInputError, Kind
from coop.keys import BadSignatureError, SigningKey, public_of, random_bytes, verify

_MAC_TAG: Final = b"coop/enrol/mac/v1"
_PROOF_TAG: Final = b"coop/enrol/v1"
_ID_LETTERS: Final = 8  # 40 bits: names a code, guards nothing
_SECRET_BYTES: Final = 16  # 128 bits: the guard
_SECRET_LETTERS: Final = 26
_GROUP: Final = 5
_CODE: Final = re.compile(r"([a-z][a-z0-9_-]{0,63}\.[a-z2-7]{8})-([a-z2-7-]{26,40})")
CODE_ID: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}\.[a-z2-7]{8}")
CODE_DAYS_MAX: Final = 7


class BadCodeError(InvalidInputError):
    """The enrolment code, or what was made from it, is not one this hospital gave out."""

    code = "enrolment.bad-code"
    kind = Kind.FORBIDDEN


def new_code(site: str) -> tuple[str, bytes, str]:
    """A fresh single-use code of `site`: its public id, its secret, and the text to hand over."""
    secret = random_bytes(_SECRET_BYTES)
    code_id = f"{site}.{_base32(random_bytes(5))[:_ID_LETTERS]}"
    letters = _base32(secret)
    groups = [letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP)]
    return code_id, secret, f"{code_id}-{'-'.join(groups)}"


def parse_code(text: str) -> tuple[str, bytes]:
    """The public id and the secret of a code; spaces and capitals do not matter.

    Raises:
        BadCodeError: Not a code.
    """
    found = _CODE.fullmatch("".join(text.split()).lower())
    letters = found[2].replace("-", "") if found else ""
    if found is None or len(letters) != _SECRET_LETTERS:
        raise BadCodeError("code: must be like hospital.abcdefgh-abcde-abcde-abcde-abcde-abcde-a")
    secret = base64.b32decode(letters.upper() + "=" * 6)
    if _base32(secret) != letters:  # two texts must never mean the same secret
        raise BadCodeError("code: the last letter is mistyped")
    return found[1], secret


def redemption(code_text: str, key: SigningKey) -> dict[str, Json]:
    """What the holder of `code_text` sends so that `key` is enrolled for her record."""
    code_id, secret = parse_code(code_text)
    mac = b64u(_mac(secret, code_id, key.did))
    return {
        "code_id": code_id,
        "did": key.did,
        "mac": mac,
        "proof": b64u(key.sign(_proof(code_id, key.did, mac))),
    }


def check_proof(redemption: Mapping[str, Json]) -> tuple[str, str]:
    """The code id and did of a redemption whose sender holds that did's key (the hub's check).

    Raises:
        BadCodeError: A member is missing or malformed.
        BadSignatureError: The sender does not hold the key.
    """
    code_id, did, mac, proof = (
        str(redemption.get(name, "")) for name in ("code_id", "did", "mac", "proof")
    )
    if set(redemption) != {"code_id", "did", "mac", "proof"} or not CODE_ID.fullmatch(code_id):
        raise BadCodeError("redemption: must have code_id, did, mac and proof")
    if len(from_b64u(mac)) != hashlib.sha256().digest_size:
        raise BadCodeError("mac: must be 32 bytes in base64url")
    verify(public_of(did), _proof(code_id, did, mac), from_b64u(proof))
    return code_id, did


def check_mac(redemption: Mapping[str, Json], secret: bytes) -> str:
    """The did of a redemption made by whoever held the code's secret (the hospital's check).

    Steps: (1) the sender holds the key; (2) the MAC is that of this code's secret over this key.

    Raises:
        BadCodeError: (2) fails.
        BadSignatureError: (1) fails.
    """
    # (1)
    code_id, did = check_proof(redemption)
    # (2)
    if not hmac.compare_digest(_mac(secret, code_id, did), from_b64u(str(redemption["mac"]))):
        raise BadCodeError("mac: the sender did not hold this code")
    return did


def _mac(secret: bytes, code_id: str, did: str) -> bytes:
    message = encode(_MAC_TAG, {"code_id": code_id, "did": did})
    return hmac.new(secret, message, hashlib.sha256).digest()


def _proof(code_id: str, did: str, mac: str) -> bytes:
    return encode(_PROOF_TAG, {"code_id": code_id, "did": did, "mac": mac})


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


__all__ = [
    "CODE_DAYS_MAX",
    "BadCodeError",
    "BadSignatureError",
    "check_mac",
    "check_proof",
    "new_code",
    "parse_code",
    "redemption",
]
