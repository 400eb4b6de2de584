"""A researcher's pages: released models with their cards, and asking one of them."""

from typing import Any

import streamlit as st

from coop.errors import CoopError
from ui import viewmodels, wording
from ui.charts import bars, table
from ui.session import explain, hub


def models() -> None:
    """Released models and what each cost in privacy."""
    st.title(wording.MODELS)
    try:
        released = hub().get("/v1/models")["models"]
    except CoopError as error:
        explain(error)
        return
    if not released:
        st.info("No model is released yet.")
        return
    chosen = st.selectbox("Model", [model["model_id"] for model in released])
    try:
        card = hub().get(f"/v1/models/{chosen}")
    except CoopError as error:
        explain(error)
        return
    passport = viewmodels.passport(card)
    cost = st.columns(3)
    cost[0].metric("Training and evaluation ε", passport.epsilon)
    cost[1].metric("Cohort questions ε", passport.cohort_epsilon)
    cost[2].metric("Together ε", passport.together_epsilon)
    left, right = st.columns(2)
    left.metric("δ", passport.delta)
    right.metric("Mode", passport.mode)
    st.write(passport.promise)
    st.header("How well it does, by group (with privacy noise)")
    table(passport.metric_rows, empty="This model was not evaluated.")
    st.write(wording.METRICS_TEXT)
    bars(
        passport.auc_rows,
        label="group",
        value="AUC",
        description="Area under the ROC curve by group, estimated from noised histograms",
    )
    st.header("Where it comes from")
    table(passport.provenance_rows, empty="")
    st.text(passport.intended_use)


def ask() -> None:
    """Ask a released model about one made-up person."""
    st.title(wording.ASK)
    st.warning(wording.SYNTHETIC_ONLY)
    try:
        released = hub().get("/v1/models")["models"]
        usable = [model["model_id"] for model in released if model["state"] == "released"]
        if not usable:
            st.info("No model is released yet.")
            return
        chosen = st.selectbox("Model", usable)
        described = hub().get(f"/v2/models/{chosen}")
        card = hub().get(f"/v1/models/{chosen}")
    except CoopError as error:
        explain(error)
        return
    schema = viewmodels.features(card)
    st.write(wording.ASK_COST.format(credits=viewmodels.credits_text(card["fee_point_nano"])))
    with st.form("ask"):
        values = {feature["name"]: _field(feature) for feature in schema}
        asked = st.form_submit_button("Ask", type="primary")
    request = viewmodels.inference_request(described, values)
    if asked and not request["inputs"]:
        st.info(wording.ASK_NOTHING)
        return
    if not asked:
        return
    try:
        answer = hub().respond(
            "POST",
            f"/v2/models/{chosen}/infer",
            request,
            viewmodels.inference_headers(card),
        )
    except CoopError as error:
        explain(error)
        return
    view = viewmodels.answer(answer.json(), answer.headers)
    st.metric("Risk (research use only)", view.risk)
    st.write(f"Cost: {view.cost} credits.")
    st.code(view.receipt, language=None, wrap_lines=True)
    st.write(wording.ASK_RECEIPT)
    try:
        receipt = hub().get(f"/v1/receipts/{view.receipt}")
    except CoopError as error:
        explain(error)
        return
    st.download_button(wording.RECEIPT, viewmodels.as_json(receipt), "inference-receipt.json")


def _field(feature: dict[str, Any]) -> Any:  # noqa: ANN401  (what the widget holds)
    name = str(feature["name"])
    label = name.replace("_", " ") + (" (needed)" if feature.get("missing") == "refuse" else "")
    match feature["kind"]:
        case "number":
            return st.number_input(label, value=None, key=f"ask-{name}")
        case "category":
            values = [*feature["values"], wording.OTHER_VALUE]
            return st.selectbox(label, values, index=None, placeholder="", key=f"ask-{name}")
        case _:
            # Three answers: yes, no, and not known.
            said = st.selectbox(label, ["yes", "no"], index=None, placeholder="", key=f"ask-{name}")
            return None if said is None else said == "yes"


def keys() -> None:
    """API keys for scripts and the command line: made here, shown once, revoked in one click."""
    st.title(wording.API_KEYS)
    st.write(wording.API_KEYS_TEXT)
    label = st.text_input("What is it for?", max_chars=100)
    try:
        if st.button("Make an API key", type="primary") and label:
            made = hub().post("/v1/api-keys", {"label": label})
            st.success(wording.API_KEY_ONCE)
            st.code(made["key"], language=None)
        held = hub().get("/v1/api-keys")
    except CoopError as error:
        explain(error)
        return
    for key in held:
        with st.container(border=True):
            st.text(f"{key['label']} · until {viewmodels.day(key['expires'])}")
            if key["revoked_at"]:
                st.text("Revoked.")
            elif st.button("Revoke", key=f"revoke-{key['id']}"):
                _revoke(key["id"])


def _revoke(key_id: str) -> None:
    try:
        hub().delete(f"/v1/api-keys/{key_id}")
    except CoopError as error:
        explain(error)
        return
    st.rerun()
