"""docs/spec/consent-log.md: its worked example, checked as a stranger would and as we make it."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from small_world import DIDS, HUB, LOG, NOW, PATIENT, PID, SITES, TRUST

from consent.chain import _NEXT, heads_digest, keys_of
from coop.canonical import document_digest, jcs
from coop.documents.consent import Consent, ConsentReceipt
from coop.documents.envelope import issue
from coop.journal import note
from coop.journal.commitments import commitment, leaf_of
from coop.journal.merkle import Tree, leaf_hash
from coop.journal.receipts import proof_text
from coop.verify.bundles import KINDS

PAGE = (Path(__file__).parent.parent / "docs/spec/consent-log.md").read_text()
SALTS = (bytes(range(32)), bytes(range(32, 64)))


def example() -> dict[str, str]:
    """Every value of the worked example, as our own code makes it."""
    said = Consent(pid=PID, site="cleveland", domain="research", sequence=1, event="object")
    envelope = issue(said, PATIENT, NOW, id="urn:uuid:00000000-0000-4000-8000-000000000001")
    receipt = issue(
        ConsentReceipt(
            pid=PID,
            site="cleveland",
            consent_sha256=document_digest(envelope),
            event="object",
            index=0,
            salt=SALTS[0].hex(),
            effective_by=NOW + 60,
        ),
        HUB,
        NOW,
        id="urn:uuid:00000000-0000-4000-8000-000000000002",
    )
    leaves = [
        leaf_of(kind, commitment(salt, document))
        for kind, salt, document in (
            ("consent", SALTS[0], envelope),
            ("consent-receipt", SALTS[1], receipt),
        )
    ]
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    signed = note.sign_checkpoint(TRUST.origin, 2, tree.root(), LOG)
    cosigned = note.cosign(signed, name="zurich", key=SITES["zurich"], now=NOW + 2)
    return {
        "envelope": jcs(envelope).decode(),
        "envelope sha256": document_digest(envelope),
        "salt": SALTS[0].hex(),
        "commitment": commitment(SALTS[0], envelope),
        "leaf 0": leaves[0].decode(),
        "leaf 1": leaves[1].decode(),
        "leaf hash 0": leaf_hash(leaves[0]).hex(),
        "leaf hash 1": leaf_hash(leaves[1]).hex(),
        "root": tree.root().hex(),
        "log vkey": note.vkey(TRUST.origin, LOG.did),
        "zurich vkey": note.vkey("zurich", DIDS["zurich"], cosigner=True),
        "heads sha256": heads_digest({PID: document_digest(envelope)}),
        "tlog-proof": proof_text(0, tree.inclusion(0, 2), cosigned),
    }


def written(name: str) -> str:
    """A value as it stands in the page."""
    if name == "tlog-proof":
        found = re.search(
            r"^```\n(c2sp\.org/tlog-proof@v1\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE
        )
    else:
        found = re.search(rf"^{re.escape(name)}:\s+(\S.*)$", PAGE, re.MULTILINE)
    assert found is not None, f"the page has no {name}"
    return found[1]


@pytest.mark.parametrize("name", list(example()))
def test_the_example_in_the_page_is_what_the_code_makes(name: str):
    assert written(name) == example()[name]


def test_a_stranger_who_follows_the_page_accepts_the_example():
    """Standard library and Ed25519 alone: the numbered steps of the page, with nothing of ours."""

    def sha(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    def key_of(vkey: str) -> bytes:
        return base64.b64decode(vkey.split("+", 2)[2])[1:]

    def plain(value: object) -> bytes:  # RFC 8785 of what holds no float and no odd text
        return json.dumps(  # noqa: TID251  (a stranger has nothing else)
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    envelope = json.loads(written("envelope"))
    assert plain(envelope) == written("envelope").encode()
    # 1: the proof of the document
    bare = {name: value for name, value in envelope.items() if name != "proof"}
    options = {name: value for name, value in envelope["proof"].items() if name != "proofValue"}
    patient = Ed25519PublicKey.from_public_bytes(_base58(envelope["issuer"][9:])[2:])
    signature = _base58(envelope["proof"]["proofValue"][1:])
    patient.verify(signature, sha(plain(options)) + sha(plain(bare)))
    # 2: the leaf
    digest = sha(written("envelope").encode())
    assert digest.hex() == written("envelope sha256")
    committed = sha(b"coop/commit/v1\x00" + bytes.fromhex(written("salt")) + digest).hex()
    leaf = b'{"c":"%s","t":"consent","v":1}' % committed.encode()
    assert leaf.decode() == written("leaf 0")
    # 3: the proof
    head, _, checkpoint = written("tlog-proof").partition("\n\n")
    header, index, *hashes = head.split("\n")
    assert (header, index) == ("c2sp.org/tlog-proof@v1", "index 0")
    (sibling,) = (base64.b64decode(line) for line in hashes)
    root = sha(b"\x01" + sha(b"\x00" + leaf) + sibling)
    assert root.hex() == written("root")
    # 4: the checkpoint
    body, _, lines = checkpoint.partition("\n\n")
    body += "\n"
    origin, size, told = body.splitlines()
    assert (size, base64.b64decode(told)) == ("2", root)
    own, hospital = (line.split(" ") for line in lines.splitlines())
    assert own[1] == origin
    log_key = key_of(written("log vkey"))
    data = base64.b64decode(own[2])
    assert data[:4] == sha(origin.encode() + b"\n\x01" + log_key)[:4]
    Ed25519PublicKey.from_public_bytes(log_key).verify(data[4:], body.encode())
    # 5: the cosignature
    zurich = key_of(written("zurich vkey"))
    data = base64.b64decode(hospital[2])
    assert data[:4] == sha(b"zurich\n\x04" + zurich)[:4]
    at = int.from_bytes(data[4:12])
    message = f"cosignature/v1\ntime {at}\n{body}".encode()
    Ed25519PublicKey.from_public_bytes(zurich).verify(data[12:], message)
    # the lease's digest
    pid = envelope["credentialSubject"]["pid"]
    pairs = plain(f"{pid} {digest.hex()}\n")
    assert sha(b"coop/heads/v1\x00" + pairs).hex() == written("heads sha256")


def _base58(text: str) -> bytes:
    letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number = 0
    for letter in text:
        number = number * 58 + letters.index(letter)
    return number.to_bytes((number.bit_length() + 7) // 8)


def test_the_page_names_every_kind_and_every_step_of_the_state_machine():
    for kind in ("consent", "consent-receipt", "enrolment", "key-event", "erasure"):
        assert kind in KINDS
        assert f"`{kind}`" in PAGE
    for state, event in _NEXT:
        assert f"`{event}`" in PAGE, event
        assert str(state) in PAGE, state
    assert keys_of("PID") == "PID.keys"
    assert "`PID.keys`" in PAGE
