"""Pages for everyone, without signing in: the figures, the log, a receipt checked step by step."""

import json

import streamlit as st

from coop.errors import CoopError
from ui import viewmodels, wording
from ui.charts import bars, table
from ui.session import explain, hub


def home() -> None:
    """The cooperative in figures, its models, its log."""
    st.title(wording.COOPERATIVE)
    st.write(wording.INTRODUCTION)
    try:
        sites = hub().get("/v1/members/sites")["sites"]
        studies = hub().get("/v1/studies")["studies"]
        models = hub().get("/v1/models")["models"]
        note = hub().get_text("/checkpoint")
    except CoopError as error:
        explain(error)
        return
    log = viewmodels.checkpoint(note)
    columns = st.columns(4)
    columns[0].metric("Hospitals", len(sites))
    columns[1].metric("Studies", len(studies))
    columns[2].metric("Models", len(models))
    columns[3].metric("Log entries", log.size)
    st.header("Studies")
    table(viewmodels.study_rows(studies), empty="A proposed study will stand here.")
    st.header("Released models")
    table(
        viewmodels.model_rows(models),
        empty="A released model will stand here with what it cost in privacy.",
    )
    _money(models)
    st.header("Transparency log")
    st.write(wording.LOG_TEXT.format(size=log.size, names=", ".join(log.signers)))
    with st.expander(wording.LOG_NOTE):
        st.code(note, language=None, wrap_lines=True)


def _money(models: list[dict[str, object]]) -> None:
    paid = []
    for model in models:
        try:
            paid += viewmodels.dividend_rows(hub().get(f"/v1/dividends/{model['model_id']}"))
        except CoopError:
            continue  # no window has been closed for this model yet
    if paid:
        st.header("Where the money went")
        bars(
            paid,
            label="to",
            value="credits",
            description="Credits of closed windows by who received them",
        )


def verify() -> None:
    """Verify a receipt."""
    st.title(wording.VERIFY)
    st.write(wording.VERIFY_TEXT)
    st.code("coop verify receipt FILE --trust trust.json", language=None, wrap_lines=True)
    text = st.text_area("The receipt (JSON)", key="receipt", height=200)
    if not st.button("Check", type="primary") or not text:
        return
    try:
        bundle = json.loads(text)
    except ValueError:
        st.error("This is not JSON. Paste the whole file. (verify.not-json)")
        return
    try:
        report = hub().post("/v1/receipts:verify", {"bundle": bundle})
    except CoopError as error:
        explain(error)
        return
    for step in report["steps"]:
        st.markdown(f"✓ {viewmodels.plain(step)}")
    for text in report["waiting"]:
        st.markdown(f"⏳ {viewmodels.plain(text)}")
    if report["waiting"]:
        st.info(wording.VERIFY_WAITING)
    else:
        st.success(wording.VERIFY_COMPLETE)
