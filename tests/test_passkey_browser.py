"""A patient joins with a passkey in a real browser, signs with it, closes it; no secret leaves."""

from pathlib import Path

from chromium import browser
from playwright.sync_api import Page
from portal_world import House, house
from test_portal_browser import Visitor

from consent.decide import State
from coop.passkeys import point_of
from coop.verify import verify_consent
from federated.superlink import free_port
from ui import wording

AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
}


def test_she_joins_with_a_passkey_signs_with_it_and_closes_it(tmp_path: Path):
    port = free_port()
    with (
        house(tmp_path, portal_port=port) as home,
        home.portal(port=port) as url,
        browser() as chromium,
    ):
        page = chromium.new_page()
        visitor = Visitor(page, url)
        session = page.context.new_cdp_session(page)
        session.send("WebAuthn.enable")
        device = session.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})
        held = {"authenticatorId": device["authenticatorId"]}

        def finger(on_sensor: str) -> None:
            verified = {"isUserVerified": on_sensor == "hers"}
            session.send("WebAuthn.setUserVerified", held | verified)

        visitor.sign_in("ada", "My consents")
        visitor.visit("/join", "Join with a code")
        page.get_by_label("The code from").fill(home.code(1))
        page.get_by_role("button", name="Join with a passkey").wait_for()
        visitor.accessible("join")
        # Whoever is not recognised by the device makes no key, and nothing is sent.
        finger("another's")
        page.get_by_role("button", name="Join with a passkey").click()
        page.get_by_text("Nothing was sent").wait_for()
        finger("hers")
        page.get_by_role("button", name="Join with a passkey").click()
        page.get_by_role("link", name="Decide now").click()

        (made,) = session.send("WebAuthn.getCredentials", held)["credentials"]
        page.get_by_role("heading", name="Decide", level=1).wait_for()
        page.get_by_text("Allow: Any research").click()
        page.get_by_role("button", name="Show me what").click()
        page.get_by_role("button", name="Sign on this device").click()
        page.get_by_text("Signed and recorded").wait_for()
        _the_hub_holds_her_passkeys_signature(home)

        # The device picks the passkey again for a browser that lost its notes.
        page.evaluate("indexedDB.deleteDatabase('coop-keys')")
        visitor.visit("/uses", "Who used my data")
        page.get_by_role("button", name="Ask my hospital").click()
        page.get_by_role("button", name="Sign on this device").click()
        page.get_by_text("Nothing has used your record").wait_for()

        visitor.visit("/my-keys", wording.MY_KEYS)
        page.get_by_text(wording.KEY_KINDS["passkey"]).wait_for()
        visitor.accessible("my-keys")
        page.get_by_text(wording.CLOSE_TITLE).click()
        _close(page)
        page.get_by_text("Closed. In force everywhere by").wait_for()
        visitor.accessible("my-keys-closed")
        with home.client("ada") as ada:
            (record,) = ada.get("/v1/me/keys")["records"]
            assert record["closed"]
            # What she allowed stays allowed, as the page says, until she stops it.
            assert ada.get("/v1/me/consents")["consents"][0]["state"] == "active"
        assert not any(made["privateKey"].encode() in sent for sent in visitor.sent)
        visitor.left_nothing_elsewhere(home.provider.issuer)


def _close(page: Page) -> None:
    """Say that she is sure, then close; a slow page may draw itself anew under the first click."""
    close = page.get_by_role("button", name=wording.CLOSE, exact=True)
    while not close.is_enabled():
        page.get_by_text(wording.CLOSE_SURE).click()
        page.wait_for_timeout(3000)
    close.click()


def _the_hub_holds_her_passkeys_signature(home: House) -> None:
    with home.client("ada") as ada:
        (entry,) = ada.get("/v1/me/consents")["consents"]
        (event,) = ada.get(f"/v1/consents/{entry['pid']}/history")["events"]
        with home.hub_database() as connection:
            trust = home.hub.trust(connection)
    assert entry["state"] == "active"
    # The hospital verified enrolment and decision itself, by the portal it pinned.
    home.node.mirror.sync()
    assert home.node.mirror.standings()[entry["pid"]].state is State.ACTIVE
    assert point_of(entry["did"])
    proof = event["proof"]["document"]["proof"]
    assert proof["cryptosuite"] == "ES256-webauthn"
    assert verify_consent(event["proof"], trust)
