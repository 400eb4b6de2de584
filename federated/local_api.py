"""The node's loopback API: what the hospital's own staff see and decide. Nothing leaves the house.

Figures on these routes are exact, because they are the hospital's own; that is why the routes serve
the loopback interface only and want the staff token.
"""

import asyncio
import hmac
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy as sa
import uvicorn
from fastapi import Depends, FastAPI, Header, Query
from pydantic import BaseModel, ConfigDict, Field

from coop import problems
from coop.errors import CoopError, Kind, UnavailableError
from federated import approval, control, coverage, custody, desk, overlay, witnesses
from federated.budget import debit, site_spend
from federated.doctor import checks
from federated.node import Node, clock, staff_token
from federated.site import patient, quarantine

_PAGE_MAX = 500


class StaffTokenError(CoopError):
    """The loopback API was called without the hospital's staff token."""

    code = "node.staff-token"
    kind = Kind.UNAUTHENTICATED


class LocalPortTakenError(UnavailableError):
    """Somebody else listens on the loopback API's port."""

    code = "node.port-taken"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ApprovalBody(_Body):
    """Which study version to approve, and the hospital's own limit."""

    study_id: str
    version: int | None = None
    study_sha256: str | None = Field(
        default=None, description="Of the study that was read; another one is not signed."
    )
    epsilon_cap: str = Field(default="1", description="Decimal; at most 3.")


class EnrolBody(_Body):
    """Whose identity the registrar checked, and how."""

    records: list[str] = Field(min_length=1, max_length=desk.BATCH_MAX)
    method: Literal["desk", "post", "custodial", "demo"] = "desk"


class WindowsBody(_Body):
    """When this hospital trains."""

    hours: list[str] = Field(max_length=50, description="`mon-fri 20:00-06:00`; none: always.")
    zone: str = Field(default="UTC", max_length=60)


class AcceptBody(_Body):
    """Hospitals whose keys somebody here has compared with them."""

    hospitals: dict[str, str] = Field(min_length=1, max_length=1000, description="did by name")


class RevokeBody(_Body):
    """Which approval ends."""

    study_sha256: str


def application(node: Node) -> FastAPI:
    """The API over `node`; every route wants the staff token."""
    token = staff_token(node.site.folder)

    def staff(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise StaffTokenError("Authorization: send the token in the node's staff.token file")

    app = FastAPI(
        title="Hospital node, loopback only",
        dependencies=[Depends(staff)],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    _status_routes(app, node)
    _decision_routes(app, node)
    _machine_routes(app, node)
    return app


def _status_routes(app: FastAPI, node: Node) -> None:
    site = node.site

    @app.get("/local/v1/status")
    def status() -> dict[str, Any]:
        with site.database.reading() as connection:
            patients = connection.execute(
                sa.select(sa.func.count()).select_from(patient)
            ).scalar_one()
            drift = coverage.approved_drift(connection, now=clock())
        return {
            "site": site.name,
            "did": site.key.did,
            "hub": site.hub_url,
            "stopped": node.paused(),
            "patients": patients,
            "data_version": site.data_version(),
            "data_other_than_approved": drift,
            "log_size": node.mirror.size(),
            "parts": node.health,
            "overlay": overlay.facts(site, now=clock()),
            "control": control.facts(site, clock()),
        }

    @app.get("/local/v1/doctor")
    def doctor() -> dict[str, Any]:
        return checks(site)

    @app.get("/local/v1/quality")
    def quality() -> dict[str, Any]:
        return coverage.quality(site, now=clock())

    @app.get("/local/v1/quarantine")
    def quarantined(limit: Annotated[int, Query(ge=1, le=_PAGE_MAX)] = 100) -> dict[str, Any]:
        with site.database.reading() as connection:
            rows = connection.execute(sa.select(quarantine).limit(limit)).mappings().all()
        return {"rows": [dict(row) for row in rows]}

    @app.get("/local/v1/coverage")
    def consent_coverage() -> dict[str, Any]:
        return {"studies": coverage.by_study(site, node.mirror, now=clock())}

    @app.get("/local/v1/budget")
    def budget() -> dict[str, Any]:
        with site.database.reading() as connection:
            studies = [
                {
                    **_listed(entry),
                    "spend": site_spend(connection, entry["study_id"], entry["version"]),
                }
                for entry in approval.approved_studies(connection)
            ]
        return {"studies": studies}

    @app.get("/local/v1/audit")
    def audit(
        after: int = 0, limit: Annotated[int, Query(ge=1, le=_PAGE_MAX)] = 100
    ) -> dict[str, Any]:
        with site.database.reading() as connection:
            rows = connection.execute(
                sa.select(debit)
                .where(debit.c.sequence > after)
                .order_by(debit.c.sequence)
                .limit(limit)
            ).mappings()
            return {"debits": [dict(row) for row in rows]}


def _decision_routes(app: FastAPI, node: Node) -> None:
    site = node.site

    @app.get("/local/v1/approvals")
    def approvals() -> dict[str, Any]:
        with site.database.reading() as connection:
            approved = [_listed(entry) for entry in approval.approved_studies(connection)]
        return {"approved": approved, "open": node.client.get("/v1/studies")["studies"]}

    @app.get("/local/v1/approvals/{study_id}")
    def review(study_id: str, version: int | None = None) -> dict[str, Any]:
        return approval.review(site, node.client, study_id, version, now=clock())

    @app.post("/local/v1/approvals")
    def approve(body: ApprovalBody) -> dict[str, Any]:
        return approval.approve(
            site,
            node.client,
            body.study_id,
            version=body.version,
            study_sha256=body.study_sha256,
            epsilon_cap=body.epsilon_cap,
            now=clock(),
        )

    @app.post("/local/v1/witnesses")
    def accept(body: AcceptBody) -> dict[str, Any]:
        return {"witnesses": witnesses.accept(site, node.client, body.hospitals)}

    @app.post("/local/v1/approvals:revoke")
    def revoke(body: RevokeBody) -> dict[str, Any]:
        approval.revoke(site, body.study_sha256, now=clock())
        return {"revoked": body.study_sha256}

    @app.post("/local/v1/enrolments")
    def enrol(body: EnrolBody) -> dict[str, Any]:
        if body.method != "custodial":
            made = desk.enrol(site, body.records, method=body.method, now=clock())
            codes, letters = desk.hand_over(site, made)
            return {"codes": codes, "letters": letters}
        held = {
            record: custody.enrol(site, node.client, record, now=clock()) for record in body.records
        }
        return {"codes": {}, "letters": {}, "held": held}

    @app.get("/local/v1/recoveries")
    def recoveries() -> dict[str, Any]:
        return {"waiting": desk.recoveries(site, node.mirror.speakers(), clock())}


def _machine_routes(app: FastAPI, node: Node) -> None:
    site = node.site

    @app.get("/local/v1/windows")
    def windows() -> dict[str, Any]:
        return control.facts(site, clock())

    @app.put("/local/v1/windows")
    def set_windows(body: WindowsBody) -> dict[str, Any]:
        control.set_hours(site, body.hours, body.zone)
        return control.facts(site, clock())

    @app.post("/local/v1/stop")
    def stop() -> dict[str, Any]:
        node.pause(stopped=True)
        return {"stopped": True}

    @app.post("/local/v1/resume")
    def resume() -> dict[str, Any]:
        node.pause(stopped=False)
        return {"stopped": False}


def _listed(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "study"}


def serve_local(node: Node, port: int) -> None:
    """Serve the loopback API until `node.stop` is set; its address stands in `local.url` meanwhile.

    Raises:
        LocalPortTakenError: Somebody else listens on the port.
    """
    address = node.site.folder / "local.url"
    with _listening(port) as listening:
        try:
            asyncio.run(_serving(node, listening, address))
        finally:
            address.unlink(missing_ok=True)


def _listening(port: int) -> socket.socket:
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        listening.close()
        raise LocalPortTakenError(
            f"port {port} cannot be used ({error.strerror}); choose another with --port, 0 for any"
        ) from error
    return listening


async def _serving(node: Node, listening: socket.socket, address: Path) -> None:
    config = uvicorn.Config(application(node), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    # _serve, for serve() would take the signals: ours set node.stop, uvicorn's end the process.
    task = asyncio.create_task(server._serve([listening]))  # noqa: SLF001
    while not server.started and not task.done():  # noqa: ASYNC110  (uvicorn has no event)
        await asyncio.sleep(0.02)
    if server.started:
        # Written beside and renamed: a reader finds the whole address or none.
        beside = address.with_suffix(".new")
        beside.write_text(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
        beside.replace(address)
    while not node.stop.is_set() and not task.done():  # noqa: ASYNC110  (a thread sets it)
        await asyncio.sleep(0.2)
    server.should_exit = True
    await task
