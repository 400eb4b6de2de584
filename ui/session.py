"""Who is in front of the portal, and the client that speaks for her.

The cookie only answers "who signed in": its short-lived id_token is exchanged once for a session
token at the hub, which decides every call. The portal holds no right and no database.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from coop.client import Client, RemoteError
from coop.errors import CoopError


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    """Where this portal's hub (and, in the hospital's house, its node) answers."""

    hub_url: str
    ca_file: Path | None = None
    node_url: str = ""
    node_token: str = field(default="", repr=False)
    demo: bool = False
    """Its people are made up, and its pages say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A signed-in person: her session token and roles. The hub checks both at every call."""

    token: str = field(repr=False)
    roles: frozenset[str]

    def may(self, role: str) -> bool:
        """Whether she has the role (for showing pages only; the hub decides)."""
        return role in self.roles


_portal: list[Portal] = []


def configure(portal: Portal) -> None:
    """Set the portal's addresses: once, at start."""
    _portal[:] = [portal]


def portal() -> Portal:
    """The addresses in force."""
    return _portal[0]


def hub() -> Client:
    """A client for the person in front: her token if she is signed in, else the public's."""
    who = person()
    token = who.token if who else None
    cached = st.session_state.get("hub_client")
    if cached is None or cached[0] != token:
        if cached is not None:
            cached[1].close()
        here = portal()
        cached = (token, Client(here.hub_url, here.ca_file, token=token))
        st.session_state["hub_client"] = cached
    client: Client = cached[1]
    return client


def passkeys() -> dict[str, Any] | None:
    """The portal whose passkeys sign at this hub; None where none does, or it does not say."""
    if "passkeys" not in st.session_state:
        try:
            said: dict[str, Any] = hub().get("/v1/members/passkeys")
        except CoopError:
            return None
        st.session_state["passkeys"] = said if said.get("rp_id") else None
    found: dict[str, Any] | None = st.session_state["passkeys"]
    return found


def node() -> Client:
    """A client for the hospital's own node on the loopback interface."""
    if "node_client" not in st.session_state:
        here = portal()
        st.session_state["node_client"] = Client(here.node_url, token=here.node_token)
    client: Client = st.session_state["node_client"]
    return client


def person() -> Person | None:
    """Who is signed in; exchanges a fresh sign-in for a session at the hub."""
    held: Person | None = st.session_state.get("person")
    if held is not None:
        return held
    if not getattr(st.user, "is_logged_in", False):
        return None
    try:
        held = exchange(str(st.user.tokens["id"]))
    except CoopError as error:
        # An expired id_token in an old cookie: the way out is a fresh sign-in.
        st.session_state["sign_in_problem"] = error.code
        return None
    st.session_state["person"] = held
    return held


def exchange(id_token: str) -> Person:
    """A session at the hub for a verified sign-in."""
    here = portal()
    with Client(here.hub_url, here.ca_file) as client:
        answer: Mapping[str, Any] = client.post("/v1/token", {"subject_token": id_token})
    return Person(token=str(answer["access_token"]), roles=frozenset(answer["roles"]))


def link(page: str, label: str) -> None:
    """A link to one of the portal's own pages, where the portal shows that page."""
    found = st.session_state.get("pages", {}).get(page)
    if found is not None:
        st.page_link(found, label=label)


def explain(error: CoopError) -> None:
    """Show a refusal in words with its code; a session that ended leads to a new sign-in."""
    if isinstance(error, RemoteError) and error.status == 401:  # noqa: PLR2004  (unauthenticated)
        st.session_state.pop("person", None)
        st.warning("Your session has ended. Please sign in again.")
        return
    st.error(f"{error.message} ({error.code})")
