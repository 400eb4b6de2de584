"""The portal's router: which pages a person sees. A hidden page is decoration; the hub decides."""

import streamlit as st

from ui import session, wording
from ui.app_pages import keys, patient, public, researcher

st.set_page_config(page_title=wording.COOPERATIVE, page_icon="🤝", layout="centered")


def _pages() -> list[st.Page]:
    who = session.person()
    home = st.Page(public.home, title=wording.PUBLIC, url_path="public")
    verify = st.Page(public.verify, title=wording.VERIFY, url_path="verify")
    if who is None:
        return [
            st.Page(public.home, title=wording.PUBLIC, default=True),
            verify,
            st.Page(_sign_in, title=wording.SIGN_IN, url_path="sign-in"),
        ]
    pages = []
    if who.may("patient") or who.may("member"):
        join = st.Page(patient.join, title=wording.JOIN, url_path="join")
        decide = st.Page(patient.decide, title=wording.DECIDE, url_path="decide")
        st.session_state["pages"] = {"join": join, "decide": decide}  # where pages lead on
        pages += [
            st.Page(patient.consents, title=wording.MY_CONSENTS, default=True),
            join,
            decide,
            st.Page(patient.uses, title=wording.WHO_USED, url_path="uses"),
            st.Page(keys.my_keys, title=wording.MY_KEYS_TAB, url_path="my-keys"),
            st.Page(patient.credits_page, title=wording.MY_CREDITS, url_path="credits"),
        ]
    if who.may("researcher"):
        first = not pages
        pages += [
            st.Page(researcher.models, title=wording.MODELS, url_path="models", default=first),
            st.Page(researcher.ask, title=wording.ASK, url_path="ask"),
            st.Page(researcher.keys, title=wording.API_KEYS, url_path="keys"),
        ]
    if not pages:
        home = st.Page(public.home, title=wording.PUBLIC, default=True)
    return [*pages, home, verify, st.Page(_sign_out, title=wording.SIGN_OUT, url_path="sign-out")]


def _sign_in() -> None:
    st.title(wording.SIGN_IN)
    problem = st.session_state.pop("sign_in_problem", None)
    if problem:
        st.warning(f"{wording.SIGN_IN_AGAIN} ({problem})")
    st.write(wording.SIGN_IN_TEXT)
    if st.button(wording.SIGN_IN, type="primary"):
        st.login()


def _sign_out() -> None:
    st.title(wording.SIGN_OUT)
    if st.button(wording.SIGN_OUT, type="primary"):
        st.session_state.clear()
        st.logout()


page = st.navigation(_pages(), position="top")
page.run()
st.divider()
st.markdown(wording.HELP)
st.markdown(wording.HONESTY if session.portal().demo else wording.NOT_CLINICAL)
