"""Routes on who may speak for a record: keys, representatives, and objecting to a new key.

Documents carry their own signatures, so anybody may bring them. What needs no key (closing a
record, ending a representation) is signed by the hub for whoever is entitled.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from consent.api import PATIENT, PUBLIC, STAFF, Document, Pid, may_act, mine
from consent.events import NotEnrolledError
from consent.registry import BATCH_MAX, Registry
from consent.store import Enrolled
from consent.succession import SpeakerRefusedError
from coop import members
from coop.doors import Caller, CallerDep, Doors
from coop.errors import NotFoundError


class PeopleBody(BaseModel):
    """Signed documents: key events, representations, their ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: list[Document] = Field(min_length=1, max_length=BATCH_MAX)


class EndBody(BaseModel):
    """Which representation ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    representation: str = Field(pattern=r"^[0-9a-f]{64}$")


def routes(doors: Doors, registry: Registry) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["consent"])
    people = registry.people

    @doors.route(router, "POST", "/v1/keys", PUBLIC, PATIENT, response_model=dict[str, Any])
    def submit(body: PeopleBody, caller: CallerDep) -> Response:
        """Key events and representations; each gets its receipt or its own problem."""
        del caller  # the documents' own signatures decide
        answers = {"results": people.submit(body.documents)}
        return Response(orjson.dumps(answers), media_type="application/json")

    @doors.route(router, "GET", "/v1/me/keys", PATIENT)
    def my_keys(caller: CallerDep) -> dict[str, Any]:
        """The keys of the caller's records, who may decide for her, and what waits.

        `replaced` holds the records whose new key the caller may object to: she had the old one.
        """
        own = [pid for pid, _ in mine(doors, registry, caller)]
        return {
            "records": [people.who_speaks(pid) for pid in own],
            "replaced": [
                _only_the_change(people.who_speaks(pid))
                for pid in _replaced(doors, registry, caller)
                if pid not in own
            ],
        }

    @doors.route(router, "GET", "/v1/keys/{pid}", PATIENT, response_model=dict[str, Any])
    def standing(pid: Pid, caller: CallerDep) -> dict[str, Any]:
        """What a guardian of the key needs to sign for a new one: where the record's key stands."""
        try:
            guardians = registry.enrolled(pid).speakers.guardians
        except NotEnrolledError as error:
            raise NotFoundError("pid: not found") from error
        if caller.did not in guardians:
            may_act(doors, registry, caller, pid)
        return _only_the_change(people.who_speaks(pid))

    @doors.route(router, "POST", "/v1/keys/{pid}/revoke-all", PATIENT, STAFF)
    def close(pid: Pid, caller: CallerDep) -> dict[str, Any]:
        """Nobody can allow anything more until the hospital enrols a new key; at once, no key."""
        if pid not in _replaced(doors, registry, caller):
            may_act(doors, registry, caller, pid)
        return people.close(pid)

    @doors.route(router, "POST", "/v1/keys/{pid}/end", PATIENT, STAFF)
    def end(pid: Pid, body: EndBody, caller: CallerDep) -> dict[str, Any]:
        """End a representation; at once, no key. Who represents her ends only their own."""
        _refuse_of_others(may_act(doors, registry, caller, pid), caller, body.representation)
        return people.end(pid, body.representation)

    return router


def _refuse_of_others(key: Enrolled, caller: Caller, digest: str) -> None:
    named = key.speakers.representative(digest)
    own = named is not None and named.did == caller.did
    if caller.did not in {None, key.did} and not own:
        raise SpeakerRefusedError("representation: a representative ends only their own")


def _replaced(doors: Doors, registry: Registry, caller: Caller) -> Sequence[str]:
    """Records whose new key the caller may object to."""
    if caller.did is not None:
        return registry.people.replaced_key(caller.did)
    if caller.account_or_none is None:
        raise NotFoundError("pid: not found")
    with doors.database.reading() as connection:
        found = members.former_pids_of(connection, caller.account, registry.now())
    return [pid for pid, _ in found]


def _only_the_change(said: dict[str, Any]) -> dict[str, Any]:
    """What whoever may not be the patient learns: that there is a new key, and since when."""
    names = ("pid", "site", "key", "closed", "waits_until", "sequence", "head_sha256")
    return {name: said[name] for name in names}
