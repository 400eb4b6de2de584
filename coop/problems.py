"""Errors at the web edge: every refusal is an RFC 9457 problem with the error's own code.

The one place that knows HTTP statuses. A bug shows its code and nothing else: its message may speak
of things the caller has no right to know.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from coop.errors import CoopError, InvalidInputError, InvariantError, Kind, NotFoundError
from coop.outcome import MEDIA_TYPE as FHIR_TYPE
from coop.outcome import outcome

MEDIA_TYPE: Final = "application/problem+json"
_STATUS: Final[Mapping[Kind, int]] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.UNPAID: 402,
    Kind.FORBIDDEN: 403,
    Kind.ABSENT: 404,
    Kind.CONFLICT: 409,
    Kind.TOO_LARGE: 413,
    Kind.UNPROCESSABLE: 422,
    Kind.TOO_MANY: 429,
    Kind.BUG: 500,
    Kind.UNAVAILABLE: 503,
}
_TITLE: Final[Mapping[Kind, str]] = {
    Kind.INVALID: "The request is not valid",
    Kind.UNAUTHENTICATED: "Who you are was not proven",
    Kind.UNPAID: "Not enough credits",
    Kind.FORBIDDEN: "You may not do this",
    Kind.ABSENT: "There is no such thing, or it is not yours",
    Kind.CONFLICT: "The state has changed",
    Kind.TOO_LARGE: "The request is too large",
    Kind.UNPROCESSABLE: "The request cannot be processed",
    Kind.TOO_MANY: "Too many requests",
    Kind.BUG: "An internal check failed",
    Kind.UNAVAILABLE: "A part of the service does not answer",
}
_RETRY_FACT: Final = "retry_after_s"
_BUG_DETAIL: Final = "A bug was found and the operation stopped; nothing was acknowledged."
_RESERVED: Final = frozenset({"type", "title", "status", "detail", "code", "error"})


class InvalidRequestError(InvalidInputError):
    """The request does not have the shape its route declares; the field is named."""

    code: ClassVar[str] = "request.invalid"
    kind: ClassVar[Kind] = Kind.UNPROCESSABLE


class MethodNotAllowedError(CoopError):
    """The path exists, and not for this HTTP method."""

    code: ClassVar[str] = "request.method-not-allowed"
    kind: ClassVar[Kind] = Kind.INVALID


class RefusedRequestError(CoopError):
    """The web framework refused the request before any route saw it."""

    code: ClassVar[str] = "request.refused"
    kind: ClassVar[Kind] = Kind.INVALID


def status_of(kind: Kind) -> int:
    """The HTTP status of a kind of refusal."""
    return _STATUS[kind]


def problem_of(error: CoopError) -> tuple[int, dict[str, object]]:
    """The HTTP status and RFC 9457 members of `error`.

    The error's facts become extension members; they can never replace a standard one.
    """
    status = _STATUS[error.kind]
    problem: dict[str, object] = {
        "type": f"urn:coop:problem:{error.code}",
        "title": _TITLE[error.kind],
        "status": status,
        "detail": _BUG_DETAIL if error.kind is Kind.BUG else error.message,
        "code": error.code,
    }
    if error.kind is not Kind.BUG:
        problem |= {name: fact for name, fact in error.facts.items() if name not in _RESERVED}
    return status, problem


def response_of(error: CoopError, path: str, *, status: int | None = None) -> JSONResponse:
    """The whole response.

    Paths of the Open Inference Protocol also carry its `error` text; paths of FHIR answer in an
    OperationOutcome.
    """
    known, problem = problem_of(error)
    if status is not None:
        problem["status"] = status
    media_type = MEDIA_TYPE
    if path == "/v2" or path.startswith("/v2/"):
        problem["error"] = f"{error.code}: {problem['detail']}"
    elif path == "/fhir" or path.startswith("/fhir/"):
        problem, media_type = outcome(error, problem["detail"]), FHIR_TYPE
    headers = {}
    if error.kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if _RETRY_FACT in error.facts:
        headers["Retry-After"] = str(error.facts[_RETRY_FACT])
    return JSONResponse(
        problem, status_code=status or known, headers=headers, media_type=media_type
    )


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem: ours, the framework's, and the unexpected."""
    app.add_exception_handler(CoopError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _frameworks)
    # Starlette answers this and raises again, so the server's own log still has the trace.
    app.add_exception_handler(Exception, _unexpected)


def _ours(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, CoopError):
        return _unexpected(request, error)
    return response_of(error, request.url.path)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    return response_of(InvalidRequestError(*_named(errors)), request.url.path)


def _named(errors: Sequence[object]) -> tuple[str]:
    """One sentence that names the first wrong field (never its value: it may be a patient's)."""
    first = errors[0] if errors else None
    if not isinstance(first, Mapping):
        return ("request: does not have the shape this route declares",)
    where = ".".join(str(part) for part in first.get("loc", ())) or "request"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return (f"{where}: {first.get('msg', 'not valid')}{more}",)


def _frameworks(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        return _unexpected(request, error)
    refusal: CoopError
    match error.status_code:
        case 404:
            refusal = NotFoundError(f"{request.url.path}: there is no such route")
        case 405:
            refusal = MethodNotAllowedError(f"{request.method}: not a method of {request.url.path}")
        case _:
            refusal = RefusedRequestError(str(error.detail))
    response = response_of(refusal, request.url.path, status=error.status_code)
    response.headers.update(error.headers or {})
    return response


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    del error
    return response_of(InvariantError(_BUG_DETAIL), request.url.path)
