"""What pages show of the hub's answers, without a browser."""

import base64

import pytest

from coop.canonical import b64u, from_b64u, parse_object
from coop.documents.consent import UseRequest
from coop.documents.envelope import open_document
from coop.errors import InvalidInputError
from coop.keys import SigningKey, to_sign
from ui import console_views, viewmodels, wording

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


def test_a_stopped_consent_no_longer_says_what_it_allows():
    card = viewmodels.consent_card(ENTRY | {"state": "revoked"})
    assert (card.state, card.choice, card.may_decide) == ("Stopped", "", True)
    assert card.lines_title == wording.MIGHT_DO


def test_an_undecided_record_leads_to_the_decision():
    card = viewmodels.consent_card({"pid": "a" * 26, "site": "cleveland", "state": "none"})
    assert (card.decided, card.may_stop, card.may_decide) == (False, False, True)


def test_text_of_others_cannot_become_a_link_or_an_icon():
    shown = viewmodels.plain("[free](http://x) :material/home: $x$ <b>")
    assert shown == r"\[free\]\(http\://x\) \:material/home\: \$x\$ \<b\>"


def test_the_history_is_told_newest_first_in_words():
    events = [
        {"event": name, "actor": "patient", "at": at, "log_index": at}
        for at, name in enumerate(["grant", "revoke"])
    ]
    rows = viewmodels.history_rows(events)
    assert [(row["what"], row["log entry"]) for row in rows] == [("stopped", 1), ("decided", 0)]


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


def test_what_her_browser_signs_opens_as_her_request():
    key = SigningKey.generate()
    entry = {"site": "cleveland", "pid": "a" * 26, "did": key.did}
    asking = viewmodels.use_request(entry, 1_800_000_000)
    document = {name: part for name, part in asking.items() if name != "proof"}
    signature = key.sign(to_sign(document, asking["proof"]))
    for text in (b64u(signature), base64.b64encode(signature).decode()):
        (signed,) = viewmodels.signed_request(asking, key.did, text).values()
        opened = open_document(UseRequest, parse_object(from_b64u(signed)), issuers={key.did})
        assert (opened.subject.pid, opened.at) == ("a" * 26, 1_800_000_000)
    for did, text in (
        (SigningKey.generate().did, b64u(signature)),
        (key.did, "AA"),
        (key.did, "!"),
    ):
        with pytest.raises(InvalidInputError):
            viewmodels.signed_request(asking, did, text)


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
    assert rows[0]["what"] == "learned from your record"
    assert rows[0]["proof"] == "abababababab"


def test_who_asked_and_what_came_of_it_stands_beside_her_uses():
    said = {"study_id": "heart", "version": 1, "title": "Heart risk", "organisation": "Uni"}
    said |= {"commercial": True, "used": 3, "refused": 2, "not_needed": 1}
    models = [
        {"model_id": "m-1", "study_id": "heart", "version": 1},
        {"model_id": "m-2", "study_id": "heart", "version": 2},
    ]
    statement = {"credentialSubject": {"studies": [said]}}
    assert viewmodels.study_use_rows(statement, models) == [
        {
            "study": "Heart risk (v1)",
            "by": "Uni (a company)",
            "used": "3 times",
            "kept out, as you wish": "2 times",
            "models": "m-1",
        }
    ]
    assert viewmodels.study_use_rows(statement, [])[0]["models"] == "none"


def test_an_answer_shows_credits_and_not_billionths():
    body = {"outputs": [{"data": [0.25]}]}
    view = viewmodels.answer(body, {"coop-credits-charged": "50000000", "coop-receipt": "ff"})
    assert (view.risk, view.cost, view.receipt) == ("0.250", "0.05", "ff")


def test_amounts_stay_hidden_until_a_choice_is_stored():
    assert viewmodels.credits_view({"shown": False}) is None
    view = viewmodels.credits_view({"shown": True, "waiting_nano": 5, "collected_nano": 0})
    assert view is not None
    assert (view.waiting, view.may_claim) == ("0.000000005", True)


def test_a_checkpoint_names_who_signed_it():
    log = viewmodels.checkpoint("hub.test/log\n7\nroot=\n\n— hub.test/log abc=\n— cleveland d=\n")
    assert (log.size, log.signers) == (7, ["hub.test/log", "cleveland"])


def test_a_metric_that_noise_swallowed_is_said_to_be_unknown():
    metric = {"group": "female", "count_noised": 10}
    said = {
        "metrics": [metric, metric | {"auc_micro": 900_000, "auc_sd_micro": 20_000}],
        "epsilon_micro": 900_000,
        "cohort_epsilon_micro": 400_000,
        "together_epsilon_micro": 1_000_000,
        "delta_pico": 1_000_000,
        "adversary": "mode A: …",
        "relation": "add/remove one patient",
        "accountant": "exact Gaussian",
        "intended_use": "Research only.",
        **dict.fromkeys(
            (
                "study_id",
                "version",
                "study_sha256",
                "order_sha256",
                "record_sha256",
                "training_root",
            ),
            "x",
        ),
    }
    view = viewmodels.passport({"passport": {"document": {"credentialSubject": said}}})
    assert [row["AUC ± sd"] for row in view.metric_rows] == ["too few", "0.900 ± 0.020"]
    assert view.auc_rows == [{"group": "female", "AUC": 0.9}]
    assert (view.epsilon, view.cohort_epsilon, view.together_epsilon) == ("0.900", "0.400", "1.000")
    assert view.delta == "1e-06"
    assert "a factor of 2.7," in view.promise  # of the whole study, not of the model alone


def test_a_value_left_out_is_missing_and_not_zero():
    described = {
        "inputs": [{"name": n, "datatype": t} for n, t in (("age", "FP64"), ("x", "BOOL"))]
    }
    asked = viewmodels.inference_request(described, {"age": None, "x": False})
    assert asked["inputs"] == [{"name": "x", "datatype": "BOOL", "shape": [1], "data": [False]}]


def test_a_line_of_the_budget_is_shown_against_its_plan():
    entry = {"study_id": "heart", "version": 1, "spend": {"training": 5, "cohort": 0}}
    plan = {
        "rounds": 2,
        "rho_round_nano": 5,
        "rho_evaluation_nano": 1,
        "rho_reserve_nano": 1,
        "cohort_rho_nano": 4,
    }
    assert [row["left"] for row in console_views.budget_rows(entry, plan)] == ["50 %", "100 %"]
    assert console_views.budget_rows(entry, {})[0]["planned rho"] == "not known"


def test_a_missing_answer_of_consent_counts_as_none():
    entry = {"study_id": "heart", "version": 1, "permit": 3, "undecided": 2, "abstain": 1}
    row = console_views.coverage_row(entry)
    assert (row["allowed"], row["not allowed"], row["not decided"]) == (3, 1, 2)


def test_the_wordings_headline_is_one_level_below_the_pages():
    assert viewmodels.below_title("# What you agree to\n").startswith("## What")


def test_a_node_with_an_ailing_part_needs_its_staff():
    part = {"code": "ok", "at": 0}
    assert console_views.node_status({"stopped": False, "parts": {"desk": part}}).ok
    ailing = {"desk": part | {"code": "coop.unavailable"}}
    assert "desk" in console_views.node_status({"stopped": False, "parts": ailing}).headline
    assert not console_views.node_status({"stopped": True, "parts": {}}).ok


def test_staff_read_what_a_study_costs_in_each_part_and_together():
    cost = {"training_and_evaluation": "0.96", "cohort_questions": "0.25", "together": "0.999"}
    study = {
        "title": "Hearts",
        "proposer": "us",
        "commercial": False,
        "purpose": "DUO:0000042",
        "uses": [],
        "data_class": "cardiology",
        "ethics_reference": "none",
        "expires": 0,
    }
    review = {"study": study, "fields": [], "software": "x", "witnesses": {}}
    rows = console_views.review_rows({**review, "epsilon": cost, "delta": "0.000001"})
    shown = {row["what"]: row["value"] for row in rows}
    assert shown["training and evaluation ε"] == "0.96"
    assert shown["cohort questions ε"] == "0.25"
    assert shown["together ε (your limit holds this)"] == "0.999 (δ 0.000001)"
    assert not [row for row in console_views.review_rows(review) if "ε" in row["what"]]


def test_staff_read_which_documents_they_set_aside_and_why():
    act = {
        "log_index": 12,
        "pid": "",
        "code": "consent.wrong-key",
        "reason": "nobody signed it",
        "document_sha256": "a" * 64,
        "at": 0,
    }
    (row,) = console_views.set_aside_rows({"set_aside": [act]})
    assert (row["log entry"], row["record"], row["reason"]) == (12, "none", "nobody signed it")
    assert (row["document"], row["did not verify"]) == ("a" * 64, "consent.wrong-key")
