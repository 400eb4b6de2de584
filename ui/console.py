"""The hospital's console: runs inside the hospital beside the node and speaks to nobody else."""

import streamlit as st

from ui import wording
from ui.app_pages import hospital

st.set_page_config(page_title=wording.CONSOLE, page_icon="🏥", layout="centered")

page = st.navigation(
    [
        st.Page(hospital.status, title=wording.STATUS, default=True),
        st.Page(hospital.approvals, title=wording.APPROVALS, url_path="approvals"),
        st.Page(hospital.budget, title=wording.BUDGET, url_path="budget"),
        st.Page(hospital.quality, title=wording.QUALITY, url_path="quality"),
        st.Page(hospital.desk, title=wording.DESK, url_path="desk"),
    ],
    position="top",
)
page.run()
