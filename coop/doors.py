"""The doors: who may call what. A route that names nobody cannot even be registered.

`Doors.route` declares a route's principals, authenticates the caller before the endpoint runs and
hands it over as `caller: CallerDep`. Bad credentials are refused on every route, public ones too.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.concurrency import run_in_threadpool

from coop import credentials, members
from coop.db import Database
from coop.doorbell import Doorbell, ring_after_commits
from coop.errors import CoopError, ForbiddenError, InvariantError, Kind
from coop.oidc import Oidc
from coop.signed_request import HEADERS, SKEW_MAX_S, verify_request

NONCE_KEPT_S: Final = 2 * SKEW_MAX_S
_CREDENTIAL_MAX: Final = 512  # an API key has 60 characters; a JWT is no credential here


class UnauthenticatedError(CoopError):
    """Nobody is signed in, and this route is not public."""

    code = "doors.unauthenticated"
    kind = Kind.UNAUTHENTICATED


class BadCredentialsError(CoopError):
    """The session, API key or signature is unknown, expired or revoked."""

    code = "doors.bad-credentials"
    kind = Kind.UNAUTHENTICATED


class ReplayedRequestError(CoopError):
    """This signed request was seen before; a repeat needs a fresh signature."""

    code = "doors.replayed"
    kind = Kind.UNAUTHENTICATED


class WrongPrincipalError(ForbiddenError):
    """The caller is known, and the route is not for this kind of caller."""

    code = "doors.wrong-principal"


class Principal(StrEnum):
    """Who can stand at a door."""

    PATIENT = "patient"
    STAFF = "staff"
    RESEARCHER = "researcher"
    SITE = "site"
    PUBLIC = "public"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling, authenticated."""

    principal: Principal
    subject: str
    """Account id; the did of a patient's own key; a site's name; empty for the public."""
    site: str | None = None
    """The site itself, or the hospital a staff member works for (`coop` for the cooperative)."""
    did: str | None = None
    roles: frozenset[str] = frozenset()
    """`patient`, `researcher`, `member`, `staff:cleveland`, `staff:coop`; `key` for an own key."""
    key_id: str | None = None
    """The API key in use; None for a session or a signature."""

    @property
    def account(self) -> int:
        """The caller's account.

        Raises:
            WrongPrincipalError: Signed by a key, or nobody: there is no account.
        """
        if not self.subject.isdigit():
            raise WrongPrincipalError("account: sign in; a key alone has no account")
        return int(self.subject)

    @property
    def account_or_none(self) -> int | None:
        """The caller's account, if there is one."""
        return int(self.subject) if self.subject.isdigit() else None

    @property
    def is_coop_staff(self) -> bool:
        """Whether the caller works for the cooperative itself."""
        return "staff:coop" in self.roles


PUBLIC: Final = Caller(principal=Principal.PUBLIC, subject="")

PROBLEM_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    family: {
        "description": text,
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    for family, text in (
        ("4XX", "Refused: an RFC 9457 problem with a stable code."),
        ("5XX", "Failed: an RFC 9457 problem; trying again later may help."),
    )
}


def current_caller(request: Request) -> Caller:
    """The caller that the route's door authenticated."""
    caller = getattr(request.state, "caller", None)
    if not isinstance(caller, Caller):
        raise InvariantError("a route asks for its caller without a door")
    return caller


CallerDep = Annotated[Caller, Depends(current_caller)]

T = TypeVar("T")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Doors:
    """Every route's guard over one database.

    Args:
        database: Holds sites, sessions, API keys and nonces.
        now: UTC seconds.
        oidc: Who signs people in; None where nobody can sign in.
    """

    def __init__(
        self, database: Database, *, now: Callable[[], int], oidc: Oidc | None = None
    ) -> None:
        self.database = database
        self.now = now
        self.oidc = oidc
        self.bell = Doorbell()
        ring_after_commits(database.engine, self.bell)

    def route(
        self,
        router: APIRouter | FastAPI,
        method: str,
        path: str,
        *principals: Principal,
        **fastapi_kw: Any,  # noqa: ANN401  (passed on to FastAPI)
    ) -> Callable[[Endpoint], Endpoint]:
        """Register an endpoint for these principals and nobody else.

        Raises:
            InvariantError: No principal is named: the default is nobody.
        """
        if not principals:
            raise InvariantError(f"{method} {path} names no principal")
        extra = {"x-principals": sorted(principals), **fastapi_kw.pop("openapi_extra", {})}
        responses = {**PROBLEM_RESPONSES, **fastapi_kw.pop("responses", {})}
        guards = [Depends(self._guard(frozenset(principals))), *fastapi_kw.pop("dependencies", ())]
        add: Any = router.add_api_route

        def register(endpoint: Endpoint) -> Endpoint:
            add(
                path,
                endpoint,
                methods=[method],
                openapi_extra=extra,
                responses=responses,
                dependencies=guards,
                **fastapi_kw,
            )
            return endpoint

        return register

    def _guard(self, allowed: frozenset[Principal]) -> Callable[[Request], Awaitable[None]]:
        async def guard(request: Request) -> None:
            credentials = {name: request.headers.get(name, "") for name in _CREDENTIAL_HEADERS}
            if not any(credentials.values()):
                caller = PUBLIC
            else:
                path = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1")
                query = request.scope.get("query_string", b"").decode("latin-1")
                caller = await run_in_threadpool(
                    self.authenticate,
                    request.headers,
                    method=request.method,
                    path=f"{path}?{query}" if query else path,
                    body=await request.body(),
                    allowed=allowed,
                )
            request.state.caller = admitted(caller, allowed)

        return guard

    def authenticate(
        self,
        headers: Mapping[str, str],
        *,
        method: str,
        path: str,
        body: bytes,
        allowed: frozenset[Principal] = frozenset(),
    ) -> Caller:
        """Who sent this request.

        Args:
            headers: With lower-case names.
            method: `GET`, `POST` …
            path: With the query, exactly as sent.
            body: The raw bytes.
            allowed: Somebody with several roles acts in one the route is for.

        Raises:
            BadCredentialsError: Credentials are present and not good.
            ReplayedRequestError: A signed request came a second time.
        """
        bearer = headers.get("authorization", "")
        signed = any(headers.get(name) for name in HEADERS)
        if bearer and signed:
            raise BadCredentialsError("Authorization: send a token or a signature, not both")
        if signed:
            return self._signer(headers, method=method, path=path, body=body)
        if not bearer:
            return PUBLIC
        scheme, _, token = bearer.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _CREDENTIAL_MAX:
            raise BadCredentialsError("Authorization: must be 'Bearer' and a token")
        with self.database.reading() as connection:
            if token.startswith(credentials.API_KEY_PREFIX):
                key = credentials.find_api_key(connection, token, self.now())
                if key is None:
                    raise BadCredentialsError("API key: unknown, expired or revoked")
                return Caller(
                    principal=Principal.RESEARCHER,
                    subject=str(key.account_id),
                    roles=frozenset({"researcher"}),
                    key_id=key.id,
                )
            session = credentials.find_session(connection, token, self.now())
        if session is None:
            raise BadCredentialsError("session: unknown or expired; sign in again")
        return Caller(
            principal=principal_of(session.roles, allowed),
            subject=str(session.account_id),
            site=session.site,
            roles=session.roles,
        )

    def _signer(self, headers: Mapping[str, str], *, method: str, path: str, body: bytes) -> Caller:
        now = self.now()
        if any(len(headers.get(name, "")) > _CREDENTIAL_MAX for name in HEADERS):
            raise BadCredentialsError("Coop-Did, -Time, -Nonce, -Signature: too long")
        signer = verify_request(headers, method=method, path=path, body=body, now=now)
        # The nonce is durable before the request acts: a crash in between costs the caller a
        # fresh signature, never a second execution.
        with self.database.unit_of_work() as connection:
            connection.execution_options(coop_quiet=True)
            if not credentials.remember_nonce(
                connection, signer.did, signer.nonce, at=signer.time, keep_from=now - NONCE_KEPT_S
            ):
                raise ReplayedRequestError("Coop-Nonce: this request was already answered")
            site = members.site_of(connection, signer.did)
        if site is not None:
            return Caller(
                principal=Principal.SITE, subject=site.name, site=site.name, did=signer.did
            )
        return Caller(
            principal=Principal.PATIENT,
            subject=signer.did,
            did=signer.did,
            roles=frozenset({"key"}),
        )


def principal_of(roles: frozenset[str], allowed: frozenset[Principal]) -> Principal:
    """What a signed-in person acts as: a role the route is for, else her strongest."""
    held = [Principal.STAFF] if any(role.startswith("staff:") for role in roles) else []
    if "researcher" in roles:
        held.append(Principal.RESEARCHER)
    # Every signed-in person may be a patient: the role opens her own records only.
    if not held or roles & {"patient", "member"}:
        held.append(Principal.PATIENT)
    return next((principal for principal in held if principal in allowed), held[0])


def admitted(caller: Caller, allowed: frozenset[Principal]) -> Caller:
    """The caller, if the route is for this kind of caller.

    Raises:
        UnauthenticatedError: Nobody is signed in.
        WrongPrincipalError: Somebody else's route.
    """
    if caller.principal in allowed or Principal.PUBLIC in allowed:
        return caller
    if caller.principal is Principal.PUBLIC:
        raise UnauthenticatedError("sign in, or send an API key or a signed request")
    raise WrongPrincipalError(f"this is for {', '.join(sorted(allowed))}")


def check_every_route(app: FastAPI) -> None:
    """Refuse to serve an application with a route that no door guards.

    Raises:
        InvariantError: A route was registered past `Doors.route`.
    """
    for route in iter_route_contexts(app.routes):
        declared = getattr(route.original_route, "openapi_extra", None) or {}
        if isinstance(route.original_route, APIRoute) and not declared.get("x-principals"):
            raise InvariantError(f"{route.path} names no principal")


_CREDENTIAL_HEADERS: Final = ("authorization", *HEADERS)
