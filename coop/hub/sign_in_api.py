"""Signing in, being told who one is, and researchers' API keys."""

from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl

from fastapi import APIRouter, Path, Request
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool

from coop import credentials, members
from coop.credentials import ApiKey
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import ForbiddenError, InvalidInputError, UnavailableError
from coop.hub.bodies import Body, Text

_GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  (a type's name, RFC 8693 §3)
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  (a type's name)
_ANYBODY = (Principal.PATIENT, Principal.STAFF, Principal.RESEARCHER, Principal.SITE)
_FORM: Final = {
    "type": "object",
    "required": ["subject_token"],
    "properties": {
        "subject_token": {"type": "string", "description": "The id_token of the issuer."},
        "subject_token_type": {"const": _ID_TOKEN},
        "grant_type": {"const": _GRANT},
    },
}


class SessionOnlyError(ForbiddenError):
    """An API key may not make or revoke API keys; a signed-in person may."""

    code = "api-keys.session-only"


class TokenBody(Body):
    """RFC 8693: an id_token in exchange for a session."""

    subject_token: str = Field(max_length=8192)
    subject_token_type: Literal["urn:ietf:params:oauth:token-type:id_token"] = _ID_TOKEN
    grant_type: Literal["urn:ietf:params:oauth:grant-type:token-exchange"] = _GRANT


class TokenAnswer(Body):
    """The session."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  (a type's name)
    issued_token_type: str = _ACCESS_TOKEN
    expires_in: int
    roles: list[str]


class WhoAnswer(Body):
    """Who the hub takes the caller for."""

    principal: str
    subject: str
    site: str | None
    did: str | None
    roles: list[str]
    key_id: str | None


class KeyBody(Body):
    """What a new API key may be used for."""

    label: str = Text
    study_id: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    purposes: list[Annotated[str, Field(pattern=r"^DUO:[0-9]{7}$")]] = Field(
        default_factory=list, max_length=32
    )
    expires_in: int = Field(default=credentials.API_KEY_S, ge=60, le=credentials.API_KEY_S)


class KeyAnswer(Body):
    """An API key without its secret."""

    id: str
    label: str
    study_id: str | None
    purposes: list[str]
    expires: int
    revoked_at: int | None


class NewKeyAnswer(KeyAnswer):
    """The only time the secret is shown."""

    key: str


def routes(doors: Doors) -> APIRouter:
    """The routes of sessions and API keys."""
    router = APIRouter(tags=["sign-in"])
    body_form = {"application/json": {"schema": _FORM}} | {
        "application/x-www-form-urlencoded": {"schema": _FORM}
    }

    @doors.route(
        router,
        "POST",
        "/v1/token",
        Principal.PUBLIC,
        openapi_extra={"requestBody": {"required": True, "content": body_form}},
    )
    async def token(request: Request) -> TokenAnswer:
        """Sign in: exchange the issuer's id_token for a session (RFC 8693)."""
        wanted = await _token_body(request)
        return await run_in_threadpool(sign_in, doors, wanted.subject_token)

    @doors.route(router, "DELETE", "/v1/token", *_ANYBODY, status_code=204)
    def sign_out(request: Request) -> None:
        """Sign out: the session is worthless from here on."""
        bearer = request.headers.get("authorization", "").partition(" ")[2]
        with doors.database.unit_of_work() as connection:
            credentials.close_session(connection, bearer)

    @doors.route(router, "GET", "/v1/whoami", *_ANYBODY)
    def whoami(caller: CallerDep) -> WhoAnswer:
        """Who the hub takes the caller for."""
        return WhoAnswer(
            principal=str(caller.principal),
            subject=caller.subject,
            site=caller.site,
            did=caller.did,
            roles=sorted(caller.roles),
            key_id=caller.key_id,
        )

    @doors.route(router, "POST", "/v1/api-keys", Principal.RESEARCHER, status_code=201)
    def create(caller: CallerDep, body: KeyBody) -> NewKeyAnswer:
        """Make an API key. Its secret is shown in this answer and never again."""
        _session_only(caller)
        scope = credentials.Scope(
            study_id=body.study_id, purposes=tuple(body.purposes), seconds=body.expires_in
        )
        with doors.database.unit_of_work() as connection:
            text, key = credentials.create_api_key(
                connection, caller.account, label=body.label, scope=scope, now=doors.now()
            )
        return NewKeyAnswer(key=text, **_shown(key))

    @doors.route(router, "GET", "/v1/api-keys", Principal.RESEARCHER)
    def listed(caller: CallerDep) -> list[KeyAnswer]:
        """The caller's API keys, without their secrets."""
        with doors.database.reading() as connection:
            keys = credentials.api_keys(connection, caller.account)
        return [KeyAnswer(**_shown(key)) for key in keys]

    @doors.route(router, "DELETE", "/v1/api-keys/{key_id}", Principal.RESEARCHER, status_code=204)
    def revoke(caller: CallerDep, key_id: Annotated[str, Path(max_length=64)]) -> None:
        """Revoke an API key at once."""
        _session_only(caller)
        with doors.database.unit_of_work() as connection:
            credentials.revoke_api_key(connection, caller.account, key_id, now=doors.now())

    return router


def sign_in(doors: Doors, id_token: str) -> TokenAnswer:
    """A session for whom `id_token` vouches for.

    Raises:
        UnavailableError: Nobody signs people in here.
        SignInRefusedError: The token is not a live one of the issuer for this client.
    """
    if doors.oidc is None:
        raise UnavailableError("sign-in: COOP_OIDC_ISSUER is not set at this hub")
    now = doors.now()
    person = doors.oidc.verify(id_token, now=now)
    with doors.database.unit_of_work() as connection:
        account = members.account_of(connection, person.issuer, person.subject)
        text, session = credentials.open_session(connection, account, roles=person.roles, now=now)
    return TokenAnswer(
        access_token=text, expires_in=session.expires - now, roles=sorted(session.roles)
    )


async def _token_body(request: Request) -> TokenBody:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/x-www-form-urlencoded":
            return TokenBody.model_validate(dict(parse_qsl((await request.body()).decode())))
        return TokenBody.model_validate_json(await request.body())
    except UnicodeDecodeError as error:
        raise InvalidInputError("body: must be UTF-8") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidInputError(f"{where}: {first['msg']}") from error


def _session_only(caller: Caller) -> None:
    if caller.key_id is not None:
        raise SessionOnlyError("API keys: sign in to make or revoke one")


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "label": key.label,
        "study_id": key.study_id,
        "purposes": list(key.purposes),
        "expires": key.expires,
        "revoked_at": key.revoked_at,
    }
