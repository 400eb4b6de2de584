"""A patient's whole way in a real browser: join, decide, sign, look, stop; and nothing leaks."""

import base64
import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from chromium import browser
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from portal_world import NOTICE, house

from coop.canonical import jcs
from coop.demo.recovery import recovery_file
from coop.enrolment import parse_code
from coop.keys import SigningKey
from coop.verify import verify_consent

PASSPHRASE = "correct horse battery"
AXE = Axe()
KEPT = """
async (did) => {
  const opened = await new Promise((done) => {
    const request = indexedDB.open("coop-keys", 1);
    request.onsuccess = () => done(request.result);
  });
  const store = opened.transaction("keys").objectStore("keys");
  const key = await new Promise((done) => {
    const request = store.get(did);
    request.onsuccess = () => done(request.result);
  });
  opened.close();
  try { await crypto.subtle.exportKey("pkcs8", key); return [key.extractable, "exported"]; }
  catch (error) { return [key.extractable, error.name]; }
}
"""


@dataclass
class Visitor:
    """Somebody at a browser whose every word to the network is written down."""

    page: Any
    url: str
    sent: list[bytes] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("websocket", lambda socket: socket.on("framesent", self._frame))
        self.page.on("request", self._request)
        self.page.on("console", self._said)

    def _frame(self, data: str | bytes) -> None:
        self.sent.append(data if isinstance(data, bytes) else data.encode())

    def _request(self, asked: Any) -> None:
        self.addresses.append(asked.url)
        self.sent.append((asked.post_data_buffer or b"") + asked.url.encode())

    def _said(self, said: Any) -> None:
        # Streamlit probes its own paths below a deep link; it handles the 404.
        if said.type == "error" and "/_stcore/" not in str(said.location):
            self.console.append(f"{said.text} {said.location}")

    def visit(self, path: str, title: str) -> None:
        """Open a page of the portal and wait until it stands still."""
        self.page.goto(f"{self.url}{path}")
        self.page.get_by_role("heading", name=title, level=1).wait_for()
        self.page.locator("[data-testid=stStatusWidget]").wait_for(state="detached")

    def sign_in(self, name: str, landing: str) -> None:
        """Sign in at the provider; no page offers a list of people to become."""
        self.visit("/sign-in", "Sign in")
        self.page.get_by_test_id("stMain").get_by_role("button", name="Sign in").click()
        self.page.get_by_label("Name").fill(name)
        assert "bea" not in self.page.content()
        self.page.get_by_label("Passphrase").fill(f"pass-{name}")
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", name=landing, level=1).wait_for()

    def accessible(self, name: str) -> None:
        """No serious finding, and nothing to scroll sideways, on a desk and on a telephone."""
        for width in (1280, 390):
            self.page.set_viewport_size({"width": width, "height": 900})
            self.page.wait_for_timeout(150)
            found = AXE.run(self.page).response["violations"]
            grave = [v["id"] for v in found if v["impact"] in {"serious", "critical"}]
            assert grave == [], f"{name} at {width}"
            fits = "document.documentElement.scrollWidth <= innerWidth"
            assert self.page.evaluate(fits), name

    def left_nothing_elsewhere(self, *own: str) -> None:
        """The console is clean and every request went to `own` addresses."""
        assert self.console == []
        known = (self.url, *own, "blob:", "data:")
        assert [address for address in self.addresses if not address.startswith(known)] == []


def opened(file: dict[str, Any]) -> bytes:
    """The seed in a recovery file, as its owner could recover it without us."""
    head = {name: value for name, value in file.items() if name != "sealed"}
    kdf = PBKDF2HMAC(SHA256(), 32, base64.b64decode(head["salt"]), head["rounds"])
    cipher = AESGCM(kdf.derive(PASSPHRASE.encode()))
    sealed = base64.b64decode(file["sealed"])
    seed = cipher.decrypt(base64.b64decode(head["iv"]), sealed, jcs(head))[-32:]
    assert SigningKey(seed).did == head["did"]
    return seed


def spellings(secret: bytes) -> list[bytes]:
    plain = base64.b64encode(secret).rstrip(b"=")
    url = base64.urlsafe_b64encode(secret).rstrip(b"=")
    return [secret, secret.hex().encode(), plain, url]


def test_a_patient_joins_decides_signs_and_stops_and_nothing_secret_leaves_her_browser(  # noqa: PLR0915  (one way, told once)
    tmp_path: Path,
):
    with house(tmp_path) as home, home.portal() as url, browser() as chromium:
        visitor = Visitor(chromium.new_page(), url)
        page, visit, accessible = visitor.page, visitor.visit, visitor.accessible
        visit("/", "Health data cooperative")
        page.get_by_text("Transparency log").wait_for()
        accessible("public")
        visit("/verify", "Verify a receipt")
        accessible("verify")
        visit("/sign-in", "Sign in")
        accessible("sign-in")
        page.get_by_test_id("stMain").get_by_role("button", name="Sign in").click()
        page.get_by_label("Name").wait_for()
        accessible("provider")
        visitor.sign_in("ada", "My consents")

        visit("/join", "Join with a code")
        code = home.code(1)
        page.get_by_label("The code from").fill(code)
        page.get_by_label("A passphrase").fill(PASSPHRASE)
        accessible("join")
        with page.expect_download() as recovery:
            page.get_by_role("button", name="Make my key and join").click()
        file = json.loads(Path(recovery.value.path()).read_text())
        seed = opened(file)
        # The file that the demo writes for its Ada is of the same kind.
        written = recovery_file(SigningKey(seed), seed, PASSPHRASE)
        assert (set(written), opened(written)) == (set(file), seed)
        page.get_by_role("link", name="Decide now").click()
        page.get_by_role("heading", name="Decide", level=1).wait_for()
        page.get_by_text("Allow: Any research").click()
        page.get_by_role("button", name="Show me what").click()
        page.get_by_role("button", name="Sign on this device").wait_for()
        accessible("decide")
        page.get_by_role("button", name="Sign on this device").click()
        page.get_by_text("Signed and recorded").wait_for()
        with page.expect_download() as receipt:
            page.get_by_role("button", name="Download the receipt").click()
        assert json.loads(Path(receipt.value.path()).read_text())["kind"] == "consent-receipt"
        assert page.evaluate(KEPT, SigningKey(seed).did) == [False, "InvalidAccessError"]

        with home.client("ada") as ada:
            (entry,) = ada.get("/v1/me/consents")["consents"]
            (event,) = ada.get(f"/v1/consents/{entry['pid']}/history")["events"]
            assert (entry["state"], entry["did"]) == ("active", SigningKey(seed).did)
            with home.hub_database() as connection:
                trust = home.hub.trust(connection)
            assert verify_consent(event["proof"], trust)
            said = event["proof"]["document"]["credentialSubject"]
            assert said["notice"] == NOTICE
            told = ada.get(f"/v1/notices/{NOTICE['sha256']}")["text"]
            assert sha256(told.encode()).hexdigest() == NOTICE["sha256"]

            visit("/uses", "Who used my data")
            page.get_by_role("button", name="Ask my hospital").click()
            page.get_by_role("button", name="Sign on this device").wait_for()
            accessible("uses-sign")
            page.get_by_role("button", name="Sign on this device").click()
            page.get_by_text("Nothing has used your record").wait_for()
            accessible("uses")
            visit("/credits", "Thank-you credits")
            page.get_by_text("Waiting for you").wait_for()
            accessible("credits")
            visit("/", "My consents")
            accessible("consents")
            page.get_by_role("button", name="Stop").click()
            page.get_by_text("in effect everywhere").wait_for()
            accessible("stopped")
            assert ada.get("/v1/me/consents")["consents"][0]["state"] == "revoked"

            # A browser that forgot the key signs nothing until the recovery file brings it back.
            page.evaluate("indexedDB.deleteDatabase('coop-keys')")
            visit("/uses", "Who used my data")
            page.get_by_role("button", name="Ask my hospital").click()
            page.get_by_text("Without your key, ask at the hospital's desk").wait_for()
            page.get_by_role("button", name="Sign on this device").click()
            page.get_by_text("The key for this record is not here").wait_for()
            visit("/decide", "Decide")
            page.get_by_text("Allow learning only").click()
            page.get_by_role("button", name="Show me what").click()
            page.get_by_role("button", name="Sign on this device").click()
            page.get_by_text("The key for this record is not here").wait_for()
            page.get_by_text("I have a recovery file").click()
            page.get_by_label("Recovery file", exact=True).set_input_files(recovery.value.path())
            page.get_by_label("Its passphrase").fill("not the passphrase")
            page.get_by_role("button", name="Bring my key").click()
            page.get_by_text("That did not work").wait_for()
            page.get_by_label("Its passphrase").fill(PASSPHRASE)
            page.get_by_role("button", name="Bring my key").click()
            page.get_by_text("Your key is back").wait_for()
            page.get_by_role("button", name="Sign on this device").click()
            page.get_by_text("Signed and recorded").wait_for()
            assert ada.get("/v1/me/consents")["consents"][0]["preset"] == "train-only"
    visitor.left_nothing_elsewhere(home.provider.issuer)
    everything = b"\n".join(visitor.sent)
    assert SigningKey(seed).did.encode() in everything  # the recording sees what is sent
    secrets = [*spellings(seed), *spellings(parse_code(code)[1]), PASSPHRASE.encode()]
    secrets.append(file["sealed"].encode())
    letters = code.rpartition(parse_code(code)[0] + "-")[2].encode()
    assert [secret for secret in [*secrets, letters] if secret in everything] == []


def test_researchers_and_hospitals_pages_have_no_barrier_and_ask_no_stranger(tmp_path: Path):
    with (
        house(tmp_path) as home,
        home.portal() as url,
        home.console() as console,
        browser() as chromium,
    ):
        home.release("mei")
        mei = Visitor(chromium.new_page(), url)
        mei.sign_in("mei", "Models")
        mei.page.get_by_text("Where it comes from").wait_for()
        mei.accessible("models")
        mei.visit("/ask", "Ask")
        mei.page.get_by_text("A question costs").wait_for()
        mei.accessible("ask")
        mei.visit("/keys", "API keys")
        mei.accessible("keys")
        mei.left_nothing_elsewhere(home.provider.issuer)

        staff = Visitor(chromium.new_page(), console)
        for path, title, waited in (
            ("/", "Status", "Stop all training"),
            ("/approvals", "Approvals", "They told me exactly these keys"),
            ("/approvals", "Approvals", "Sign with the hospital"),
            ("/budget", "Privacy budget", "Consent"),
            ("/quality", "Data quality", "Refused lines"),
            ("/desk", "Enrolment desk", "Make a code"),
        ):
            staff.visit(path, title)
            staff.page.get_by_text(waited).first.wait_for()
            staff.accessible(title)
            if waited.startswith("They told me"):  # the hospital that joined later counts from here
                staff.page.get_by_text(waited).first.click()
                staff.page.get_by_text("Sign with the hospital").first.wait_for()
        staff.left_nothing_elsewhere()
        staff_token = home.node.site.folder / "staff.token"
        everything = b"\n".join(staff.sent)
        assert staff_token.read_bytes().strip() not in everything
