"""What pages show of the hub's answers, without a browser."""

import hashlib
from pathlib import Path

from ui import viewmodels, wording
from ui.notices import notice, notice_text

ENTRY = {
    "pid": "a" * 26,
    "site": "cleveland",
    "state": "active",
    "preset": "all-research",
    "at": 0,
    "summary": [["For", "any research"]],
}


def test_a_consent_is_shown_in_words_and_can_be_stopped():
    card = viewmodels.consent_card(ENTRY)
    assert (card.state, card.may_stop, card.lines) == ("Allowed", True, [("For", "any research")])
    assert card.choice == wording.PRESETS["all-research"][1]


def test_a_refusal_is_not_called_allowed_and_has_nothing_to_stop():
    card = viewmodels.consent_card(ENTRY | {"preset": "refuse"})
    assert (card.state, card.may_stop) == ("Refused", False)


def test_a_paused_consent_can_still_be_stopped_and_a_stopped_one_not_again():
    assert viewmodels.consent_card(ENTRY | {"state": "suspended"}).may_stop
    assert not viewmodels.consent_card(ENTRY | {"state": "revoked"}).may_stop


def test_a_decision_over_an_active_consent_amends_it():
    assert viewmodels.event_for(ENTRY) == "amend"
    assert viewmodels.event_for(ENTRY | {"state": "revoked"}) == "grant"


def test_every_choice_on_the_page_is_a_choice_of_the_gate():
    from consent.policy import preset

    for name in wording.PRESETS:
        assert preset(name)


def test_credits_are_exact_to_the_ninth_decimal():
    shown = [viewmodels.credits_text(n) for n in (0, 1, -1_500_000_000, 10**18 + 10)]
    assert shown == ["0", "0.000000001", "-1.5", "1000000000.00000001"]


def test_money_is_summed_by_kind_from_the_signed_windows():
    parts = {"pool:heart:cleveland": 6 * 10**9, "hospital:cleveland": 10**9, "operations": 10**9}
    window = {"document": {"credentialSubject": {"parts": parts}}, "split": {"pool:x": 1}}
    rows = viewmodels.dividend_rows({"windows": [window, window]})
    assert rows == [
        {"to": "patients", "credits": 12.0},
        {"to": "hospital", "credits": 2.0},
        {"to": "operations", "credits": 2.0},
    ]


def test_uses_are_read_from_the_hospitals_statement():
    use = {
        "what": "training round",
        "study_id": "heart",
        "version": 1,
        "document_sha256": "ab" * 32,
        "at": 0,
        "round": 4,
    }
    rows = viewmodels.use_rows({"statement": {"credentialSubject": {"uses": [use]}}})
    assert rows[0]["study"] == "heart v1"
    assert rows[0]["proof"] == "abababababab"


def test_an_answer_shows_credits_and_not_billionths():
    body = {"outputs": [{"data": [0.25]}]}
    view = viewmodels.answer(body, {"coop-credits-charged": "50000000", "coop-receipt": "ff"})
    assert (view.risk, view.cost, view.receipt) == ("0.250", "0.05", "ff")


def test_amounts_stay_hidden_until_a_choice_is_stored():
    assert viewmodels.credits_view({"shown": False}) is None
    view = viewmodels.credits_view({"shown": True, "waiting_nano": 5, "collected_nano": 0})
    assert view is not None
    assert (view.waiting, view.may_claim) == ("0.000000005", True)


def test_the_notice_names_the_exact_file_that_is_shown():
    content = (Path(viewmodels.__file__).parent / "notices/en-1.md").read_bytes()
    assert notice()["sha256"] == hashlib.sha256(content).hexdigest()
    assert notice_text().encode() == content
    assert viewmodels.below_title(notice_text()).startswith("## ")


def test_a_node_with_an_ailing_part_needs_its_staff():
    part = {"code": "ok", "at": 0}
    assert viewmodels.node_status({"stopped": False, "parts": {"desk": part}}).ok
    ailing = {"desk": part | {"code": "coop.unavailable"}}
    assert "desk" in viewmodels.node_status({"stopped": False, "parts": ailing}).headline
    assert not viewmodels.node_status({"stopped": True, "parts": {}}).ok
