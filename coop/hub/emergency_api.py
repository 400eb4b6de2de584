"""Break-glass acts of hospitals and what others found of them: logged like everything else."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from coop import members
from coop.documents.emergency import BreakGlass, BreakGlassReview
from coop.documents.envelope import WrongDocumentError, open_document, type_of
from coop.doors import CallerDep, Doors, Principal
from coop.hub.bodies import Body
from coop.hub.log_api import own_site
from coop.journal.store import Journal


class EmergencyBody(Body):
    """One signed document."""

    document: dict[str, Any] = Field(description="A break-glass or its review.")


class LoggedAnswer(Body):
    """Where it stands in the log."""

    digest: str
    index: int


def routes(doors: Doors, journal: Journal) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["hospitals"])

    @doors.route(router, "POST", "/v1/sites/{site}/emergencies", Principal.SITE)
    def log_emergency(
        site: Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,63}$")],
        body: EmergencyBody,
        caller: CallerDep,
    ) -> LoggedAnswer:
        """Put a hospital's break-glass, or its review, into the log; the same one stands once."""
        own_site(caller, site)
        types = body.document.get("type")
        name = str(types[-1]) if isinstance(types, list) and types else ""
        kind: type[BreakGlass | BreakGlassReview] = (
            BreakGlassReview if name == type_of(BreakGlassReview) else BreakGlass
        )
        with doors.database.unit_of_work() as connection:
            did = members.site_dids(connection)[site]
            opened = open_document(kind, body.document, issuers={did})
            if opened.subject.site != site:
                raise WrongDocumentError(f"{kind.kind}.site: must be the hospital that signs")
            logged = journal.record(connection, kind.kind, opened.document)
        return LoggedAnswer(digest=opened.digest, index=logged.index)

    return router
