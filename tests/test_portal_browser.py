"""A patient's whole way in a real browser: join, decide, sign, look, stop; and nothing leaks."""

import base64
import json
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from chromium import browser
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from portal_world import house

from coop.canonical import jcs
from coop.enrolment import parse_code
from coop.keys import SigningKey
from coop.verify import verify_consent

PASSPHRASE = "correct horse battery"
AXE = Axe()


def accessible(page, name: str) -> None:
    """No serious finding, and nothing to scroll sideways, on a desk and on a telephone."""
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(150)
        found = AXE.run(page).response["violations"]
        grave = [v["id"] for v in found if v["impact"] in {"serious", "critical"}]
        assert grave == [], f"{name} at {width}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def opened_file(path: Path) -> bytes:
    """The seed in a recovery file, as its owner could recover it without us."""
    file = json.loads(path.read_text())
    sealed = base64.b64decode(file.pop("sealed"))
    kdf = PBKDF2HMAC(SHA256(), 32, base64.b64decode(file["salt"]), file["rounds"])
    cipher = AESGCM(kdf.derive(PASSPHRASE.encode()))
    seed = cipher.decrypt(base64.b64decode(file["iv"]), sealed, jcs(file))[-32:]
    assert SigningKey(seed).did == file["did"]
    return seed


def spellings(secret: bytes) -> list[bytes]:
    plain = base64.b64encode(secret).rstrip(b"=")
    url = base64.urlsafe_b64encode(secret).rstrip(b"=")
    return [secret, secret.hex().encode(), plain, url]


def test_a_patient_joins_decides_signs_and_stops_and_nothing_secret_leaves_her_browser(  # noqa: PLR0915  (one way, told once)
    tmp_path: Path,
):
    sent: list[bytes] = []
    addresses: list[str] = []
    console: list[str] = []
    with house(tmp_path) as home, home.portal() as url, browser() as chromium:
        page = chromium.new_page()

        def frame(data: str | bytes) -> None:
            sent.append(data if isinstance(data, bytes) else data.encode())

        def request(asked) -> None:
            addresses.append(asked.url)
            sent.append((asked.post_data_buffer or b"") + asked.url.encode())

        page.on("websocket", lambda socket: socket.on("framesent", frame))
        page.on("request", request)
        page.on(
            "console",
            lambda said: (
                console.append(f"{said.text} {said.location}")
                # Streamlit probes its own paths below a deep link; it handles the 404.
                if said.type == "error" and "/_stcore/" not in str(said.location)
                else None
            ),
        )

        def visit(path: str, title: str) -> None:
            page.goto(f"{url}{path}")
            page.get_by_role("heading", name=title, level=1).wait_for()
            page.locator("[data-testid=stStatusWidget]").wait_for(state="detached")

        visit("/", "Health data cooperative")
        page.get_by_text("Transparency log").wait_for()
        accessible(page, "public")
        visit("/verify", "Verify a receipt")
        accessible(page, "verify")
        visit("/sign-in", "Sign in")
        accessible(page, "sign-in")
        # No page offers a list of people to become: she types who she is.
        page.get_by_test_id("stMain").get_by_role("button", name="Sign in").click()
        page.get_by_label("Name").fill("ada")
        assert "bea" not in page.content()
        accessible(page, "provider")
        page.get_by_label("Passphrase").fill("pass-ada")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="My consents").wait_for()

        visit("/join", "Join with a code")
        code = home.code(1)
        page.get_by_label("The code from").fill(code)
        page.get_by_label("A passphrase").fill(PASSPHRASE)
        accessible(page, "join")
        with page.expect_download() as recovery:
            page.get_by_role("button", name="Make my key and join").click()
        seed = opened_file(Path(recovery.value.path()))
        page.get_by_role("link", name="Decide now").click()
        page.get_by_role("heading", name="Decide", level=1).wait_for()
        page.get_by_role("button", name="Show me what").click()
        page.get_by_role("button", name="Sign on this device").wait_for()
        accessible(page, "decide")
        page.get_by_role("button", name="Sign on this device").click()
        page.get_by_text("Signed and recorded").wait_for()
        with page.expect_download() as receipt:
            page.get_by_role("button", name="Download the receipt").click()
        assert json.loads(Path(receipt.value.path()).read_text())["kind"] == "consent-receipt"

        with home.client("ada") as ada:
            (entry,) = ada.get("/v1/me/consents")["consents"]
            (event,) = ada.get(f"/v1/consents/{entry['pid']}/history")["events"]
            assert (entry["state"], entry["did"]) == ("active", SigningKey(seed).did)
            with home.hub_database() as connection:
                trust = home.hub.trust(connection)
            assert verify_consent(event["proof"], trust)
            assert "notice" in str(event["proof"])

            visit("/uses", "Who used my data")
            page.get_by_text("Nothing has used your record").wait_for()
            accessible(page, "uses")
            visit("/credits", "Thank-you credits")
            page.get_by_text("Waiting for you").wait_for()
            accessible(page, "credits")
            visit("/", "My consents")
            accessible(page, "consents")
            page.get_by_role("button", name="Stop").click()
            page.get_by_text("in effect everywhere").wait_for()
            assert ada.get("/v1/me/consents")["consents"][0]["state"] == "revoked"
    assert console == []
    own = (url, home.provider.issuer, "blob:", "data:")
    assert [address for address in addresses if not address.startswith(own)] == []
    everything = b"\n".join(sent)
    assert SigningKey(seed).did.encode() in everything  # the recording sees what is sent
    secrets = [*spellings(seed), *spellings(parse_code(code)[1]), PASSPHRASE.encode()]
    written = code.rpartition(parse_code(code)[0] + "-")[2].encode()
    assert [secret for secret in [*secrets, written] if secret in everything] == []
