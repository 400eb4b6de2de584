"""Keys and proofs: the published vector byte for byte, and nothing that differs from it."""

import json
import stat
from pathlib import Path

import pytest
from beside import OWN, published
from hypothesis import given
from hypothesis import strategies as st
from small_world import HUB, NOW, PATIENT, consent_receipt, key

from coop import keys
from coop.canonical import jcs, sha256
from coop.errors import ConflictError, InvalidInputError, NotFoundError
from coop.keys import (
    BadSignatureError,
    SigningKey,
    did_of,
    iso,
    proof_value_of,
    public_of,
    sign_document,
    to_sign,
    verify,
    verify_document,
)


def test_the_w3c_vector_reproduces_byte_for_byte():
    folder = published("eddsa-jcs-2022")
    pair = json.loads((folder / "keyPair.json").read_text())
    signed = json.loads((folder / "signedJCS.json").read_text())
    private = keys.from_base58(pair["privateKeyMultibase"].removeprefix("z"))
    signer = SigningKey(private[2:])
    proof = signed["proof"]
    document = {name: value for name, value in signed.items() if name != "proof"}
    options = {name: value for name, value in proof.items() if name != "proofValue"}

    assert signer.did == f"did:key:{pair['publicKeyMultibase']}"
    assert jcs(document).decode() == (folder / "canonDocJCS.txt").read_text().strip()
    assert jcs(options).decode() == (folder / "proofCanonJCS.txt").read_text().strip()
    assert sha256(jcs(document)).hex() == (folder / "docHashJCS.txt").read_text().strip()
    assert sha256(jcs(options)).hex() == (folder / "proofHashJCS.txt").read_text().strip()
    assert to_sign(signed, proof).hex() == (folder / "combinedHashJCS.txt").read_text().strip()
    signature = signer.sign(to_sign(signed, proof))
    assert signature.hex() == (folder / "sigHexJCS.txt").read_text().strip()
    assert proof_value_of(signature) == (folder / "sigBTC58JCS.txt").read_text().strip()
    assert proof_value_of(signature) == proof["proofValue"]


def test_our_own_vector_reproduces_byte_for_byte():
    vector = json.loads((OWN / "signed-document.json").read_text())
    signer = SigningKey(bytes.fromhex(vector["seed"]))
    assert signer.did == vector["did"]
    assert jcs(vector["document"]).decode() == vector["canonical"]
    signed = sign_document(vector["document"], signer, created=vector["created"])
    assert signed == vector["signed"]
    assert verify_document(vector["signed"]) == vector["did"]


def test_the_rfc_8032_vectors_reproduce():
    for vector in json.loads((OWN / "rfc8032.json").read_text())["vectors"]:
        signer = SigningKey(bytes.fromhex(vector["seed"]))
        message, signature = bytes.fromhex(vector["message"]), bytes.fromhex(vector["signature"])
        assert signer.public.hex() == vector["public"]
        assert signer.sign(message) == signature
        verify(signer.public, message, signature)


@given(st.binary(min_size=32, max_size=32))
def test_a_did_names_its_key_exactly(public):
    assert public_of(did_of(public)) == public


@pytest.mark.parametrize(
    "did",
    [
        "",
        "did:key:",
        "did:key:z",
        "did:key:z6Mk0",
        "did:web:example.org",
        HUB.did + "1",
        HUB.did[:-1],
        HUB.did.upper(),
        "did:key:z" + "6" * 200,
        # X25519: the right length and another multicodec
        "did:key:z" + keys.base58(b"\xec\x01" + bytes(32)),
    ],
)
def test_anything_else_is_no_did(did):
    with pytest.raises(InvalidInputError):
        public_of(did)


def test_a_key_file_is_its_owners_alone_and_never_overwritten(tmp_path: Path):
    path = tmp_path / "hub.key"
    HUB.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).did == HUB.did
    with pytest.raises(ConflictError):
        PATIENT.save(path)
    assert SigningKey.load(path).did == HUB.did


def test_a_missing_key_file_says_what_to_do(tmp_path: Path):
    with pytest.raises(NotFoundError, match="make it"):
        SigningKey.load(tmp_path / "none.key")


def test_a_key_never_shows_its_seed():
    seed = bytes(range(32))
    shown = f"{SigningKey(seed)!r} {SigningKey(seed)}"
    assert seed.hex() not in shown
    assert "did:key:z6Mk" in shown


def test_two_keys_are_never_the_same():
    assert SigningKey.generate().did != SigningKey.generate().did


def test_a_signature_of_something_else_is_refused():
    signature = HUB.sign(b"message")
    verify(HUB.public, b"message", signature)
    for public, message, given_signature in (
        (HUB.public, b"massage", signature),
        (PATIENT.public, b"message", signature),
        (HUB.public, b"message", bytes(64)),
        (HUB.public, b"message", signature[:-1]),
        (HUB.public, b"message", b""),
        (b"short", b"message", signature),
    ):
        with pytest.raises(BadSignatureError):
            verify(public, message, given_signature)


def test_a_signature_has_one_form_only():
    # S + L signs the same message under a sloppy verifier: RFC 8032 §5.1.7 demands S < L.
    order = 2**252 + 27742317777372353535851937790883648493
    signature = HUB.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(BadSignatureError):
        verify(HUB.public, b"message", signature[:32] + scalar.to_bytes(32, "little"))


def test_only_the_issuer_can_sign_a_document():
    with pytest.raises(InvalidInputError, match="issuer"):
        sign_document({"issuer": HUB.did, "@context": []}, PATIENT, created=NOW)


def test_a_signed_document_names_its_signer():
    assert verify_document(consent_receipt()) == HUB.did


def changed(**proof: object) -> dict[str, object]:
    document = consent_receipt()
    return {**document, "proof": {**document["proof"], **proof}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {**consent_receipt(), "proof": None},
        {**consent_receipt(), "proof": []},
        {**consent_receipt(), "issuer": PATIENT.did},
        {**consent_receipt(), "issuer": 7},
        {**consent_receipt(), "id": "urn:uuid:another"},
        {**consent_receipt(), "@context": []},
        {**consent_receipt(), "more": 1},
        changed(cryptosuite="eddsa-rdfc-2022"),
        changed(type="Ed25519Signature2020"),
        changed(proofPurpose="authentication"),
        changed(created="2020-01-01T00:00:00Z"),
        changed(verificationMethod=f"{PATIENT.did}#{PATIENT.did[8:]}"),
        changed(verificationMethod=HUB.did),
        changed(proofValue=""),
        changed(proofValue="z"),
        changed(proofValue=7),
        changed(proofValue=proof_value_of(bytes(64))),
        changed(expires="2030-01-01T00:00:00Z"),
    ],
)
def test_a_document_changed_anywhere_does_not_verify(document):
    with pytest.raises(BadSignatureError):
        verify_document(document)


def test_a_document_signed_again_by_another_key_has_another_issuer():
    forged = consent_receipt(by=key("forger"))
    assert verify_document(forged) != HUB.did


def test_time_is_written_as_utc():
    assert iso(0) == "1970-01-01T00:00:00Z"
    assert iso(1_790_000_000) == "2026-09-21T14:13:20Z"


def test_random_bytes_are_as_many_as_asked_and_fresh():
    assert len(keys.random_bytes(32)) == 32
    assert keys.random_bytes(32) != keys.random_bytes(32)


def test_a_file_that_holds_no_key_is_refused_without_its_content(tmp_path: Path):
    (tmp_path / "a.key").write_bytes(b"\xffsecret")
    with pytest.raises(InvalidInputError) as caught:
        SigningKey.load(tmp_path / "a.key")
    assert "secret" not in str(caught.value)
