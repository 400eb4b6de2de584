"""The gateway's routes: point questions, cohort questions, the hospitals' jobs, uses and usage."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from consent.freshness import TOKEN_CHARS_MAX
from coop.canonical import Json
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import InvalidInputError, NotFoundError
from inference_gateway import jobs
from inference_gateway.answer import PointRequest
from inference_gateway.cohort import CohortAsk
from inference_gateway.gateway import Gateway
from inference_gateway.query import MODEL_ID
from inference_gateway.scope import Asker
from inference_gateway.uses import WAIT_S

_KEY: Final = re.compile(r"[!-~]{1,128}")  # visible ASCII; our own keys have a space
_CODE: Final = r"^[a-z][a-z0-9.-]{0,63}$"
_TENSOR: Final = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 1},
        "datatype": {"enum": ["FP64", "BYTES", "BOOL"]},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_INFER_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string", "maxLength": 128},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                }
            }
        },
    }
}

StudyHeader = Annotated[str | None, Header(alias="Coop-Study", max_length=64)]
PurposeHeader = Annotated[str | None, Header(alias="Coop-Purpose", max_length=64)]
KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", max_length=128)]
FreshHeader = Annotated[
    str | None, Header(alias="Coop-At-Least-As-Fresh", max_length=TOKEN_CHARS_MAX)
]
# Required, and optional here: `Uses.start` says in words what must be sent.
UseRequestHeader = Annotated[str | None, Header(alias="Coop-Use-Request")]
Wait = Annotated[int, Query(ge=0, le=25)]
# What reaches the database is bounded here: PostgreSQL refuses NUL, SQLite integers above 2^63.
ModelId = Annotated[str, Path(pattern=MODEL_ID)]
JobId = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
SiteName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Attempt = Annotated[int, Path(ge=1, le=jobs.ATTEMPTS_MAX)]


class MissingKeyError(InvalidInputError):
    """The route needs an Idempotency-Key: a repeat must not be asked and charged twice."""

    code = "gateway.idempotency-key"


class ClaimBody(BaseModel):
    """How long the hospital waits for a job, in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wait: int = Field(default=0, ge=0, le=25)


class ResultBody(BaseModel):
    """A hospital's signed document, or the code of its refusal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    document: dict[str, Any] | None = None
    refused: str | None = Field(default=None, pattern=_CODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a question says of itself, in its headers."""

    study: str | None
    purpose: str | None
    key: str | None
    fresh: str | None


def _declared(
    study: StudyHeader = None,
    purpose: PurposeHeader = None,
    key: KeyHeader = None,
    fresh: FreshHeader = None,
) -> Declared:
    return Declared(study=study, purpose=purpose, key=key, fresh=fresh)


DeclaredDep = Annotated[Declared, Depends(_declared)]


def routes(doors: Doors, gateway: Gateway) -> APIRouter:
    """Every route of the gateway."""
    router = APIRouter()
    _protocol(router, doors, gateway)
    _questions(router, doors, gateway)
    _site_channel(router, doors, gateway)
    _uses(router, doors, gateway)
    _account(router, doors, gateway)
    return router


def _protocol(router: APIRouter, doors: Doors, gateway: Gateway) -> None:
    @doors.route(router, "GET", "/v2", Principal.PUBLIC, tags=["inference"])
    def server() -> dict[str, Any]:
        """The server's metadata: no extension is offered."""
        return {"name": "health-data-coop", "version": "2", "extensions": []}

    @doors.route(router, "GET", "/v2/health/live", Principal.PUBLIC, tags=["inference"])
    def live() -> dict[str, bool]:
        """Alive."""
        return {"live": True}

    @doors.route(router, "GET", "/v2/health/ready", Principal.PUBLIC, tags=["inference"])
    def ready() -> dict[str, bool]:
        """Ready: the registry's checkpoint is at most 60 s old."""
        gateway.registry.fresh()
        return {"ready": True}

    @doors.route(router, "GET", "/v2/models/{model_id}", Principal.PUBLIC, tags=["inference"])
    def metadata(model_id: ModelId) -> dict[str, Any]:
        """What to send and what comes back."""
        return gateway.metadata(model_id)

    @doors.route(router, "GET", "/v2/models/{model_id}/ready", Principal.PUBLIC, tags=["inference"])
    def model_ready(model_id: ModelId) -> dict[str, Any]:
        """Whether the model answers now."""
        gateway.check_ready(model_id)
        return {"name": model_id, "ready": True}

    @doors.route(
        router,
        "POST",
        "/v2/models/{model_id}/infer",
        Principal.RESEARCHER,
        tags=["inference"],
        openapi_extra=_INFER_BODY,
    )
    async def infer(
        model_id: ModelId,
        request: Request,
        caller: CallerDep,
        said: DeclaredDep,
    ) -> Response:
        """Ask a released model about your own rows; charged before it is answered.

        With the `fresh` of a consent receipt as Coop-At-Least-As-Fresh the answer knows at least
        what that receipt acknowledged, or there is none (503).
        """
        asked = PointRequest(
            asker=_asker(caller, said.study, said.purpose),
            model_id=model_id,
            body=await request.body(),
            headers=dict(request.headers),
            idempotency_key=None if said.key is None else _checked(said.key),
            at_least_as_fresh=said.fresh,
        )
        stored = await run_in_threadpool(gateway.answer, asked)
        headers = {
            "Coop-Receipt": stored.receipt_sha256,
            "Coop-Receipt-Nonce": stored.nonce,
            "Coop-Credits-Charged": str(stored.fee_nano),
        }
        return Response(stored.response, media_type="application/json", headers=headers)


def _questions(router: APIRouter, doors: Doors, gateway: Gateway) -> None:
    @doors.route(router, "POST", "/v1/jobs:estimate", Principal.RESEARCHER, tags=["cohort"])
    def estimate(
        body: CohortAsk,
        caller: CallerDep,
        study: StudyHeader = None,
        purpose: PurposeHeader = None,
    ) -> dict[str, Any]:
        """Fee, privacy cost, expected error: free, and touches no data."""
        return gateway.cohorts.estimate(_asker(caller, study, purpose), body)

    @doors.route(router, "POST", "/v1/jobs", Principal.RESEARCHER, tags=["cohort"], status_code=202)
    def ask(
        body: CohortAsk,
        caller: CallerDep,
        response: Response,
        said: DeclaredDep,
    ) -> dict[str, Any]:
        """Ask the hospitals; a repeat of the Idempotency-Key is the same question."""
        if said.key is None:
            raise MissingKeyError("Idempotency-Key: send one, so that a repeat is not charged")
        asker = _asker(caller, said.study, said.purpose)
        seen = gateway.cohorts.ask(asker, body, _checked(said.key), said.fresh)
        response.headers["Location"] = f"/v1/jobs/{seen['id']}"
        response.headers["Retry-After"] = "1"
        return seen

    @doors.route(router, "GET", "/v1/jobs", Principal.RESEARCHER, tags=["cohort"])
    def listed(caller: CallerDep) -> dict[str, Any]:
        """My newest questions."""
        return {"jobs": gateway.cohorts.listed(caller.account)}

    @doors.route(router, "GET", "/v1/jobs/{job_id}", Principal.RESEARCHER, tags=["cohort"])
    async def view(
        job_id: JobId, request: Request, caller: CallerDep, wait: Wait = 0
    ) -> dict[str, Any]:
        """Where my question stands; with `wait`, after it has ended or so many seconds."""
        account = caller.account

        def ended() -> dict[str, object] | None:
            seen = gateway.cohorts.view(account, job_id)
            return seen if seen["state"] != "running" else None

        found = await doors.bell.poll(ended, wait, request=request)
        if found is None:
            found = await run_in_threadpool(gateway.cohorts.view, account, job_id)
        return found

    @doors.route(router, "GET", "/v1/jobs/{job_id}/result", Principal.RESEARCHER, tags=["cohort"])
    def result(job_id: JobId, caller: CallerDep) -> dict[str, Any]:
        """The combined answer with the hospitals' signed ones."""
        return gateway.cohorts.result(caller.account, job_id)


def _site_channel(router: APIRouter, doors: Doors, gateway: Gateway) -> None:
    @doors.route(
        router,
        "POST",
        "/v1/sites/{site}/jobs:claim",
        Principal.SITE,
        tags=["hospitals"],
        responses={204: {"description": "Nothing to do."}},
    )
    async def claim(
        site: SiteName, request: Request, body: ClaimBody, caller: CallerDep
    ) -> Response:
        """My hospital's oldest job, waiting up to 25 s for one; 204 if there is none."""
        _own(site, caller)
        taken = await doors.bell.poll(lambda: gateway.claim(site), body.wait, request=request)
        if taken is None:
            return Response(status_code=204)
        return JSONResponse(
            {
                "id": taken.id,
                "attempt": taken.attempt,
                "kind": taken.kind,
                "payload": taken.payload,
            }
        )

    @doors.route(
        router,
        "PUT",
        "/v1/sites/{site}/jobs/{job_id}/attempts/{attempt}/result",
        Principal.SITE,
        tags=["hospitals"],
    )
    def put_result(
        site: SiteName, job_id: JobId, attempt: Attempt, body: ResultBody, caller: CallerDep
    ) -> dict[str, bool]:
        """My hospital's signed answer to a job, or its refusal by code."""
        _own(site, caller)
        if (body.document is None) == (body.refused is None):
            raise InvalidInputError("result: send either document or refused")
        gateway.receive(site, job_id, attempt, document=body.document, code=body.refused)
        return {"stored": True}


def _uses(router: APIRouter, doors: Doors, gateway: Gateway) -> None:
    @doors.route(router, "GET", "/v1/me/uses", Principal.PATIENT, tags=["patients"])
    async def uses(
        pid: Annotated[str, Query(pattern=r"^[a-z2-7]{26}$")],
        request: Request,
        caller: CallerDep,
        signed: UseRequestHeader = None,
    ) -> dict[str, Json]:
        """What used my record: my hospital's signed statement, relayed and not kept.

        Coop-Use-Request is the base64url of the UseRequest that the record's key signed just now.
        """
        job_id = await run_in_threadpool(gateway.uses.start, caller, pid, signed)
        try:
            found = await doors.bell.poll(
                lambda: gateway.uses.found(job_id), WAIT_S, request=request
            )
            if found is None:
                raise await run_in_threadpool(gateway.uses.missing, job_id)
            return found
        finally:
            # Erased with the reply. A crash before this leaves it for at most a minute.
            await run_in_threadpool(gateway.uses.forget, job_id)


def _account(router: APIRouter, doors: Doors, gateway: Gateway) -> None:
    @doors.route(router, "GET", "/v1/usage", Principal.RESEARCHER, tags=["account"])
    def usage(caller: CallerDep) -> dict[str, Any]:
        """What I asked and paid, by day and model."""
        return {"usage": gateway.usage(caller.account)}

    @doors.route(router, "GET", "/v1/budgets", Principal.RESEARCHER, tags=["account"])
    def budgets(
        study: Annotated[str, Query(pattern=r"^[a-z][a-z0-9_-]{0,63}$")], caller: CallerDep
    ) -> dict[str, Any]:
        """What my study's cohort questions have cost in privacy, by hospital."""
        return {"budgets": gateway.budgets(_asker(caller, None, None), study)}


def _asker(caller: Caller, study: str | None, purpose: str | None) -> Asker:
    return Asker(account_id=caller.account, key_id=caller.key_id, study_id=study, purpose=purpose)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise MissingKeyError("Idempotency-Key: 1 to 128 visible ASCII characters, no space")
    return key


def _own(site: SiteName, caller: Caller) -> None:
    # Absent and somebody else's look alike.
    if site != caller.subject:
        raise NotFoundError("site: not found")
