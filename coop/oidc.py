"""Signing people in: id_tokens of one pinned OpenID Connect issuer, and nothing else.

The signature algorithms, the issuer and the audience are pinned here; a URL or key named inside a
token is never followed.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from coop.errors import CoopError, Kind, UnavailableError

_ALGORITHMS: Final = ("ES256", "RS256")  # never "none", never a shared-secret algorithm
_SKEW_S: Final = 60
_REFRESH_S: Final = (
    60.0  # a token with an unknown key id makes us ask the issuer this often at most
)
_TOKEN_MAX: Final = 8192
_TIMEOUT_S: Final = 10.0


class SignInRefusedError(CoopError):
    """The id_token is not a live one of our issuer for us."""

    code = "sign-in.refused"
    kind = Kind.UNAUTHENTICATED


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whom the issuer vouches for."""

    issuer: str
    subject: str
    roles: tuple[str, ...]


class Oidc:
    """One issuer. Its keys are fetched when first needed and again when it has rotated them.

    Args:
        issuer: https, or http on this machine (the demo).
        client_id: The audience its tokens must name.
        ca_file: Certificate authority of the issuer; None means the system's.
    """

    def __init__(self, issuer: str, client_id: str, *, ca_file: str | None = None) -> None:
        parts = urlsplit(issuer)
        local = parts.hostname in {"127.0.0.1", "localhost", "::1"}
        if parts.scheme != "https" and not (parts.scheme == "http" and local):
            raise SignInRefusedError("COOP_OIDC_ISSUER: must be https (http only on this machine)")
        self.issuer = issuer
        self.client_id = client_id
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched = -_REFRESH_S

    def verify(self, id_token: str, *, now: int, nonce: str | None = None) -> Person:
        """Whom `id_token` vouches for.

        Steps: (1) signed by the issuer's key with a pinned algorithm; (2) by this issuer, for this
        client; (3) live; (4) of a person.

        Raises:
            SignInRefusedError: Any of them fails.
            UnavailableError: The issuer does not answer.
        """
        if len(id_token) > _TOKEN_MAX:
            raise SignInRefusedError(f"id_token: longer than {_TOKEN_MAX} characters")
        # (1)
        claims = self._signed_claims(id_token)
        # (2)
        audience = claims.get("aud")
        single = audience if isinstance(audience, str) else None
        if isinstance(audience, list) and (
            len(audience) == 1 or claims.get("azp") == self.client_id
        ):
            single = self.client_id if self.client_id in audience else None
        if claims.get("iss") != self.issuer or single != self.client_id:
            raise SignInRefusedError("id_token: of another issuer or for another client")
        # (3)
        expires, issued = _time(claims, "exp"), _time(claims, "iat")
        if expires <= now or issued > now + _SKEW_S:
            raise SignInRefusedError("id_token: expired or not yet valid; sign in again")
        if nonce is not None and claims.get("nonce") != nonce:
            raise SignInRefusedError("id_token: its nonce is not that of the request")
        # (4)
        subject, roles = claims.get("sub"), claims.get("roles", [])
        if not isinstance(subject, str) or not subject:
            raise SignInRefusedError("id_token: names nobody")
        texts = roles if isinstance(roles, list) else []
        return Person(
            issuer=self.issuer,
            subject=subject,
            roles=tuple(role for role in texts if isinstance(role, str)),
        )

    def _signed_claims(self, id_token: str) -> dict[str, Any]:
        keys = self._current(lambda: self._keys is None)
        for attempt in ("known keys", "fresh keys"):
            try:
                token = jwt.decode(id_token, keys, algorithms=list(_ALGORITHMS))
            except (JoseError, ValueError, TypeError, KeyError, UnicodeError) as error:
                if attempt == "fresh keys":
                    raise SignInRefusedError(
                        "id_token: not signed by the issuer with ES256 or RS256"
                    ) from error
                # The issuer may have rotated its keys since we asked.
                keys = self._current(lambda: time.monotonic() - self._fetched >= _REFRESH_S)
            else:
                return dict(token.claims)
        raise SignInRefusedError("id_token: not signed by the issuer")

    def _current(self, stale: Callable[[], bool]) -> KeySet:
        with self._lock:
            if self._keys is None or stale():
                self._keys = self._fetch()
                self._fetched = time.monotonic()
            return self._keys

    def _fetch(self) -> KeySet:
        address = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            with httpx.Client(
                timeout=_TIMEOUT_S, trust_env=False, verify=self._ca_file or True
            ) as http:
                found = http.get(address).raise_for_status().json()
                if found.get("issuer") != self.issuer:
                    raise SignInRefusedError("COOP_OIDC_ISSUER: the issuer calls itself another")
                return KeySet.import_key_set(
                    http.get(str(found["jwks_uri"])).raise_for_status().json()
                )
        except (httpx.HTTPError, ValueError, KeyError, JoseError) as error:
            raise UnavailableError(
                "the sign-in service does not answer; try again later"
            ) from error


def _time(claims: Mapping[str, object], name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise SignInRefusedError(f"id_token: carries no {name}")
    return value
