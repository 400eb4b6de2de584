"""Every page renders against the real hub and a real hospital's node."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from portal_world import NOTICE, SITE, House, house
from streamlit.testing.v1 import AppTest

import ui
from consent.policy import preset
from coop.client import Client
from coop.documents.consent import Consent
from coop.documents.envelope import issue
from coop.documents.people import Representation
from coop.enrolment import joined, parse_code
from coop.keys import SigningKey
from federated import witnesses
from ui import session, viewmodels, wording
from ui.session import Person, Portal

OPEN: list[AppTest] = []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as opened:
        session.configure(
            Portal(
                hub_url=opened.hub_url,
                ca_file=opened.hub.ca_file,
                node_url=opened.node_url,
                node_token=(opened.node.site.folder / "staff.token").read_text().strip(),
            )
        )
        opened.model = opened.release("mei")
        yield opened


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """A browser's session ends with its test: its connections are given back."""
    yield
    while OPEN:
        state = OPEN.pop().session_state
        if "hub_client" in state:
            state["hub_client"][1].close()
        if "node_client" in state:
            state["node_client"].close()


def show(home: House, module: str, page: str, name: str | None = None) -> AppTest:
    """The page as `name` sees it; no exception on it."""
    app = AppTest.from_string(
        f"from ui.app_pages import {module}\n{module}.{page}()", default_timeout=20
    )
    OPEN.append(app)
    if name:
        token = home.session(name)
        app.session_state["person"] = Person(token=token, roles=frozenset())
    app.run()
    assert not app.exception
    assert not app.error
    return app


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("consents", wording.MY_CONSENTS),
        ("join", wording.JOIN),
        ("decide", wording.DECIDE),
        ("uses", wording.WHO_USED),
        ("credits_page", wording.MY_CREDITS),
        ("my_keys", wording.MY_KEYS),
    ],
)
def test_a_patient_without_a_record_is_told_what_comes_next(home: House, page: str, title: str):
    app = show(home, "keys" if page == "my_keys" else "patient", page, "ada")
    assert app.title[0].value == title
    if page != "join":
        assert app.info


def test_a_patient_stops_with_one_click_and_her_receipts_stay(home: House):
    pid, _did = home.patient("bea", 2, choice="all-research")
    app = show(home, "patient", "consents", "bea")
    assert "**Allowed** · Any research on my heart records" in app.markdown[1].value
    app.button(key=f"stop-{pid}").click().run()
    assert not app.exception
    assert re.search(r"in effect everywhere by \d\d:\d\d:\d\d UTC", app.success[0].value)
    with home.client("bea") as client:
        entry = next(e for e in client.get("/v1/me/consents")["consents"] if e["pid"] == pid)
    assert entry["state"] == "revoked"
    assert not [button for button in app.button if button.key == f"stop-{pid}"]
    history = [frame.value for frame in app.dataframe if "log entry" in frame.value]
    assert any(list(frame["what"]) == ["stopped", "decided"] for frame in history)


def test_no_choice_is_made_for_her_and_the_wording_shown_is_named_in_what_she_signs(home: House):
    home.patient("cyd", 3)
    app = show(home, "patient", "decide", "cyd")
    assert app.radio(key="preset").value is None
    assert not app.button
    app.radio(key="preset").set_value("refuse").run()
    app.button[0].click().run()
    assert not app.exception
    drafted = app.session_state["draft"]["document"]["credentialSubject"]
    assert drafted["notice"] == NOTICE
    assert drafted["policy"]["provision"]["type"] == "deny"


def test_a_patient_reads_which_key_decides_and_closes_it_only_when_sure(home: House):
    pid, did = home.patient("dan", 11)
    app = show(home, "keys", "my_keys", "dan")
    assert app.title[0].value == wording.MY_KEYS
    assert any(wording.KEY_KINDS["self"] in line.value for line in app.markdown)
    assert did in [code.value for code in app.code]
    close = app.button(key=f"close-{pid}")
    assert close.disabled
    app.checkbox(key=f"sure-{pid}").check().run()
    app.button(key=f"close-{pid}").click().run()
    assert not app.exception
    assert "In force everywhere by" in app.success[0].value
    assert wording.KEY_CLOSED in [warning.value for warning in app.warning]
    with home.client("dan") as dan:
        records = dan.get("/v1/me/keys")["records"]
    assert next(record for record in records if record["pid"] == pid)["closed"]


def test_ending_a_proxy_or_closing_the_key_ends_what_he_allowed_and_not_what_she_did(home: House):
    for number, ending in ((12, "end"), (13, "close")):
        hers, his = SigningKey.generate(), SigningKey.generate()
        pid, _did = home.patient("eve", number, key=hers)
        _proxy_allows(home, pid, hers, his)
        assert _state_of(home, pid) == "active"
        app = show(home, "keys", "my_keys", "eve")
        assert any("with no last day" in text.value for text in app.markdown)
        assert wording.PERSON_END_TEXT in [text.value for text in app.markdown]
        if ending == "end":
            (button,) = [one for one in app.button if str(one.key).startswith("end-")]
            button.click().run()
        else:
            app.checkbox(key=f"sure-{pid}").check().run()
            app.button(key=f"close-{pid}").click().run()
        assert not app.exception
        assert "In force everywhere by" in app.success[0].value
        assert _state_of(home, pid) == "expired"
    allowed = home.patient("eve", 14, choice="all-research")[0]
    with home.client("eve") as eve:
        eve.post(f"/v1/keys/{allowed}/revoke-all")
    assert _state_of(home, allowed) == "active"


def _proxy_allows(home: House, pid: str, hers: SigningKey, his: SigningKey) -> None:
    """Her key names a proxy without an end, and he allows all research."""
    now = int(time.time())
    said = {"pid": pid, "site": SITE, "did": his.did, "role": "proxy"}
    named = Representation(**said, valid_from=now - 1, valid_until=2**53 - 1)
    with home.client("eve") as eve:
        (result,) = eve.post("/v1/keys", {"documents": [issue(named, hers, now)]})["results"]
        assert result["problem"] is None
        (record,) = [one for one in eve.get("/v1/me/keys")["records"] if one["pid"] == pid]
        grant = Consent(
            pid=pid,
            site=SITE,
            domain="research",
            sequence=1,
            event="grant",
            policy=preset("all-research"),
            notice=NOTICE,
            actor="representative",
            representation=record["representatives"][0]["digest"],
        )
        sent = {"documents": [issue(grant, his, now)]}
        assert eve.post("/v1/consents", sent)["results"][0]["problem"] is None


def _state_of(home: House, pid: str) -> str:
    with home.client("eve") as eve:
        return str(eve.get(f"/v1/consents/{pid}")["state"])


def test_her_list_of_uses_is_asked_for_under_her_own_signature(home: House):
    pid, did = home.patient("dan", 4)
    app = show(home, "patient", "uses", "dan")
    assert not app.dataframe
    app.button(key=f"ask-{pid}").click().run()
    assert not app.exception
    assert wording.USES_WHY in [text.value for text in app.markdown]
    asking = app.session_state[f"asking-{pid}"]
    assert (asking["issuer"], asking["credentialSubject"]["pid"]) == (did, pid)


def test_credits_are_shown_only_after_a_choice(home: House):
    home.patient("dan", 5)
    assert wording.CREDITS_LATER in show(home, "patient", "credits_page", "dan").info[0].value
    home.patient("dan", 6, choice="refuse")
    assert show(home, "patient", "credits_page", "dan").metric[0].value == "0"


def test_a_researcher_reads_a_models_passport(home: House):
    app = show(home, "researcher", "models", "mei")
    assert app.selectbox[0].value == home.model
    assert [(metric.label, metric.value) for metric in app.metric][:4] == [
        ("Training and evaluation ε", "1.000"),
        ("Cohort questions ε", "0.600"),
        ("Together ε", "1.350"),
        ("δ", "1e-06"),
    ]


def test_a_researcher_asks_a_model_and_sees_price_answer_and_receipt(home: House):
    app = show(home, "researcher", "ask", "mei")
    assert "costs 0.01 credits" in app.markdown[0].value
    app.number_input(key="ask-age").set_value(55.0)
    app.selectbox(key="ask-sex").set_value(wording.OTHER_VALUE)
    app.selectbox(key="ask-angina").set_value("yes")
    app.button[0].click().run()
    assert not app.exception
    assert not app.error
    assert 0 <= float(app.metric[0].value) <= 1
    assert "Cost: 0.01 credits." in [text.value for text in app.markdown]
    assert len(app.code[0].value) == 64
    with home.client("mei") as client:
        assert client.get(f"/v1/receipts/{app.code[0].value}")["kind"] == "inference-receipt"


def test_a_question_that_lacks_what_the_model_wants_is_refused_in_words(home: House):
    app = show(home, "researcher", "ask", "mei")
    app.button[0].click().run()
    assert wording.ASK_NOTHING in [info.value for info in app.info]
    app.number_input(key="ask-age").set_value(55.0)
    app.button[0].click().run()
    assert "may not be missing" in app.error[0].value
    assert app.selectbox(key="ask-angina").label == "angina (needed)"
    assert not app.metric


def test_a_researcher_makes_an_api_key_that_is_shown_once_and_revokes_it(home: House):
    app = show(home, "researcher", "keys", "mei")
    app.text_input[0].set_value("my notebook").run()
    app.button[0].click().run()
    assert app.code[0].value.startswith("coop_sk_")
    app.run()
    assert not app.code
    app.button[-1].click().run()
    assert "Revoked." in [text.value for text in app.text]


def test_the_public_sees_figures_and_the_signed_log(home: House):
    app = show(home, "public", "home")
    assert app.metric[0].value == "3"
    assert app.code[0].value.startswith("hub.test/log\n")


def test_what_is_no_receipt_is_refused_in_words(home: House):
    app = show(home, "public", "verify")
    app.text_area(key="receipt").set_value("not json")
    app.button[0].click().run()
    assert "not JSON" in app.error[0].value
    app.text_area(key="receipt").set_value("{}")
    app.button[0].click().run()
    assert not app.success
    assert app.error


def test_a_fresh_stop_is_shown_as_recorded_in_force_and_waiting_for_cosignatures(home: House):
    pid, _ = home.patient("eve", 7, choice="all-research")
    with home.client("eve") as client:
        receipt = client.post(f"/v1/consents/{pid}/revoke")["receipt"]
    app = show(home, "public", "verify")
    app.text_area(key="receipt").set_value(viewmodels.as_json(receipt)).run()
    app.button[0].click().run()
    assert not app.exception
    assert not app.success
    assert app.info[0].value == wording.VERIFY_WAITING
    shown = [text.value.replace("\\", "") for text in app.markdown]
    (waiting,) = [text for text in shown if text.startswith("⏳")]
    assert "recorded; waiting for the hospitals' cosignatures (0 of 2)" in waiting
    assert "stopping is in force" in waiting
    assert not [text for text in shown if text.startswith("✓") and "cosign" in text]


def frame(home: House, *, demo: bool) -> AppTest:
    """The portal itself, pages and footer, as somebody who has not signed in sees it."""
    before = session.portal()
    session.configure(replace(before, demo=demo))
    app = AppTest.from_file(str(Path(ui.__file__).parent / "portal.py"), default_timeout=20)
    OPEN.append(app)
    app.run()
    session.configure(before)
    assert not app.exception
    return app


def test_only_the_demos_portal_says_that_people_are_made_up_and_records_from_1988(home: House):
    said = [text.value for text in frame(home, demo=True).markdown]
    assert wording.HONESTY in said
    plain = [text.value for text in frame(home, demo=False).markdown]
    assert wording.HONESTY not in plain
    assert wording.NOT_CLINICAL in plain
    assert not [text for text in plain if "1988" in text or "made-up" in text]


@pytest.mark.parametrize("page", ["status", "approvals", "budget", "quality", "desk"])
def test_the_console_shows_the_hospitals_own_node(home: House, page: str):
    assert show(home, "hospital", page).title


def test_a_study_is_read_before_the_hospital_signs_it(home: House):
    app = show(home, "hospital", "approvals")
    # A hospital that joined later comes first: its key is compared before anything is signed.
    listed = app.dataframe[-1].value
    keys = dict(zip(listed["hospital"], listed["key"], strict=True))
    assert keys
    assert all(did.startswith("did:key:z6Mk") for did in keys.values())
    assert len(app.text_input) == 0
    # What is accepted is what was shown, whatever the hub lists when the button is pressed.
    with home.invented("atlantis"):
        app.button[0].click().run()
        assert witnesses.known(home.node.site) == keys
        assert list(app.dataframe[-1].value["hospital"]) == ["atlantis"]
    app.run()
    assert witnesses.known(home.node.site) == keys
    shown = {row.what: row.value for row in app.dataframe[-1].value.itertuples()}
    assert shown["title"] == "Heart disease from routine fields"
    assert shown["rounds"] == "3"
    app.text_input[0].set_value("0.1").run()
    app.button[0].click().run()
    assert "epsilon" in app.error[0].value
    assert shown["training and evaluation ε"] == "1"
    together = shown["together ε (your limit holds this)"].split()[0]
    app.text_input[0].set_value("1").run()
    app.button[0].click().run()
    assert f"epsilon {together}" in app.error[0].value.replace("\\", "")
    app.text_input[0].set_value(together).run()
    app.button[0].click().run()
    assert not app.exception
    assert list(app.dataframe[0].value["study"]) == ["heart v1"]
    spent = show(home, "hospital", "budget").dataframe[0].value
    assert set(spent["left"]) == {"100 %"}


def test_staff_stop_the_node_with_one_button_and_allow_it_again(home: House):
    app = show(home, "hospital", "status")
    app.button[0].click().run()
    assert home.node.paused()
    app.button[0].click().run()
    assert not home.node.paused()


def test_the_desk_makes_a_code_for_a_known_record_only(home: House):
    app = show(home, "hospital", "desk")
    app.text_input[0].set_value("P005")
    app.button[0].click().run()
    assert app.code[0].value.startswith("cleveland.")
    app.text_input[0].set_value("nobody")
    app.button[0].click().run()
    assert "desk.unknown-record" in app.error[0].value
    # Who can hold no key gets one that the hospital holds; who had one gets a code in two parts.
    app.text_input[0].set_value("P017")
    app.radio[0].set_value("custodial").run()
    app.button[0].click().run()
    assert not app.exception
    assert app.success[0].value == wording.HELD_KEY
    app.radio[0].set_value("desk").run()
    app.button[0].click().run()
    assert parse_code(joined(app.code[0].value, app.code[1].value))[0].startswith("cleveland.")


def test_a_session_that_ended_asks_for_a_fresh_sign_in(home: House):
    app = AppTest.from_string(
        "from ui.app_pages import patient\npatient.consents()", default_timeout=20
    )
    OPEN.append(app)
    app.session_state["person"] = Person(token="coop_st_gone", roles=frozenset({"patient"}))
    app.run()
    assert "sign in again" in app.warning[0].value
    assert "person" not in app.session_state


def test_the_staff_token_is_wanted(home: House):
    with Client(home.node_url, token="wrong") as client, pytest.raises(Exception, match="staff"):
        client.get("/local/v1/status")


def test_the_portal_loads_no_learning_and_no_database():
    pages = "ui.asgi, ui.app_pages.patient, ui.app_pages.hospital, ui.app_pages.researcher"
    code = f"import sys, {pages}, ui.app_pages.public\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "flwr", "sqlalchemy"} & set(found.stdout.split())


def test_the_portal_is_a_command():
    program = Path(sys.executable).parent / "coop"
    found = subprocess.run(
        [program, "portal", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},  # noqa: TID251  (children need PATH)
        check=True,
    )
    assert "--hospital" in found.stdout
