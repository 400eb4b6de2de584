"""The browser component makes byte for byte what Python makes: canonical form, did, redemption."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import browser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coop.canonical import encode, jcs
from coop.documents.consent import Consent
from coop.documents.envelope import unsigned
from coop.documents.provision import Policy, Provision
from coop.enrolment import check_mac, new_code, parse_code
from coop.errors import CoopError
from coop.keys import SigningKey, did_of, proof_options, to_sign
from coop.passkeys import did_of_point, packed

SIGNER = Path(__file__).parent.parent / "ui/components/signer"
VALUES = [
    None,
    True,
    0,
    -5,
    2**53 - 1,
    "",
    "plain",
    'quotes " and \\ back',
    "\u2028\u2029\u0000\u001f\u007f",
    "Zürich 🤝",
    [],
    [1, [2, [3]]],
    {},
    {"b": 1, "a": {"z": [], "y": None}, "A": "x", "10": 1, "9": 2},
]
REFUSED = ["1.5", "NaN", "2**53", r"'\ud800'", "'e\u0301'", "{'\u00e9': 1}"]


@pytest.fixture(scope="module")
def page() -> Iterator[object]:
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(SIGNER), **kwargs)

        def log_message(self, *args):
            """Keep the test's output readable."""

        def do_GET(self):
            if self.path == "/":
                body = b"<!doctype html><title>twin</title>"
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            else:
                super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with browser() as chromium:
        opened = chromium.new_page()
        opened.goto(f"http://localhost:{server.server_port}/")
        opened.evaluate("import('/signer.js').then((twin) => { window.twin = twin; })")
        yield opened
    server.shutdown()
    server.server_close()


def run(page, code: str, *arguments: object):
    return page.evaluate(f"async (given) => {{ {code} }}", list(arguments))


def test_canonical_bytes_are_the_same_in_browser_and_hub(page):
    for value in VALUES:
        made = run(page, "return [...new TextEncoder().encode(twin.canonical(given[0]))]", value)
        assert bytes(made) == jcs(value)
    tagged = run(page, "return [...twin.encode('coop/x/v1', given[0])]", {"b": 1, "a": "ü"})
    assert bytes(tagged) == encode(b"coop/x/v1", {"b": 1, "a": "ü"})


@pytest.mark.parametrize("literal", REFUSED)
def test_what_has_no_canonical_form_is_refused_in_the_browser_too(page, literal: str):
    code = (
        f"try {{ twin.canonical({literal}); return 'accepted' }} catch (e) {{ return e.message }}"
    )
    assert run(page, code) == "not signable"


def test_the_bytes_signed_are_those_of_eddsa_jcs_2022(page):
    key = SigningKey.generate()
    subject = Consent(
        pid="a" * 26,
        site="cleveland",
        domain="research",
        sequence=1,
        event="grant",
        policy=Policy(provision=Provision(type="deny")),
    )
    document = unsigned(subject, issuer=key.did, now=1_800_000_000)
    proof = proof_options(key.did, 1_800_000_000, document["@context"])
    made = run(page, "return [...await twin.toSign(given[0])]", {**document, "proof": proof})
    assert bytes(made) == to_sign(document, proof)


def test_a_browser_made_redemption_passes_the_hospitals_check(page):
    code_id, secret, text = new_code("cleveland")
    made = run(
        page,
        """
        const pair = await crypto.subtle.generateKey("Ed25519", true, ["sign", "verify"]);
        const raw = [...new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey))];
        const did = twin.didOf(raw);
        const sent = await twin.redemption(twin.parseCode(given[0]), did,
            (bytes) => crypto.subtle.sign('Ed25519', pair.privateKey, bytes));
        return JSON.stringify({ raw, sent });
        """,
        "  " + text.upper() + " ",
    )
    answer = json.loads(made)
    assert answer["sent"]["did"] == did_of(bytes(answer["raw"]))
    assert answer["sent"]["code_id"] == code_id
    assert check_mac(answer["sent"], secret) == answer["sent"]["did"]
    _, _, other = new_code("cleveland")
    with pytest.raises(CoopError):
        check_mac(answer["sent"], parse_code(other)[1])


def test_a_passkeys_key_and_signature_are_packed_byte_for_byte_as_the_verifier_reads_them(page):
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    script = "return [...twin.pointOf(Uint8Array.from(given[0]))]"
    assert bytes(run(page, script, list(spki))) == point
    script = "return twin.didOf(Uint8Array.from(given[0]), [0x80, 0x24])"
    assert run(page, script, list(point)) == did_of_point(point)
    for turn in range(64):  # long and short numbers, both halves of s
        ders = key.sign(bytes([turn]), ec.ECDSA(SHA256()))
        parts = [bytes(range(37)), b'{"type":"webauthn.get"}', ders]
        script = "return [...twin.packed(...given[0].map((part) => Uint8Array.from(part)))]"
        assert bytes(run(page, script, [list(part) for part in parts])) == packed(*parts)


def test_a_mistyped_code_is_refused_before_anything_is_made(page):
    _, _, text = new_code("cleveland")
    for wrong in ("", "hello", text[:-1], text + "a", text.replace(".", "-")):
        said = run(
            page,
            "try { twin.parseCode(given[0]); return 'accepted' } catch (e) { return e.message }",
            wrong,
        )
        assert said == "bad_code"
