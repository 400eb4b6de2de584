"""What a receipt says of a request and its answer without saying them: keyed commitments.

Features and risks have few values, so a plain digest could be guessed; the nonce that opens a
commitment goes to the researcher and nowhere else. Core: pure.
"""

import hmac
from hashlib import sha256 as _sha256
from typing import Final

from coop.canonical import encode, sha256

NONCE_BYTES: Final = 32
_RESULT_TAG: Final = b"coop/inference-result/v1"


def request_commitment(nonce: bytes, body_sha256: str) -> str:
    """Keyed commitment to a request: features are few enough to guess, so the key is secret."""
    return hmac.new(nonce, bytes.fromhex(body_sha256), _sha256).hexdigest()


def result_sha256(nonce: bytes, response: bytes) -> str:
    """Commitment to a response; a single risk has a thousand values, so the nonce goes in."""
    bound = {"nonce": nonce.hex(), "response_sha256": sha256(response).hex()}
    return sha256(encode(_RESULT_TAG, bound)).hex()
