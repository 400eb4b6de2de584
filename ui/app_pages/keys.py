"""A patient's page on her keys and people: which key decides, who else may, and how to end it."""

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
    except CoopError as error:
        explain(error)
        return
    for record in said["replaced"]:
        _replaced(record)
    if not said["records"]:
        st.info(wording.NO_RECORD)
        link("join", wording.JOIN)
    for record in said["records"]:
        _one(keys_view.key_card(record))


def _one(card: keys_view.KeyCard) -> None:
    with st.container(border=True):
        st.header(viewmodels.plain(card.title))
        st.markdown(f"**{card.kind}**")
        for text in card.warnings:
            st.warning(text)
        for text in card.lines:
            st.write(viewmodels.plain(text))
        with st.expander("The key's public name"):
            st.code(card.did, language=None, wrap_lines=True)
        st.subheader(wording.PEOPLE_TITLE)
        if not card.people:
            st.write(wording.PEOPLE_NONE)
        for person in card.people:
            st.markdown(f"**{viewmodels.plain(person.title)}**: {viewmodels.plain(person.detail)}")
            body = {"representation": person.digest}
            if person.may_end and st.button(wording.PERSON_END, key=f"end-{person.digest}"):
                _act(f"/v1/keys/{card.pid}/end", body, wording.PERSON_ENDED)
        if card.may_close:
            _close(card.pid)


def _close(pid: str) -> None:
    with st.expander(wording.CLOSE_TITLE):
        st.write(wording.CLOSE_TEXT)
        sure = st.checkbox(wording.CLOSE_SURE, key=f"sure-{pid}")
        if st.button(wording.CLOSE, key=f"close-{pid}", disabled=not sure):
            _act(f"/v1/keys/{pid}/revoke-all", None, wording.CLOSED)


def _replaced(record: Mapping[str, Any]) -> None:
    with st.container(border=True):
        st.header(wording.REPLACED_TITLE)
        st.write(viewmodels.plain(keys_view.replaced_line(record)))
        if not record["closed"] and st.button(wording.CLOSE, key=f"object-{record['pid']}"):
            _act(f"/v1/keys/{record['pid']}/revoke-all", None, wording.CLOSED)


def _act(path: str, body: object, told: str) -> None:
    """What takes away: at once, without a key."""
    try:
        done = hub().post(path, body)
    except CoopError as error:
        explain(error)
        return
    st.session_state["keys_done"] = told.format(time=viewmodels.clock(done["effective_by"]))
    st.rerun()
