"""Signatures that a passkey makes (WebAuthn, ES256): checked to the letter, one form each.

A passkey signs `authenticatorData ‖ SHA-256(clientDataJSON)`. Its client data carries as challenge
the SHA-256 of the very bytes an Ed25519 key would sign, so the proof suite `ES256-webauthn` stands
beside `eddsa-jcs-2022` and every document may carry either. Steps numbered as in WebAuthn Level 2
§7.2, as far as they concern a signature that is verified long after it was made.

One assertion, one encoding: authenticatorData (37 bytes) ‖ r ‖ s (32 bytes each, s the smaller of
the two that verify) ‖ clientDataJSON as the browser made it; in a proof `u` and its base64url.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coop.canonical import Json, b64u, from_b64u, parse_object, sha256
from coop.errors import InvalidInputError
from coop.keys import (
    PASSKEY_SUITE,
    BadSignatureError,
    base58,
    checked_proof,
    from_base58,
    is_passkey,
    public_of,
    to_sign,
    verify,
    verify_document,
)

_P256_MULTICODEC: Final = b"\x80\x24"  # multicodec p256-pub, 0x1200 as a varint
_POINT_BYTES: Final = 33
_AUTHENTICATOR_BYTES: Final = 37  # hash of the rp id, flags, counter; no extension was asked for
_SCALAR_BYTES: Final = 32
_FIXED_BYTES: Final = _AUTHENTICATOR_BYTES + 2 * _SCALAR_BYTES
_CLIENT_BYTES_MAX: Final = 1024  # browsers write about 130, and a hint to parsers at times
ASSERTION_CHARS_MAX: Final = 1500
_PRESENT: Final = 0x01
_VERIFIED: Final = 0x04
_ATTESTED: Final = 0x40
_EXTENDED: Final = 0x80
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
_MEMBERS: Final = {"rp_id", "origins"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RelyingParty:
    """For whom passkeys sign here: pinned in the trust file, never taken from a document."""

    rp_id: str
    origins: tuple[str, ...]

    @classmethod
    def of(cls, value: Json) -> Self:
        """Read `{"rp_id", "origins"}`.

        Raises:
            InvalidInputError: An origin is not this party's, or not one that browsers protect.
        """
        if not isinstance(value, dict) or set(value) != _MEMBERS:
            raise InvalidInputError("passkeys: needs exactly rp_id and origins")
        rp_id, origins = value["rp_id"], value["origins"]
        if not isinstance(rp_id, str) or not isinstance(origins, list) or not origins:
            raise InvalidInputError("passkeys: rp_id is a host, origins a list of addresses")
        for origin in origins:
            _check_origin(origin, rp_id)
        return cls(rp_id=rp_id, origins=tuple(origins))

    @classmethod
    def at(cls, address: str) -> Self | None:
        """The party of a portal at this address; None where browsers offer no passkeys."""
        parts = urlsplit(address)
        host = parts.hostname or ""
        origin = f"{parts.scheme}://{parts.netloc}".lower()
        try:
            return cls.of({"rp_id": host, "origins": [origin]})
        except InvalidInputError:
            return None

    def to_json(self) -> dict[str, Json]:
        """The members of the trust file."""
        origins: list[Json] = list(self.origins)
        return {"rp_id": self.rp_id, "origins": origins}


def did_of_point(point: bytes) -> str:
    """The `did:key` of a compressed P-256 point."""
    _key(point)
    return f"did:key:z{base58(_P256_MULTICODEC + point)}"


def point_of(did: str) -> bytes:
    """The compressed P-256 point of a `did:key`.

    Raises:
        InvalidInputError: Not a P-256 did:key.
    """
    data = from_base58(did.removeprefix("did:key:z")) if is_passkey(did) else b""
    if len(data) != 2 + _POINT_BYTES or data[:2] != _P256_MULTICODEC:
        raise InvalidInputError(f"did: {did[:80]!r} is not a P-256 did:key")
    _key(data[2:])
    return data[2:]


def check_did(did: str) -> str:
    """The did, if it is one of either kind.

    Raises:
        InvalidInputError: It names no key.
    """
    _ = point_of(did) if is_passkey(did) else public_of(did)
    return did


def packed(authenticator_data: bytes, client_data: bytes, der: bytes) -> bytes:
    """The one encoding of what a browser's `navigator.credentials.get` gives."""
    try:
        r, s = decode_dss_signature(der)
    except ValueError as error:
        raise BadSignatureError("signature: not DER") from error
    low = min(s, _ORDER - s)
    return (
        authenticator_data + r.to_bytes(_SCALAR_BYTES) + low.to_bytes(_SCALAR_BYTES) + client_data
    )


def verify_assertion(
    did: str, message: bytes, assertion: bytes, party: RelyingParty | None
) -> None:
    """Return if this passkey signed `message`, its holder present and recognised.

    Steps: (1) a relying party is pinned, and the assertion has its form; (7) it is an assertion,
    (8) of this very message, (9) made at one of the pinned origins and in no frame of another;
    (11) for the pinned relying party, (12) with the holder present, (13) and recognised by the
    device; (14) without anything that was not asked for; (16) the signature verifies, in its lower
    form.

    Raises:
        BadSignatureError: Any of them fails.
    """
    # (1)
    if party is None:
        raise BadSignatureError("proof: passkeys sign only where the trust file names their portal")
    client = assertion[_FIXED_BYTES:]
    if not 0 < len(client) <= _CLIENT_BYTES_MAX:
        raise BadSignatureError("signature: not the assertion of a passkey")
    # (7), (8), (9)
    _check_client_data(client, message, party)
    # (11), (12), (13), (14)
    authenticator = assertion[:_AUTHENTICATOR_BYTES]
    flags = authenticator[32]
    if authenticator[:32] != sha256(party.rp_id.encode()):
        raise BadSignatureError("authenticatorData: for another relying party")
    if not flags & _PRESENT or not flags & _VERIFIED:
        raise BadSignatureError("authenticatorData: nobody was present and recognised")
    if flags & (_ATTESTED | _EXTENDED):
        raise BadSignatureError("authenticatorData: holds more than was asked for")
    # (16)
    r, s = (
        int.from_bytes(assertion[at : at + _SCALAR_BYTES])
        for at in (_AUTHENTICATOR_BYTES, _AUTHENTICATOR_BYTES + _SCALAR_BYTES)
    )
    if not 0 < r < _ORDER or not 0 < s <= _ORDER // 2:
        raise BadSignatureError("signature: not in its one accepted form")
    try:
        _key(point_of(did)).verify(
            encode_dss_signature(r, s), authenticator + sha256(client), ec.ECDSA(SHA256())
        )
    except InvalidSignature as error:
        raise BadSignatureError("signature: does not verify") from error


def verify_by(did: str, message: bytes, signature: bytes, party: RelyingParty | None) -> None:
    """Return if `did`, of either kind, signed `message`.

    Raises:
        BadSignatureError: It did not.
    """
    if is_passkey(did):
        verify_assertion(did, message, signature, party)
    else:
        verify(public_of(did), message, signature)


def verify_signed(document: Mapping[str, Json], party: RelyingParty | None) -> str:
    """The did that signed `document`, by either suite; **the caller** decides what it may say.

    Raises:
        BadSignatureError: It did not.
    """
    proof = document.get("proof")
    if not isinstance(proof, dict) or proof.get("cryptosuite") != PASSKEY_SUITE:
        return verify_document(document)
    did, proof = checked_proof(document, PASSKEY_SUITE)
    assertion = assertion_of(str(proof.get("proofValue")))
    verify_assertion(did, to_sign(document, proof), assertion, party)
    return did


def assertion_of(proof_value: str) -> bytes:
    """The bytes of an assertion in its multibase `proofValue`."""
    if not proof_value.startswith("u") or len(proof_value) > ASSERTION_CHARS_MAX:
        raise BadSignatureError("proofValue: must be 'u' and the base64url of an assertion")
    try:
        return from_b64u(proof_value[1:])
    except InvalidInputError as error:
        raise BadSignatureError("proofValue: not base64url") from error


def proof_value_of_assertion(assertion: bytes) -> str:
    """The multibase `proofValue` of an assertion."""
    return "u" + b64u(assertion)


def _check_client_data(client: bytes, message: bytes, party: RelyingParty) -> None:
    try:
        said = parse_object(client.decode())
    except (InvalidInputError, UnicodeDecodeError) as error:
        raise BadSignatureError("clientDataJSON: not strict JSON") from error
    if said.get("type") != "webauthn.get":
        raise BadSignatureError("clientDataJSON: not an assertion")
    if said.get("challenge") != b64u(sha256(message)):
        raise BadSignatureError("clientDataJSON: signs something else")
    if said.get("origin") not in party.origins:
        raise BadSignatureError("clientDataJSON: made at an origin that is not pinned")
    if said.get("crossOrigin", False) is not False or "topOrigin" in said:
        raise BadSignatureError("clientDataJSON: made inside a page of another origin")


def _check_origin(origin: Json, rp_id: str) -> None:
    parts = urlsplit(origin) if isinstance(origin, str) else urlsplit("")
    host = parts.hostname or ""
    plain = isinstance(origin, str) and origin == f"{parts.scheme}://{parts.netloc}".lower()
    local = parts.scheme == "http" and host == rp_id == "localhost"
    secure = parts.scheme == "https" and (host == rp_id or host.endswith(f".{rp_id}"))
    if not plain or not rp_id or not (local or (secure and "." in rp_id)):
        raise InvalidInputError(
            "passkeys: an origin is https:// and the relying party's host, or http://localhost"
        )


def _key(point: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise InvalidInputError("did: names no point of P-256") from error
    if key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint) != point:
        raise InvalidInputError("did: must name the compressed point")
    return key
