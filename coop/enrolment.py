"""Enrolment codes: how a key that a patient made comes to speak for her record.

The hospital prints a code = public id ‖ 128-bit secret. The patient makes a key for this record
only and sends the *redemption*: code id, public key, proof of possession, and an HMAC of the key
under the secret. The secret itself never leaves her device, so the hub can check that whoever
redeems holds the key, and only the hospital can check that she held the code.

Bytes (the browser's twin must make the same): `mac = b64u(HMAC-SHA256(secret, encode("coop/enrol/
mac/v1", {"code_id", "did"})))`, `proof = b64u(signature(encode("coop/enrol/v1", {"code_id", "did",
"mac"})))`, by an Ed25519 key or a passkey. What she wishes for her key (`next_key_sha256`,
`guardians` and `threshold`) stands beside these members and under both.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

from coop.canonical import Json, b64u, encode, from_b64u
from coop.documents.people import check_guardians
from coop.errors import InvalidInputError, Kind
from coop.keys import BadSignatureError, SigningKey, random_bytes
from coop.passkeys import RelyingParty, check_did, verify_by

_MAC_TAG: Final = b"coop/enrol/mac/v1"
_PROOF_TAG: Final = b"coop/enrol/v1"
_ID_LETTERS: Final = 8  # 40 bits: names a code, guards nothing
_SECRET_BYTES: Final = 16  # 128 bits: the guard
_SECRET_LETTERS: Final = 26
_GROUP: Final = 5
_LETTER_GROUPS: Final = 4  # of six: 50 bits are handed over, 78 come by letter
_CODE: Final = re.compile(r"([a-z][a-z0-9_-]{0,63}\.[a-z2-7]{8})-([a-z2-7-]{26,40})")
CODE_ID: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}\.[a-z2-7]{8}")
CODE_DAYS_MAX: Final = 7
_MEMBERS: Final = {"code_id", "did", "mac", "proof"}
_WISHES: Final = {"next_key_sha256", "guardians", "threshold"}
_HASH: Final = re.compile(r"[0-9a-f]{64}")


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


def in_two(code_text: str) -> tuple[str, str]:
    """A code as two parts that go two ways; one written after the other, they are the code.

    Whoever has the first part only can try the second at the hospital alone, where a code is
    single use. A hub that somebody gave the first part could try against a redemption it holds
    back: 2^78 times, within a week.
    """
    groups = code_text.split("-")
    return "-".join(groups[:-_LETTER_GROUPS]), "-".join(groups[-_LETTER_GROUPS:])


def joined(handed: str, letter: str | None) -> str:
    """The code of what was handed over and, if there was one, of what the letter says."""
    return f"{handed.strip()}-{letter.strip()}" if letter else handed


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


def redemption(
    code_text: str, key: SigningKey, wishes: Mapping[str, Json] | None = None
) -> dict[str, Json]:
    """What the holder of `code_text` sends so that `key` is enrolled for her record.

    Args:
        code_text: From her hospital.
        key: Hers.
        wishes: `next_key_sha256`; `guardians` and `threshold`.
    """
    code_id, secret = parse_code(code_text)
    bound: dict[str, Json] = {"code_id": code_id, "did": key.did, **(wishes or {})}
    bound["mac"] = b64u(_mac(secret, bound))
    return {**bound, "proof": b64u(key.sign(encode(_PROOF_TAG, bound)))}


def wishes_of(redemption: Mapping[str, Json]) -> dict[str, Json]:
    """What a redemption says of the key that may follow and of who may recover it.

    Raises:
        BadCodeError: Not in their form.
    """
    wishes = {name: redemption[name] for name in _WISHES if name in redemption}
    if not _HASH.fullmatch(str(wishes.get("next_key_sha256", "0" * 64))):
        raise BadCodeError("next_key_sha256: must be 64 hex digits")
    guardians, threshold = wishes.get("guardians"), wishes.get("threshold")
    if not isinstance(guardians, list | None) or not isinstance(threshold, int | None):
        raise BadCodeError("guardians: a list of dids, and a threshold")
    try:
        check_guardians([check_did(str(did)) for did in guardians or ()] or None, threshold)
    except (ValueError, InvalidInputError) as error:
        raise BadCodeError(f"redemption: {error}") from error
    return wishes


def check_proof(
    redemption: Mapping[str, Json], passkeys: RelyingParty | None = None
) -> tuple[str, str]:
    """The code id and did of a redemption whose sender holds that did's key (the hub's check).

    Args:
        redemption: As sent.
        passkeys: The portal whose passkeys may redeem.

    Raises:
        BadCodeError: A member is missing or malformed.
        BadSignatureError: The sender does not hold the key.
    """
    code_id, did, mac, proof = (
        str(redemption.get(name, "")) for name in ("code_id", "did", "mac", "proof")
    )
    if set(redemption) - _WISHES != _MEMBERS or not CODE_ID.fullmatch(code_id):
        raise BadCodeError("redemption: must have code_id, did, mac and proof")
    if len(from_b64u(mac)) != hashlib.sha256().digest_size:
        raise BadCodeError("mac: must be 32 bytes in base64url")
    signed: dict[str, Json] = {"code_id": code_id, "did": did, "mac": mac, **wishes_of(redemption)}
    verify_by(check_did(did), encode(_PROOF_TAG, signed), from_b64u(proof), passkeys)
    return code_id, did


def check_mac(
    redemption: Mapping[str, Json], secret: bytes, passkeys: RelyingParty | None = None
) -> str:
    """The did of a redemption made by whoever held the code's secret (the hospital's check).

    Steps: (1) the sender holds the key; (2) the MAC is that of this code's secret over this key and
    what is wished for it.

    Raises:
        BadCodeError: (2) fails.
        BadSignatureError: (1) fails.
    """
    # (1)
    code_id, did = check_proof(redemption, passkeys)
    # (2)
    bound: dict[str, Json] = {"code_id": code_id, "did": did, **wishes_of(redemption)}
    if not hmac.compare_digest(_mac(secret, bound), from_b64u(str(redemption["mac"]))):
        raise BadCodeError("mac: the sender did not hold this code")
    return did


def _mac(secret: bytes, bound: Mapping[str, Json]) -> bytes:
    return hmac.new(secret, encode(_MAC_TAG, dict(bound)), hashlib.sha256).digest()


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
    "wishes_of",
]
