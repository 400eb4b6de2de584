"""Passkeys sign documents: a software authenticator against every step of the verification."""

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coop.canonical import b64u, sha256
from coop.documents.consent import UseRequest
from coop.documents.envelope import open_document, unsigned
from coop.errors import InvalidInputError
from coop.keys import BadSignatureError, SigningKey, proof_options, to_sign
from coop.passkeys import (
    RelyingParty,
    did_of_point,
    packed,
    point_of,
    proof_value_of_assertion,
    verify_assertion,
    verify_signed,
)

NOW = 1_800_000_000
PORTAL = RelyingParty(rp_id="portal.example", origins=("https://portal.example",))
PRESENT, VERIFIED, ATTESTED, EXTENDED = 0x01, 0x04, 0x40, 0x80


class Authenticator:
    """What a phone does: makes a P-256 key and signs what the browser tells it."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        point = self.key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        self.did = did_of_point(point)

    def parts(self, message: bytes, **changes) -> tuple[bytes, bytes, bytes]:
        """authenticatorData, clientDataJSON, DER signature."""
        said = {
            "type": "webauthn.get",
            "challenge": b64u(sha256(message)),
            "origin": "https://portal.example",
            "crossOrigin": False,
        }
        flags = changes.pop("flags", PRESENT | VERIFIED)
        rp_id = changes.pop("rp_id", "portal.example")
        client = orjson.dumps({n: v for n, v in (said | changes).items() if v is not None})
        authenticator = sha256(rp_id.encode()) + bytes([flags]) + (7).to_bytes(4)
        signature = self.key.sign(authenticator + sha256(client), ec.ECDSA(SHA256()))
        return authenticator, client, signature

    def sign(self, message: bytes, **changes) -> bytes:
        return packed(*self.parts(message, **changes))

    def document(self, subject, at: int = NOW, **changes) -> dict:
        bare = unsigned(subject, issuer=self.did, now=at)
        proof = proof_options(self.did, at, bare["@context"])
        assertion = self.sign(to_sign(bare, proof), **changes)
        return {**bare, "proof": {**proof, "proofValue": proof_value_of_assertion(assertion)}}


@pytest.fixture(scope="module")
def phone() -> Authenticator:
    return Authenticator()


def asked() -> UseRequest:
    return UseRequest(pid="a" * 26, site="zurich")


def test_a_passkeys_signature_of_a_document_counts_where_its_portal_is_pinned(phone):
    document = phone.document(asked())
    assert document["proof"]["cryptosuite"] == "ES256-webauthn"
    assert verify_signed(document, PORTAL) == phone.did
    opened = open_document(UseRequest, document, issuers=[phone.did], passkeys=PORTAL)
    assert opened.issuer == phone.did
    with pytest.raises(BadSignatureError, match="trust file"):
        verify_signed(document, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "webauthn.create"},
        {"challenge": b64u(sha256(b"another message"))},
        {"origin": "https://portal.example.evil"},
        {"origin": "http://portal.example"},
        {"origin": None},
        {"crossOrigin": True},
        {"topOrigin": "https://evil.example"},
        {"rp_id": "evil.example"},
        {"flags": 0},
        {"flags": PRESENT},
        {"flags": VERIFIED},
        {"flags": PRESENT | VERIFIED | ATTESTED},
        {"flags": PRESENT | VERIFIED | EXTENDED},
    ],
    ids=str,
)
def test_what_the_browser_or_the_device_says_otherwise_is_refused(phone, changes):
    with pytest.raises(BadSignatureError):
        verify_assertion(phone.did, b"message", phone.sign(b"message", **changes), PORTAL)
    verify_assertion(phone.did, b"message", phone.sign(b"message"), PORTAL)


def test_another_message_another_key_and_every_flipped_bit_are_refused(phone):
    assertion = phone.sign(b"message")
    with pytest.raises(BadSignatureError):
        verify_assertion(phone.did, b"other", assertion, PORTAL)
    with pytest.raises(BadSignatureError):
        verify_assertion(Authenticator().did, b"message", assertion, PORTAL)
    for place in range(len(assertion)):
        for bit in (0, 7):
            changed = bytearray(assertion)
            changed[place] ^= 1 << bit
            with pytest.raises(BadSignatureError):
                verify_assertion(phone.did, b"message", bytes(changed), PORTAL)
    for cut in (b"", assertion[:100], assertion[:-1], assertion + b" "):
        with pytest.raises(BadSignatureError):
            verify_assertion(phone.did, b"message", cut, PORTAL)


def test_of_the_two_forms_of_one_signature_only_the_lower_counts(phone):
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    assertion = phone.sign(b"message")
    s = int.from_bytes(assertion[69:101])
    assert s <= order // 2
    higher = assertion[:69] + (order - s).to_bytes(32) + assertion[101:]
    with pytest.raises(BadSignatureError, match="one accepted form"):
        verify_assertion(phone.did, b"message", higher, PORTAL)


def test_a_did_names_one_point_of_one_curve(phone):
    assert did_of_point(point_of(phone.did)) == phone.did
    other = ec.generate_private_key(ec.SECP256K1()).public_key()
    for point in (
        b"\x02" + b"\xff" * 32,
        other.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
        phone.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
    ):
        with pytest.raises(InvalidInputError):
            did_of_point(point)
    with pytest.raises(InvalidInputError):
        point_of(SigningKey.generate().did)


@pytest.mark.parametrize(
    ("rp_id", "origin", "good"),
    [
        ("portal.example", "https://portal.example", True),
        ("example.org", "https://portal.example.org:8443", True),
        ("localhost", "http://localhost:8460", True),
        ("portal.example", "http://portal.example", False),
        ("portal.example", "https://notportal.example", False),
        ("portal.example", "https://portal.example/", False),
        ("portal.example", "https://PORTAL.example", False),
        ("example", "https://example", False),
        ("127.0.0.1", "http://127.0.0.1:8460", False),
    ],
)
def test_only_origins_that_browsers_protect_can_be_pinned(rp_id, origin, good):
    if good:
        assert RelyingParty.of({"rp_id": rp_id, "origins": [origin]}).origins == (origin,)
        return
    with pytest.raises(InvalidInputError):
        RelyingParty.of({"rp_id": rp_id, "origins": [origin]})
