"""The log in public: checkpoint, tiles, proofs, receipts; and the channel of its witnesses."""

from typing import Annotated, Any, Final

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from coop import members
from coop.canonical import b64u
from coop.doorbell import WAIT_MAX_S
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import NotFoundError
from coop.hub.bodies import Body
from coop.hub.outside import Outside
from coop.journal.store import ENTRIES_MAX, Journal
from coop.journal.tiles import TILE_WIDTH, parse_path

_IMMUTABLE: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_SIZE_MAX: Final = 2**53 - 1
Size = Annotated[int, Query(ge=0, le=_SIZE_MAX)]
Wait = Annotated[int, Query(ge=0, le=WAIT_MAX_S, description="Seconds to wait for something new.")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Site = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


class EntriesAnswer(Body):
    """Leaves of the log, base64url."""

    entries: list[str]


class ProofAnswer(Body):
    """Hashes of a proof, hex."""

    hashes: list[str]


class GrowthAnswer(Body):
    """The newest checkpoint and the leaves the witness has not seen (at most 5000)."""

    checkpoint: str
    entries: list[str]


class NoteBody(Body):
    """A checkpoint with the hospital's own cosignature line."""

    checkpoint: str


class RefusalAnswer(Body):
    """What a witness refused: what she was sent, and what she said."""

    size: int
    status: int
    sent: str
    answer: str
    at: int


class WitnessAnswer(Body):
    """An outside witness."""

    name: str
    vkey: str
    url: str
    checkpoint: str | None
    """The newest that she cosigned, with the log's signature and hers."""
    refusals: list[RefusalAnswer]


class OutsideAnswer(Body):
    """The outside witnesses."""

    witnesses: list[WitnessAnswer]


class SizeAnswer(Body):
    """How far the log has grown."""

    size: int


def routes(doors: Doors, journal: Journal) -> APIRouter:
    """Every public route of the log."""
    router = APIRouter(tags=["log"])

    @doors.route(router, "GET", "/checkpoint", Principal.PUBLIC, response_class=PlainTextResponse)
    def checkpoint() -> str:
        """The newest signed checkpoint with its cosignatures (C2SP)."""
        with doors.database.reading() as connection:
            return journal.checkpoint(connection)

    @doors.route(
        router,
        "GET",
        "/tile/{path:path}",
        Principal.PUBLIC,
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    def tile(path: Annotated[str, Path(max_length=64)]) -> Response:
        """A tile of hashes or entries (c2sp.org/tlog-tiles)."""
        wanted = parse_path(path)
        with doors.database.reading() as connection:
            if wanted.start + wanted.width > _SIZE_MAX:
                raise NotFoundError("tile: the log has not grown so far")
            data = journal.tile(connection, wanted)
        headers = _IMMUTABLE if wanted.width == TILE_WIDTH else {}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @doors.route(router, "GET", "/v1/log/entries", Principal.PUBLIC)
    def entries(start: Size = 0, end: Size = _SIZE_MAX) -> EntriesAnswer:
        """The leaves from `start` up to (not including) `end`, at most 5000."""
        with doors.database.reading() as connection:
            found = journal.entries(connection, start, max(0, min(end - start, ENTRIES_MAX)))
        return EntriesAnswer(entries=[b64u(leaf) for leaf in found])

    @doors.route(router, "GET", "/v1/log/size", Principal.PUBLIC)
    def size() -> SizeAnswer:
        """How many entries the log has."""
        with doors.database.reading() as connection:
            return SizeAnswer(size=journal.size(connection))

    @doors.route(router, "GET", "/v1/log/inclusion", Principal.PUBLIC)
    def inclusion(index: Size, size: Size) -> ProofAnswer:
        """Proof that an entry is in the log of `size`."""
        with doors.database.reading() as connection:
            _grown_to(connection, journal, size)
            found = journal.inclusion(connection, index, size)
        return ProofAnswer(hashes=[part.hex() for part in found])

    @doors.route(router, "GET", "/v1/log/proof", Principal.PUBLIC, response_class=PlainTextResponse)
    def proof(index: Size) -> str:
        """An entry's `.tlog-proof` (C2SP) under the checkpoint most hospitals cosigned.

        A receipt starts at its commit; with this it is completed, by whoever knows its index.
        """
        with doors.database.reading() as connection:
            return journal.proof(connection, index, sites=members.site_dids(connection))

    @doors.route(router, "GET", "/v1/log/consistency", Principal.PUBLIC)
    def consistency(old: Size, new: Size) -> ProofAnswer:
        """Proof that the log of size `new` extends the log of size `old`."""
        with doors.database.reading() as connection:
            _grown_to(connection, journal, new)
            found = journal.consistency(connection, old, new)
        return ProofAnswer(hashes=[part.hex() for part in found])

    @doors.route(router, "GET", "/v1/log/export", Principal.PUBLIC)
    def export() -> dict[str, Any]:
        """The whole log, for `coop verify log`."""
        with doors.database.reading() as connection:
            return journal.export(connection)

    return router


def outside_routes(doors: Doors, outside: Outside) -> APIRouter:
    """What witnesses outside the cooperative have signed and refused, for whoever trusts them."""
    router = APIRouter(tags=["log"])

    @doors.route(router, "GET", "/v1/log/witnesses", Principal.PUBLIC)
    def witnesses() -> OutsideAnswer:
        """Each outside witness with the newest checkpoint she cosigned, and what she refused."""
        with doors.database.reading() as connection:
            return OutsideAnswer.model_validate({"witnesses": outside.signed(connection)})

    return router


def witness_routes(doors: Doors, journal: Journal) -> APIRouter:
    """The channel over which hospitals watch the log grow and cosign it. They dial out."""
    router = APIRouter(tags=["hospital channel"])

    @doors.route(router, "GET", "/v1/sites/{site}/checkpoints", Principal.SITE)
    async def checkpoints(
        request: Request, site: Site, caller: CallerDep, since: Size = 0, wait: Wait = 0
    ) -> GrowthAnswer:
        """The newest checkpoint and the leaves from `since` on; waits while there is none."""
        own_site(caller, site)

        def look() -> GrowthAnswer | None:
            with doors.database.reading() as connection:
                if journal.size(connection) <= since:
                    return None
                return _growth(connection, journal, since)

        def stand() -> GrowthAnswer:
            with doors.database.reading() as connection:
                return _growth(connection, journal, since)

        grown = await doors.bell.poll(look, wait, request=request)
        if grown is not None:
            return grown
        # Nothing new: the checkpoint as it stands, perhaps with more cosignatures.
        return await run_in_threadpool(stand)

    @doors.route(router, "POST", "/v1/sites/{site}/cosignatures", Principal.SITE)
    def cosign(site: Site, caller: CallerDep, body: NoteBody) -> SizeAnswer:
        """Keep the hospital's cosignature of one of the log's own checkpoints."""
        own_site(caller, site)
        with doors.database.unit_of_work() as connection:
            journal.add_cosignature(connection, site, caller.did or "", body.checkpoint)
            return SizeAnswer(size=journal.size(connection))

    return router


def own_site(caller: Caller, site: str) -> None:
    """Return if the hospital acts for itself.

    Raises:
        NotFoundError: It names another one; whether that exists stays unsaid.
    """
    if caller.principal is not Principal.SITE or caller.subject != site:
        raise NotFoundError("site: not found")


def _growth(connection: sa.Connection, journal: Journal, since: int) -> GrowthAnswer:
    leaves = journal.entries(connection, since)
    return GrowthAnswer(
        checkpoint=journal.checkpoint(connection), entries=[b64u(leaf) for leaf in leaves]
    )


def _grown_to(connection: sa.Connection, journal: Journal, size: int) -> None:
    if size > journal.size(connection):
        raise NotFoundError("size: the log has not grown so far")
