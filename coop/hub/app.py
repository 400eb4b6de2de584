"""The hub, assembled: every part over one database, every route behind its door. Wiring only."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Final

import sqlalchemy as sa
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

import consent.api
import consent.fhir.api
import consent.notice_api
import consent.people_api
import consent.proofs.api
import federated.rounds_api
import inference_gateway.api
from consent.proofs.counting import Counting
from consent.registry import Registry
from consent.store import standings
from coop import problems
from coop.catalogue import Catalogue
from coop.db import Database
from coop.doors import Doors, check_every_route
from coop.economy import Economy
from coop.hub import (
    catalogue_api,
    chain_api,
    emergency_api,
    erasure_api,
    failures,
    health_api,
    ledger_api,
    log_api,
    members_api,
    openapi,
    receipts_api,
    sign_in_api,
    studies_api,
)
from coop.hub.folder import HubFolder
from coop.hub.limits import Limits
from coop.hub.outside import Outside
from coop.hub.release import Releases, leave
from coop.journal.store import Journal
from coop.journal.witness import witnesses_of
from coop.logs import logger
from coop.oidc import Oidc
from coop.pools import models_with_pools
from coop.settings import Settings
from federated.front import Front
from federated.rounds import Rounds
from federated.server import Trainer
from federated.superlink import SuperLink, SuperLinkDownError
from inference_gateway.gateway import Gateway

_FLEET: Final = "/v1/fleet"
_SWEEP_S: Final = 2.0
_WINDOWS_S: Final = 3600.0  # staff may close a window at any time


def create_app(settings: Settings) -> FastAPI:
    """The application over the hub's folder; the database is brought to its newest schema."""
    folder = HubFolder.open(settings.state)
    database = Database(settings.database())
    database.upgrade()
    hub_key = folder.hub_key
    oidc = Oidc(settings.oidc_issuer, settings.oidc_client_id) if settings.oidc_issuer else None
    doors = Doors(database, now=_now, oidc=oidc)
    journal = Journal(database, folder.log_key, folder.origin, _now)
    economy = Economy(database, journal, hub_key, _now)
    models = Catalogue(journal, hub_key, _now)
    registry = Registry(
        database,
        journal,
        hub_key,
        _now,
        on_revoked=partial(leave, economy, models),
        passkeys=folder.passkeys,
    )
    counting = Counting(database=database, journal=journal, hub_key=hub_key, now=_now)
    gateway = Gateway(database, journal, hub_key, now=_now, passkeys=folder.passkeys)
    rounds = Rounds(database, journal, hub_key, now=_now)
    releases = Releases(database, journal, rounds, models, economy, _now)
    link = SuperLink(settings.state / "superlink")
    trainer = Trainer(rounds, link, on_finished=releases.release)
    front = Front(link.address, link.ca_file)
    file = settings.witnesses_file
    outside = Outside(database, journal, witnesses_of(file.read_text()) if file else [], _now)
    metrics = health_api.Metrics()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(trainer.start)
        tasks = [
            asyncio.create_task(_again_and_again(gateway.sweep, _SWEEP_S)),
            asyncio.create_task(_again_and_again(outside.push, _SWEEP_S)),
            asyncio.create_task(
                _again_and_again(lambda: _close_windows(economy, releases), _WINDOWS_S)
            ),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await run_in_threadpool(trainer.stop)
            await front.close()
            outside.close()
            database.close()

    app = FastAPI(
        title="Health data cooperative",
        version=version("health-data-coop"),
        description="Hospitals learn together, patients decide, contributors earn.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.database = database
    app.state.stopping = doors.bell.close
    problems.install(app)
    failures.install(app)
    for router in (
        health_api.routes(doors, journal, metrics, ready=lambda: _ready(link)),
        sign_in_api.routes(doors),
        members_api.routes(doors, folder),
        studies_api.routes(doors, journal),
        log_api.routes(doors, journal),
        log_api.outside_routes(doors, outside),
        log_api.witness_routes(doors, journal),
        emergency_api.routes(doors, journal),
        erasure_api.routes(doors, journal, partial(leave, economy, models)),
        receipts_api.routes(doors, journal, folder),
        ledger_api.routes(doors, economy, _has_choice, releases.share_questions),
        catalogue_api.routes(doors, models),
        chain_api.routes(doors, journal, rounds),
        consent.api.routes(doors, registry),
        consent.people_api.routes(doors, registry),
        consent.notice_api.routes(doors),
        consent.proofs.api.routes(doors, counting),
        consent.fhir.api.routes(doors, registry, journal),
        federated.rounds_api.routes(doors, rounds),
        inference_gateway.api.routes(doors, gateway),
    ):
        app.include_router(router)
    # Pure ASGI: hospitals' nodes sign these requests, and the SuperLink behind checks them.
    app.mount(_FLEET, front)
    app.add_middleware(Limits, unread=f"{_FLEET}/")
    app.add_middleware(health_api.Metered, metrics=metrics)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]  # FastAPI's documented way
    check_every_route(app)
    return app


def _now() -> int:
    return int(time.time())


def _has_choice(connection: sa.Connection, pid: str) -> bool:
    return pid in standings(connection, [pid])


def _ready(link: SuperLink) -> None:
    if not link.alive():
        raise SuperLinkDownError("the SuperLink is starting or down; training waits")


def _close_windows(economy: Economy, releases: Releases) -> None:
    releases.share_questions()
    with economy.database.reading() as connection:
        models = models_with_pools(connection)
    for model_id in models:
        economy.close_window(model_id)


async def _again_and_again(work: Callable[[], None], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await run_in_threadpool(work)
        except Exception as error:  # noqa: BLE001  (outermost loop: one bug must not end it)
            logger().error("periodic work failed", error_type=type(error).__name__)
