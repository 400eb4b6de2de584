"""A loopback OpenID Connect provider for the demo's personas.

It exists so that the demo signs in exactly as production does: authorization code, PKCE S256,
single-use codes, a signed id_token. It offers no list of people to become: whoever signs in types a
persona's name and the passphrase that the demo printed on its terminal.
"""

import base64
import hashlib
import hmac
import html
import secrets
import time
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from coop.errors import CoopError, InvalidInputError, Kind

CODE_SECONDS: Final = 60
TOKEN_SECONDS: Final = 900
_NO_STORE: Final = {"Cache-Control": "no-store"}


class SignInError(CoopError):
    """The sign-in request is not one this provider may answer."""

    code = "demo.sign-in-refused"
    kind = Kind.UNAUTHENTICATED


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """A made-up person: what she types, and what the provider says of her."""

    name: str
    subject: str
    passphrase: str
    roles: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Grant:
    persona: Persona
    redirect_uri: str
    challenge: str
    nonce: str | None
    expires: float


@dataclass(slots=True, kw_only=True)
class Provider:
    """One provider, for one client, on a loopback address.

    Raises:
        InvalidInputError: The issuer is not on the loopback interface.
    """

    issuer: str
    client_id: str
    client_secret: str
    personas: dict[str, Persona]
    _key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"use": "sig"}))
    _grants: dict[str, _Grant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if urlsplit(self.issuer).hostname not in {"127.0.0.1", "localhost", "::1"}:
            raise InvalidInputError("issuer: the demo provider serves the loopback interface only")
        self._key.ensure_kid()

    def id_token(self, persona: Persona, *, now: int, nonce: str | None = None) -> str:
        """A signed id_token for `persona` (the demo's own terminal signs in with it)."""
        claims: dict[str, object] = {
            "iss": self.issuer,
            "aud": self.client_id,
            "sub": persona.subject,
            "iat": now,
            "exp": now + TOKEN_SECONDS,
            "roles": list(persona.roles),
            "acr": "demo",
        }
        if nonce is not None:
            claims["nonce"] = nonce
        return jwt.encode({"alg": "ES256", "kid": self._key.kid}, claims, self._key)

    def application(self) -> Starlette:
        """The provider's routes under the issuer's path."""
        base = urlsplit(self.issuer).path.rstrip("/")
        return Starlette(
            routes=[
                Route(f"{base}/.well-known/openid-configuration", self._discovery),
                Route(f"{base}/jwks", self._jwks),
                Route(f"{base}/authorize", self._authorize, methods=["GET", "POST"]),
                Route(f"{base}/token", self._token, methods=["POST"]),
                Route(f"{base}/logout", self._logout),
            ]
        )

    async def _discovery(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks",
                "end_session_endpoint": f"{self.issuer}/logout",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": [
                    "client_secret_basic",
                    "client_secret_post",
                ],
                "scopes_supported": ["openid"],
            }
        )

    async def _jwks(self, _request: Request) -> Response:
        return JSONResponse(KeySet([self._key]).as_dict(private=False))

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        problem = self._problem(asked)
        if problem:
            return HTMLResponse(_page(f"<p>{html.escape(problem)}</p>"), 400, _NO_STORE)
        if request.method == "GET":
            return HTMLResponse(_page(_FORM), 200, _NO_STORE)
        form = await request.form()
        persona = self.personas.get(str(form.get("name", "")).strip().lower())
        typed = str(form.get("passphrase", "")).strip()
        # Compare even when the name is unknown: name and passphrase fail alike.
        known = hmac.compare_digest(
            typed.encode(), (persona.passphrase if persona else secrets.token_hex()).encode()
        )
        if persona is None or not known:
            return HTMLResponse(
                _page("<p role='alert'>Name or passphrase is wrong.</p>" + _FORM), 401, _NO_STORE
            )
        code = secrets.token_urlsafe(24)
        self._grants[code] = _Grant(
            persona=persona,
            redirect_uri=asked["redirect_uri"],
            challenge=asked["code_challenge"],
            nonce=asked.get("nonce"),
            expires=time.monotonic() + CODE_SECONDS,
        )
        answer = urlencode({"code": code, "state": asked.get("state", "")})
        return RedirectResponse(f"{asked['redirect_uri']}?{answer}", 303, _NO_STORE)

    def _problem(self, asked: dict[str, str]) -> str | None:
        if asked.get("client_id") != self.client_id or asked.get("response_type") != "code":
            return "client_id or response_type: not known here."
        if asked.get("code_challenge_method") != "S256" or not asked.get("code_challenge"):
            return "code_challenge: PKCE with S256 is required."
        if urlsplit(asked.get("redirect_uri", "")).hostname not in {"127.0.0.1", "localhost"}:
            return "redirect_uri: must be on this machine."
        return None

    async def _token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        try:
            grant = self._redeem(form, request.headers.get("authorization", ""))
        except SignInError as error:
            return JSONResponse(
                {"error": "invalid_grant", "error_description": error.message}, 400, _NO_STORE
            )
        token = self.id_token(grant.persona, now=int(time.time()), nonce=grant.nonce)
        body = {
            "access_token": secrets.token_urlsafe(24),
            "token_type": "Bearer",
            "id_token": token,
            "expires_in": TOKEN_SECONDS,
        }
        return JSONResponse(body, 200, _NO_STORE)

    def _redeem(self, form: dict[str, str], authorization: str) -> _Grant:
        secret = form.get("client_secret", "")
        if authorization.startswith("Basic "):
            secret = base64.b64decode(authorization[6:]).decode().partition(":")[2]
        if not hmac.compare_digest(secret.encode(), self.client_secret.encode()):
            raise SignInError("client_secret: wrong")
        grant = self._grants.pop(form.get("code", ""), None)  # single use, whatever follows
        if grant is None or grant.expires < time.monotonic():
            raise SignInError("code: unknown, used or older than 60 s")
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if (
            not hmac.compare_digest(challenge, grant.challenge)
            or form.get("redirect_uri") != grant.redirect_uri
        ):
            raise SignInError("code_verifier or redirect_uri: not those of the request")
        return grant

    async def _logout(self, request: Request) -> Response:
        target = request.query_params.get("post_logout_redirect_uri", "")
        if urlsplit(target).hostname in {"127.0.0.1", "localhost"}:
            return RedirectResponse(target, 303, _NO_STORE)
        return HTMLResponse(_page("<p>You are signed out.</p>"), 200, _NO_STORE)


_FORM: Final = """
<form method="post">
  <label for="name">Name</label>
  <input id="name" name="name" autocomplete="username" required>
  <label for="passphrase">Passphrase (printed by the demo in its terminal)</label>
  <input id="passphrase" name="passphrase" type="password" autocomplete="current-password" required>
  <button type="submit">Sign in</button>
</form>
"""


def _page(body: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Demo sign-in</title>"
        "<link rel='icon' href='data:,'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><style>"
        "body{font:18px/1.5 sans-serif;max-width:26rem;margin:3rem auto;padding:0 1rem}"
        "label,input,button{display:block;width:100%;font:inherit;margin:.4rem 0}"
        "input,button{min-height:44px;box-sizing:border-box}"
        "button{background:#005a9c;color:#fff;border:0;border-radius:6px}</style></head>"
        f"<body><main><h1>Demo sign-in</h1><p>Made-up people only.</p>{body}</main></body></html>"
    )
