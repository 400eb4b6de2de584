"""Erasure of a record, on its hospital's signed word."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from consent.erase import erase
from consent.events import OnRevoked
from coop.doors import CallerDep, Doors, Principal
from coop.hub.bodies import Body
from coop.hub.log_api import Site, own_site
from coop.journal.store import Journal


class ErasureBody(Body):
    """The signed act, and whose record it is: the act itself names nobody."""

    document: dict[str, Any] = Field(description="An erasure, signed by the hospital.")
    pid: str = Field(pattern=r"^[a-z2-7]{26}$")


class ErasedAnswer(Body):
    """Where the act stands in the log."""

    digest: str
    index: int


def routes(doors: Doors, journal: Journal, on_erased: OnRevoked) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["hospitals"])

    @doors.route(router, "POST", "/v1/sites/{site}/erasures", Principal.SITE)
    def erase_record(site: Site, body: ErasureBody, caller: CallerDep) -> ErasedAnswer:
        """Erase all that is held of one of the hospital's own records; proofs of others stay."""
        own_site(caller, site)
        with doors.database.unit_of_work() as connection:
            request = (body.document, body.pid)
            place = erase(connection, journal, site, request, on_erased)
        return ErasedAnswer(digest=place.digest, index=place.index)

    return router
