"""The portal as an ASGI application: security headers, sign-in secrets, one freeze of the heap.

Nothing here phones home, no third party is contacted, and the browser may load scripts from this
origin only (Streamlit's own inline script by its hash, components as blobs).
"""

import base64
import gc
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import altair as alt
import pandas as pd
import pyarrow as pa
import streamlit as st
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config as streamlit_config

from ui.session import Portal, configure

# All that pages draw with is imported before the one freeze of the heap (portal.md §3.3).
DRAWN_WITH: Final = (alt, pd, pa)
_HERE: Final = Path(__file__).parent
_INLINE: Final = re.compile(r"<script(?![^>]*\bsrc)[^>]*>(.*?)</script>", re.DOTALL)
_OPTIONS: Final = {
    "browser.gatherUsageStats": False,
    "client.showErrorDetails": "none",
    "client.toolbarMode": "viewer",
    "server.fileWatcherType": "none",
    "server.enableStaticServing": False,
    "server.maxUploadSize": 5,
    "theme.base": "light",
    "theme.primaryColor": "#005a9c",
    "theme.textColor": "#1a1a1a",
    "theme.baseFontSize": 18,
    "theme.headingFontSizes": ["2.1rem", "1.45rem", "1.2rem", "1.1rem", "1rem", "1rem"],
}
_PERMISSIONS: Final = (
    "publickey-credentials-get=(self), publickey-credentials-create=(self), "
    "camera=(), microphone=(), geolocation=()"
)


class SecurityHeaders:
    """Adds the security headers to every response, and `Secure` to cookies behind TLS."""

    def __init__(self, app: ASGIApp, *, origin: str, sign_in: str) -> None:
        self._app = app
        self._secure = origin.startswith("https")
        socket = origin.replace("http", "ws", 1)
        policy = {
            "default-src": "'none'",
            "script-src": f"'self' blob: {_inline_hashes()}",
            "style-src": "'self' 'unsafe-inline'",
            "img-src": "'self' data: blob:",
            "font-src": "'self' data:",
            "media-src": "'self' blob:",
            "worker-src": "'self' blob:",
            "connect-src": f"'self' {socket}",
            "manifest-src": "'self'",
            "frame-ancestors": "'none'",
            "base-uri": "'self'",
            "object-src": "'none'",
            "form-action": f"'self' {sign_in}",
        }
        csp = "; ".join(f"{name} {value}" for name, value in policy.items())
        self._headers = [
            (b"content-security-policy", csp.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"permissions-policy", _PERMISSIONS.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with the headers added."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, self._cookie(name, value)) for name, value in message["headers"]]
                message["headers"] = kept + self._headers
            await send(message)

        await self._app(scope, receive, with_headers)

    def _cookie(self, name: bytes, value: bytes) -> bytes:
        if self._secure and name.lower() == b"set-cookie" and b"secure" not in value.lower():
            return value + b"; Secure"
        return value


def make_app(
    portal: Portal, *, origin: str, sign_in: Mapping[str, str] | None, hospital: bool = False
) -> st.App:
    """The portal (or, with `hospital`, the hospital's console) ready for an ASGI server.

    Args:
        portal: Where the hub and the node answer.
        origin: The address people type, `http://localhost:8460`.
        sign_in: OIDC `issuer`, `client_id`, `client_secret`, `cookie_secret`; None for the console,
            which is guarded by the node's staff token.
        hospital: Serve the hospital's console instead of the portal.
    """
    configure(portal)
    for name, value in _OPTIONS.items():
        streamlit_config.set_option(name, value)
    secrets: dict[str, Any] = {}
    if sign_in is not None:
        secrets["auth"] = {
            "redirect_uri": f"{origin}/oauth2callback",
            "cookie_secret": sign_in["cookie_secret"],
            "client_id": sign_in["client_id"],
            "client_secret": sign_in["client_secret"],
            "server_metadata_url": f"{sign_in['issuer']}/.well-known/openid-configuration",
            "client_kwargs": {"scope": "openid", "code_challenge_method": "S256"},
            "expose_tokens": ["id"],
        }
    issuer = sign_in["issuer"] if sign_in else ""
    provider = "/".join(issuer.split("/")[:3])
    return st.App(
        _HERE / ("console.py" if hospital else "portal.py"),
        secrets=secrets,
        lifespan=_frozen,
        middleware=[Middleware(SecurityHeaders, origin=origin, sign_in=provider)],
    )


@asynccontextmanager
async def _frozen(_app: st.App) -> AsyncIterator[dict[str, Any]]:
    gc.collect()
    gc.freeze()  # Streamlit collects after every rerun: without this each costs 15 times the CPU
    yield {}


def _inline_hashes() -> str:
    page = (Path(st.__file__).parent / "static/index.html").read_text()
    digests = (hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(page))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
