"""One way to draw: charts with a description, tables that are never empty."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
import streamlit as st

_BLUE = "#0072b2"  # Okabe-Ito


def table(rows: Sequence[Mapping[str, object]], *, empty: str) -> None:
    """`rows` as a table; where there are none, a sentence that says what will stand here."""
    if rows:
        st.dataframe(list(rows), hide_index=True)
    else:
        st.info(empty)


def bars(rows: Sequence[Mapping[str, object]], *, x: str, y: str, description: str) -> None:
    """A bar chart of `rows` with a text description, and its table to unfold."""
    frame = pd.DataFrame(list(rows))
    if frame.empty or y not in frame:
        return
    chart = (
        alt.Chart(frame, description=description)
        .mark_bar(description=description, color=_BLUE)
        .encode(x=alt.X(f"{x}:N", sort=None), y=alt.Y(f"{y}:Q"))
    )
    st.altair_chart(chart, width="stretch")
    with st.expander("The same as a table"):
        st.dataframe(frame, hide_index=True)
