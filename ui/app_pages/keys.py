"""A patient's page on her keys and people: which key decides, who else may, and how to end it."""

import time
from collections.abc import Mapping
from typing import Any

import streamlit as st

from coop.errors import CoopError
from ui import keys_view, viewmodels, wording
from ui.session import explain, hub, link


def my_keys() -> None:
    """My keys, and who can decide for me."""
    st.title(wording.MY_KEYS)
    st.write(wording.KEYS_TEXT)
    if done := st.session_state.pop("keys_done", None):
        st.success(done)
    try:
        said = hub().get("/v1/me/keys")
        consents = {one["pid"]: one for one in hub().get("/v1/me/consents")["consents"]}
    except CoopError as error:
        explain(error)
        return
    for record in said["replaced"]:
        _replaced(record)
    if not said["records"]:
        st.info(wording.NO_RECORD)
        link("join", wording.JOIN)
    for record in said["records"]:
        _one(keys_view.key_card(record, consents.get(record["pid"], {}), int(time.time())))


def _one(card: keys_view.KeyCard) -> None:
    with st.container(border=True):
        st.header(viewmodels.plain(card.title))
        st.markdown(f"**{card.kind}**")
        for text in card.warnings:
            st.warning(text)
        for text in card.lines:
            st.write(viewmodels.plain(text))
        if card.pending:
            st.warning(card.pending)
            if card.may_stop_pending and st.button(wording.PENDING_STOP, key=f"stop-{card.pid}"):
                _act(f"/v1/consents/{card.pid}/revoke", None, wording.PENDING_STOPPED)
        with st.expander("The key's public name"):
            st.code(card.did, language=None, wrap_lines=True)
        _people(card)
        if card.has_commands:
            with st.expander(wording.COMMANDS_TITLE):
                st.markdown(wording.COMMANDS)
        if card.may_close:
            _close(card.pid, card.close_title, is_open=card.is_new)


def _people(card: keys_view.KeyCard) -> None:
    st.subheader(wording.PEOPLE_TITLE)
    if not card.people:
        st.write(wording.PEOPLE_NONE)
    for person in card.people:
        st.markdown(f"**{viewmodels.plain(person.title)}**: {viewmodels.plain(person.detail)}")
        if not person.may_end:
            continue
        st.write(wording.PERSON_END_TEXT)
        body = {"representation": person.digest}
        if st.button(wording.PERSON_END, key=f"end-{person.digest}"):
            _act(f"/v1/keys/{card.pid}/end", body, wording.PERSON_ENDED)


def _close(pid: str, title: str, *, is_open: bool) -> None:
    with st.expander(title, expanded=is_open):
        st.write(wording.CLOSE_TEXT)
        sure = st.checkbox(wording.CLOSE_SURE, key=f"sure-{pid}")
        if st.button(wording.CLOSE, key=f"close-{pid}", disabled=not sure):
            _act(f"/v1/keys/{pid}/revoke-all", None, wording.CLOSED)


def _replaced(record: Mapping[str, Any]) -> None:
    with st.container(border=True):
        st.header(wording.REPLACED_TITLE)
        st.write(viewmodels.plain(keys_view.replaced_line(record)))
        if not record["closed"]:
            _close(record["pid"], wording.OBJECT_KEY_TITLE, is_open=True)


def _act(path: str, body: object, told: str) -> None:
    """What takes away: at once, without a key."""
    try:
        done = hub().post(path, body)
    except CoopError as error:
        explain(error)
        return
    st.session_state["keys_done"] = told.format(time=viewmodels.clock(done["effective_by"]))
    st.rerun()
