"""Joining, and who has joined."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from coop import members
from coop.doors import Doors, Principal
from coop.hub.bodies import Body
from coop.hub.folder import HubFolder


class JoinBody(Body):
    """What a hospital sends to join (`coop.members.join_request`)."""

    token: str = Field(max_length=200)
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    did: str = Field(max_length=200)
    supernode_key: str = Field(min_length=1, max_length=4000)
    proof: str = Field(max_length=200)


class JoinAnswer(Body):
    """What the hospital pins for ever."""

    trust: dict[str, Any]
    hub_url: str


class SiteAnswer(Body):
    """A member hospital."""

    name: str
    did: str
    state: str


class SitesAnswer(Body):
    """Every member hospital."""

    sites: list[SiteAnswer]


class PasskeysAnswer(Body):
    """The portal whose passkeys sign here; both absent where none does."""

    rp_id: str | None = None
    origins: list[str] = Field(default_factory=list)


def routes(doors: Doors, folder: HubFolder) -> APIRouter:
    """The members' routes."""
    router = APIRouter(tags=["members"])

    @doors.route(router, "POST", "/v1/members/join", Principal.PUBLIC)
    def join(body: JoinBody) -> JoinAnswer:
        """Become a member with a single-use token from the cooperative's operator."""
        with doors.database.unit_of_work() as connection:
            members.redeem_invite(connection, body.model_dump(), now=doors.now())
            trust = folder.trust(connection)
        return JoinAnswer(trust=trust.to_json(), hub_url=folder.hub_url)

    @doors.route(router, "GET", "/v1/members/sites", Principal.PUBLIC)
    def sites() -> SitesAnswer:
        """Every member hospital with the key it signs with."""
        with doors.database.reading() as connection:
            found = members.sites(connection).values()
        return SitesAnswer(
            sites=[SiteAnswer(name=site.name, did=site.did, state=site.state) for site in found]
        )

    @doors.route(router, "GET", "/v1/members/passkeys", Principal.PUBLIC)
    def passkeys() -> PasskeysAnswer:
        """Where patients may sign with a passkey; the same stands in every pinned trust file."""
        party = folder.passkeys
        if party is None:
            return PasskeysAnswer()
        return PasskeysAnswer(rp_id=party.rp_id, origins=list(party.origins))

    return router
