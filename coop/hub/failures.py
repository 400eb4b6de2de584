"""Database failures at the web edge: what the caller can mend, and what only waiting mends."""

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from coop.db import DatabaseUnavailableError
from coop.errors import CoopError, InvalidInputError, InvariantError
from coop.problems import response_of


class OutOfRangeError(InvalidInputError):
    """A number or text that no column of the database can hold."""

    code = "request.out-of-range"


def install(app: FastAPI) -> None:
    """Answer database failures of `app` as problems."""
    app.add_exception_handler(sa.exc.StatementError, _answer)


def refusal_of(error: Exception) -> CoopError:
    """What a failed statement means to the caller; its text stays inside: it holds values."""
    cause = getattr(error, "orig", None)
    # A number beyond 64 bits (SQLite), beyond a column (PostgreSQL), or a NUL in a text.
    if isinstance(error, sa.exc.DataError) or isinstance(cause, OverflowError | ValueError):
        return OutOfRangeError("request: a number is too large or a text holds a NUL")
    if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
        return DatabaseUnavailableError("the database does not answer or is full; try again later")
    return InvariantError("a statement failed")


async def _answer(request: Request, error: Exception) -> JSONResponse:
    refusal = refusal_of(error)
    if isinstance(refusal, InvariantError):
        raise refusal from error
    return response_of(refusal, request.url.path)
