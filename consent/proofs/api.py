"""Tallies in public: anybody fetches one, adds it up offline, and finds her own row in it."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from consent.proofs.counting import Counting
from coop.doors import Doors, Principal


def routes(doors: Doors, counting: Counting) -> APIRouter:
    """The tallies' route. They are made by `coop hub tally`, at the hub."""
    router = APIRouter(tags=["consent"])

    @doors.route(router, "GET", "/v1/studies/{study_id}/tallies/{site}", Principal.PUBLIC)
    def tally(
        study_id: Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,63}$")],
        site: Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,63}$")],
        version: Annotated[int | None, Query(ge=1, le=2**53 - 1)] = None,
    ) -> dict[str, Any]:
        """How many patients of a hospital permit a study: a file for `coop verify tally`."""
        return counting.made(study_id, version, site)

    return router
