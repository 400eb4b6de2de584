"""A patient's pages: decide, stop, see who used the record, thank-you credits."""

import time
from collections.abc import Mapping
from typing import Any

import streamlit as st

from coop.errors import CoopError
from ui import viewmodels, wording
from ui.charts import table
from ui.components.signer import signer
from ui.session import explain, hub, link

_JOIN_WAIT_S = 25.0  # a hospital answers within its next poll; longer means it is offline


def consents() -> None:
    """My consents: what is allowed, and one click to stop each."""
    st.title(wording.MY_CONSENTS)
    st.write(wording.CARE)
    try:
        mine = hub().get("/v1/me/consents")["consents"]
    except CoopError as error:
        explain(error)
        return
    done = st.session_state.pop("stopped", None)
    if done:
        st.success(wording.STOPPED_NOW.format(time=viewmodels.clock(done["effective_by"])))
        st.download_button(
            wording.RECEIPT, viewmodels.as_json(done["receipt"]), "stop-receipt.json"
        )
    if not mine:
        _nothing_joined()
        return
    for entry in mine:
        _one_consent(entry)
    st.write(wording.CANNOT_UNDO)
    if not all(entry.get("objected") for entry in mine):
        st.divider()
        st.write(wording.OBJECT_TEXT)
        if st.button(wording.OBJECT, key="object"):
            _act("/v1/me/consents:object")


def _nothing_joined() -> None:
    st.info(wording.NO_RECORD)
    link("join", wording.JOIN)


def _one_consent(entry: Mapping[str, Any]) -> None:
    card = viewmodels.consent_card(entry)
    with st.container(border=True):
        st.header(card.title)
        st.markdown(" · ".join(part for part in (f"**{card.state}**", card.choice) if part))
        st.text(card.detail)
        if card.lines:
            with st.expander(card.lines_title):
                for label, value in card.lines:
                    st.markdown(f"**{viewmodels.plain(label)}**: {viewmodels.plain(value)}")
        if card.decided:
            _history(entry["pid"])
        if card.may_decide:
            link("decide", wording.DECIDE_NOW)
        if card.may_decline and st.button(wording.DECLINE, key=f"decline-{entry['pid']}"):
            _act(f"/v1/consents/{entry['pid']}/reject")
        if card.may_stop and st.button(
            wording.STOP, key=f"stop-{entry['pid']}", help="Takes effect within a minute."
        ):
            _act(f"/v1/consents/{entry['pid']}/revoke")
        if card.objected:
            _lift(entry)


def _act(path: str) -> None:
    """What takes away: at once, without a key."""
    try:
        done = hub().post(path)
    except CoopError as error:
        explain(error)
        return
    results = done.get("results", [done])
    if results:
        st.session_state["stopped"] = {
            "effective_by": max(each["effective_by"] for each in results),
            "receipt": [each["receipt"] for each in results]
            if len(results) > 1
            else results[0]["receipt"],
        }
    st.rerun()


def _lift(entry: Mapping[str, Any]) -> None:
    """End an objection: what gives something again is signed on this device."""
    pid = entry["pid"]
    if st.button(wording.LIFT, key=f"lift-{pid}"):
        try:
            asked = {"pid": pid, "event": "lift"}
            st.session_state[f"lifting-{pid}"] = hub().post("/v1/consents:draft", asked)
        except CoopError as error:
            explain(error)
            return
    draft = st.session_state.get(f"lifting-{pid}")
    if not draft:
        return
    answer = signer(
        mode="sign",
        did=draft["document"]["issuer"],
        statement={**draft["document"], "proof": draft["proof"]},
        summary=draft["summary"],
        key=f"-lift-{pid}",
    )
    if answer.signed:
        try:
            hub().post("/v1/consents:sign", {"draft_id": draft["draft_id"], **answer.signed})
        except CoopError as error:
            explain(error)
            return
        st.session_state.pop(f"lifting-{pid}")
        st.toast(wording.LIFTED)
        st.rerun()


def _history(pid: str) -> None:
    with st.expander(wording.HISTORY):
        try:
            events = list(hub().pages(f"/v1/consents/{pid}/history", "events"))
        except CoopError as error:
            explain(error)
            return
        table(viewmodels.history_rows(events), empty="")
        st.download_button(
            wording.ALL_RECEIPTS,
            viewmodels.as_json([event["proof"] for event in events]),
            "receipts.json",
            key=f"receipts-{pid}",
        )


def join() -> None:
    """Join with a code: the browser makes a key, the hospital checks the code."""
    st.title(wording.JOIN)
    st.write(wording.JOIN_TEXT)
    st.write(wording.JOIN_LINK)
    answer = signer(mode="join", did=None, statement=None, summary=[])
    redemption = answer.enrolled
    if redemption and st.session_state.get("redeemed") != redemption["code_id"]:
        try:
            result = hub().post("/v1/enrolments:redeem", {"redemptions": [redemption]})
            problem = result["results"][0].get("problem")
        except CoopError as error:
            explain(error)
            return
        if problem:
            st.error(f"{problem.get('detail', '')} ({problem.get('code', '')})")
            return
        st.session_state["redeemed"] = redemption["code_id"]
    if "redeemed" in st.session_state:
        _wait_for_hospital(st.session_state["redeemed"])


def _wait_for_hospital(code_id: str) -> None:
    with st.status(wording.JOIN_WAIT) as box:
        deadline = time.monotonic() + _JOIN_WAIT_S
        state = "pending"
        while state == "pending" and time.monotonic() < deadline:
            state = str(hub().get(f"/v1/enrolments/{code_id}")["state"])
            if state == "pending":
                time.sleep(0.5)
        box.update(label=viewmodels.join_state(state), state="complete")
    if state == "enrolled":
        st.success(wording.JOIN_DONE)
        link("decide", wording.DECIDE_NOW)


def decide() -> None:
    """Decide: choose, read, sign on this device."""
    st.title(wording.DECIDE)
    st.write(wording.CARE)
    try:
        mine = hub().get("/v1/me/consents")["consents"]
    except CoopError as error:
        explain(error)
        return
    if not mine:
        _nothing_joined()
        return
    try:
        told = hub().get("/v1/notices:current", language=wording.LANGUAGE)
    except CoopError as error:
        explain(error)
        return
    st.write(wording.DECIDE_TEXT)
    with st.container(border=True):
        st.markdown(viewmodels.below_title(told["text"]))
    st.write(wording.EPSILON)
    by_title = {viewmodels.consent_card(entry).title: entry for entry in mine}
    title = st.radio("Which record?", list(by_title)) if len(by_title) > 1 else next(iter(by_title))
    entry = by_title[title]
    preset = st.radio(
        "Your choice",
        list(wording.PRESETS),
        format_func=lambda name: f"{wording.PRESETS[name][0]}: {wording.PRESETS[name][1]}",
        index=None,  # nothing is chosen for her: each choice is one click away
        key="preset",
    )
    if preset:
        _sign(entry, preset, told["notice"])


def _sign(entry: Mapping[str, Any], preset: str, notice: Mapping[str, str]) -> None:
    if st.button("Show me what I would sign", type="primary"):
        try:
            st.session_state["draft"] = hub().post(
                "/v1/consents:draft",
                {
                    "pid": entry["pid"],
                    "event": viewmodels.event_for(entry),
                    "preset": preset,
                    "notice": dict(notice),
                },
            )
        except CoopError as error:
            explain(error)
            return
        st.session_state["drafted"] = (entry["pid"], preset)
    draft = st.session_state.get("draft")
    # A draft of another choice would be signed by surprise: it goes when the choice changes.
    if not draft or st.session_state.get("drafted") != (entry["pid"], preset):
        return
    statement = {**draft["document"], "proof": draft["proof"]}
    answer = signer(
        mode="sign", did=draft["document"]["issuer"], statement=statement, summary=draft["summary"]
    )
    # A trigger may fire twice after a reconnect; the draft id makes signing idempotent.
    if answer.signed:
        try:
            done = hub().post("/v1/consents:sign", {"draft_id": draft["draft_id"], **answer.signed})
        except CoopError as error:
            explain(error)
            return
        st.session_state.pop("draft", None)
        st.success(wording.SIGNED.format(index=viewmodels.receipt_index(done)))
        st.download_button(
            wording.RECEIPT, viewmodels.as_json(done["receipt"]), "consent-receipt.json"
        )


def uses() -> None:
    """Who used my data: the hospital's signed list, relayed and not kept."""
    st.title(wording.WHO_USED)
    st.write(wording.USES_TEXT)
    try:
        mine = hub().get("/v1/me/consents")["consents"]
    except CoopError as error:
        explain(error)
        return
    if not mine:
        _nothing_joined()
    for entry in mine:
        st.header(viewmodels.consent_card(entry).title)
        _uses_of(entry)


def _uses_of(entry: Mapping[str, Any]) -> None:
    pid = entry["pid"]
    if st.button(wording.USES_ASK, key=f"ask-{pid}", type="primary"):
        st.session_state[f"asking-{pid}"] = viewmodels.use_request(entry, int(time.time()))
        st.session_state.pop(f"uses-{pid}", None)
    asking = st.session_state.get(f"asking-{pid}")
    if asking:
        st.write(wording.USES_WHY)
        lines = [*wording.USES_SIGNED, ["Hospital", entry["site"]]]
        answer = signer(
            mode="sign", did=entry["did"], statement=asking, summary=lines, key=f"-uses-{pid}"
        )
        if answer.signed:
            try:
                signed = viewmodels.signed_request(asking, **answer.signed)
                statement = hub().get("/v1/me/uses", pid=pid, headers=signed)
            except CoopError as error:
                explain(error)
                st.write(wording.USES_AGAIN)
                return
            st.session_state[f"uses-{pid}"] = statement
            st.session_state.pop(f"asking-{pid}")
            st.rerun()
    statement = st.session_state.get(f"uses-{pid}")
    if statement:
        table(viewmodels.use_rows(statement), empty=wording.NO_USES)
        try:
            models = hub().get("/v1/models")["models"]
        except CoopError as error:
            explain(error)
            models = []
        if studies := viewmodels.study_use_rows(statement, models):
            table(studies, empty="")
        st.download_button(
            "Download the signed list",
            viewmodels.as_json(statement),
            f"uses-{entry['site']}.json",
            key=f"save-uses-{pid}",
        )


def credits_page() -> None:
    """Thank-you credits: what came back, and one click to collect it."""
    st.title(wording.MY_CREDITS)
    st.write(wording.CREDITS_TEXT)
    try:
        mine = hub().get("/v1/me/credits")
    except CoopError as error:
        explain(error)
        return
    view = viewmodels.credits_view(mine)
    if view is None:
        st.info(wording.CREDITS_LATER)
        return
    left, right = st.columns(2)
    left.metric("Collected", view.collected)
    right.metric("Waiting for you", view.waiting)
    table(view.rows, empty=wording.NO_CREDITS)
    if view.may_claim and st.button("Collect", type="primary"):
        try:
            hub().post("/v1/me/credits:claim")
        except CoopError as error:
            explain(error)
            return
        st.rerun()
