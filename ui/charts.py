"""One way to draw: every chart has a description and its table."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
import streamlit as st

_BLUE = "#0072b2"  # Okabe-Ito


def bars(rows: Sequence[Mapping[str, object]], *, x: str, y: str, description: str) -> None:
    """A bar chart of `rows` with a text description; the table stands below it."""
    table = pd.DataFrame(list(rows))
    if table.empty or y not in table:
        return
    chart = (
        alt.Chart(table, description=description)
        .mark_bar(description=description, color=_BLUE)
        .encode(x=alt.X(f"{x}:N", sort=None), y=alt.Y(f"{y}:Q"))
    )
    st.altair_chart(chart, width="stretch")
