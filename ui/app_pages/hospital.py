"""The hospital console's pages: status, approvals, budget, quality, the enrolment desk."""

from typing import Any

import streamlit as st

from coop.errors import CoopError
from ui import console_views, viewmodels, wording
from ui.charts import bars, table
from ui.session import explain, node


def status() -> None:
    """Whether the node works, and one button that stops everything."""
    st.title(wording.STATUS)
    try:
        now = node().get("/local/v1/status")
    except CoopError as error:
        explain(error)
        return
    view = console_views.node_status(now)
    (st.success if view.ok else st.warning)(view.headline)
    left, middle, right = st.columns(3)
    left.metric("Patients", now["patients"])
    middle.metric("Data version", now["data_version"])
    right.metric("Log entries mirrored", now["log_size"])
    table(view.part_rows, empty="The parts are starting.")
    if now["stopped"]:
        if st.button("Allow training again"):
            _act("/local/v1/resume")
    elif st.button("Stop all training", type="primary"):
        _act("/local/v1/stop")
    with st.expander("Preflight"):
        try:
            report = node().get("/local/v1/doctor")
        except CoopError as error:
            explain(error)
            return
        table(console_views.check_rows(report), empty="No check ran.")
        if report["set_aside"]:
            st.write(wording.SET_ASIDE)
            table(console_views.set_aside_rows(report), empty="")


def _act(path: str) -> None:
    try:
        node().post(path)
    except CoopError as error:
        explain(error)
        return
    st.rerun()


def approvals() -> None:
    """Read a study, then sign or leave it."""
    st.title(wording.APPROVALS)
    try:
        said = node().get("/local/v1/approvals")
    except CoopError as error:
        explain(error)
        return
    st.header("Approved by this hospital")
    table(console_views.approval_rows(said["approved"]), empty="Nothing is signed yet.")
    waiting = console_views.awaiting(said)
    st.header("Waiting for this hospital")
    if not waiting:
        st.info("Nothing is waiting.")
        return
    chosen = st.selectbox(
        "Study", [f"{study['study_id']} v{study['version']}" for study in waiting]
    )
    study = next(s for s in waiting if f"{s['study_id']} v{s['version']}" == chosen)
    try:
        review = node().get(f"/local/v1/approvals/{study['study_id']}", version=study["version"])
    except CoopError as error:
        explain(error)
        return
    _study(review)
    if review["problems"] or _to_compare(review["unknown_witnesses"]):
        return
    cap = st.text_input("This hospital's limit for ε (at most 3)", "1")
    read = {name: study[name] for name in ("study_id", "version")}
    read |= {"study_sha256": review["study_sha256"], "epsilon_cap": cap}
    # What was read is what is signed: the digest is of this page, not of what the hub sends next.
    st.button("Sign with the hospital's key", type="primary", on_click=_sign, args=(read,))


def _sign(read: dict[str, Any]) -> None:
    try:
        node().post("/local/v1/approvals", read)
    except CoopError as error:
        explain(error)


def _to_compare(unknown: dict[str, str]) -> bool:
    """Hospitals that joined later, whose keys somebody here compares with them before signing."""
    if not unknown:
        return False
    st.header("Hospitals that joined later")
    st.write(wording.COMPARE_KEYS)
    table([{"hospital": name, "key": did} for name, did in unknown.items()], empty="")
    # The arguments are those of the table that was shown: the click asks the hub once more, and
    # what it says then nobody has compared.
    st.button("They told me exactly these keys", on_click=_accept, args=(unknown,))
    return True


def _accept(hospitals: dict[str, str]) -> None:
    try:
        node().post("/local/v1/witnesses", {"hospitals": hospitals})
    except CoopError as error:
        explain(error)


def _study(review: dict[str, Any]) -> None:
    """One study as it would be signed: the words, the figures, then all of it."""
    st.text(review["study"]["lay_summary"])
    table(console_views.review_rows(review), empty="")
    for problem in review["problems"]:
        st.error(f"{viewmodels.plain(problem['message'])} ({problem['code']})")
    with st.expander("Everything this signature covers"):
        st.json(review, expanded=2)


def budget() -> None:
    """What every study has spent of its plan, and how many patients permit it."""
    st.title(wording.BUDGET)
    st.write(wording.CONSOLE_EXACT)
    try:
        studies = node().get("/local/v1/budget")["studies"]
        permitted = node().get("/local/v1/coverage")["studies"]
    except CoopError as error:
        explain(error)
        return
    rows = [row for entry in studies for row in console_views.budget_rows(entry, _plan(entry))]
    table(rows, empty="No study is approved; nothing is spent.")
    if rows:
        st.write(wording.BUDGET_TEXT)
    st.header("Consent")
    table(
        [console_views.coverage_row(entry) for entry in permitted],
        empty="Counts by approved study will stand here.",
    )


def _plan(entry: dict[str, Any]) -> dict[str, Any]:
    """The study's plan, which stands in the study at the hub; empty while that is out of reach."""
    path = f"/local/v1/approvals/{entry['study_id']}"
    try:
        review = node().get(path, version=entry["version"])
    except CoopError:
        return {}
    return dict(review.get("plan", {}))


def quality() -> None:
    """Completeness of the records."""
    st.title(wording.QUALITY)
    st.write(wording.CONSOLE_EXACT)
    try:
        found = node().get("/local/v1/quality")
        refused = node().get("/local/v1/quarantine")["rows"]
    except CoopError as error:
        explain(error)
        return
    bars(
        console_views.quality_rows(found),
        label="field",
        value="present",
        description="How many patients have each field",
    )
    st.header("Refused lines")
    table(refused, empty="The newest import refused nothing.")


def desk() -> None:
    """Enrol a patient whose identity was checked: prints a code for her."""
    st.title(wording.DESK)
    try:
        waiting = node().get("/local/v1/recoveries")["waiting"]
    except CoopError as error:
        explain(error)
        return
    if waiting:
        st.header("Write to these patients")
        st.write(wording.WRITE_TO_THEM)
        table(console_views.recovery_rows(waiting), empty="")
    record = st.text_input("Record number")
    method = st.radio("How does the code reach her?", ["desk", "post", "custodial"])
    if st.button("Make a code", type="primary") and record:
        try:
            codes = node().post("/local/v1/enrolments", {"records": [record], "method": method})
        except CoopError as error:
            explain(error)
            return
        if record in codes.get("held", {}):
            st.success(wording.HELD_KEY)
            return
        st.code(codes["codes"][record], language=None, wrap_lines=True)
        st.write("Single use, valid for seven days. It is shown only now.")
        if record in codes["letters"]:
            st.write(wording.SECOND_PART)
            st.code(codes["letters"][record], language=None, wrap_lines=True)
