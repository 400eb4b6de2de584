"""One way to draw: charts with a description, tables that are never empty."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
import streamlit as st

_BLUE = "#0072b2"  # Okabe-Ito
_AXIS = alt.Axis(labelLimit=240, labelOverlap=False)  # no name is cut or left out
_ROW_PX = 26
_WHOLE = 50  # rows shown without scrolling inside the table


def table(rows: Sequence[Mapping[str, object]], *, empty: str) -> None:
    """`rows` as a table; where there are none, a sentence that says what will stand here."""
    if rows:
        st.dataframe(
            list(rows), hide_index=True, height="content" if len(rows) < _WHOLE else "auto"
        )
    else:
        st.info(empty)


def bars(rows: Sequence[Mapping[str, object]], *, label: str, value: str, description: str) -> None:
    """Lying bars of `rows` with a text description, and their table to unfold."""
    frame = pd.DataFrame(list(rows))
    if frame.empty or value not in frame:
        return
    chart = (
        alt.Chart(frame, description=description)
        .mark_bar(description=description, color=_BLUE)
        .encode(
            y=alt.Y(f"{label}:N", sort=None, title=None, axis=_AXIS),
            x=alt.X(f"{value}:Q"),
        )
        .properties(height=alt.Step(_ROW_PX))
    )
    st.altair_chart(chart, width="stretch")
    with st.expander("The same as a table"):
        st.dataframe(frame, hide_index=True)
