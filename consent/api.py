"""The consent registry's routes.

Documents that carry their own signature need no sign-in: whoever brings them, the enrolled key
decides. What concerns one record answers to its owner only; to everybody else it looks absent.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from consent import decide as gate
from consent import freshness
from consent.drafts import Choice
from consent.duo import ASSERTED_MAX
from consent.events import NotEnrolledError
from consent.freshness import TOKEN_CHARS_MAX
from consent.policy import DATA_CLASS, parse, preset
from consent.registry import BATCH_MAX, HISTORY_PAGE, Registry
from consent.store import Enrolled
from coop import members
from coop.documents.consent import Notice
from coop.documents.provision import TIME_MAX, Policy
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.enrolment import CODE_ID
from coop.errors import NotFoundError
from coop.passkeys import ASSERTION_CHARS_MAX

PATIENT, STAFF, SITE = Principal.PATIENT, Principal.STAFF, Principal.SITE
RESEARCHER, PUBLIC = Principal.RESEARCHER, Principal.PUBLIC
BANDS: Final = (1000, 500, 200, 100, 50)
"""Lower edges of what a researcher learns about consents; below the last: nothing."""

_CODE_ID: Final = f"^{CODE_ID.pattern}$"
Document = dict[str, Any]
Pid = Annotated[str, Path(pattern=r"^[a-z2-7]{26}$")]
Wait = Annotated[int, Query(ge=0, le=60)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedeemBody(_Body):
    """Redemptions of enrolment codes."""

    redemptions: list[Document] = Field(min_length=1, max_length=BATCH_MAX)


class Refusal(_Body):
    """A code that the hospital does not accept from this key."""

    code_id: str = Field(max_length=80, pattern=_CODE_ID)
    code: str = Field(pattern=r"^[a-z][a-z0-9.-]{0,63}$")


class EnrolBody(_Body):
    """A hospital's answers."""

    documents: list[Document] = Field(default_factory=list, max_length=BATCH_MAX)
    refused: list[Refusal] = Field(default_factory=list, max_length=BATCH_MAX)


class ConsentsBody(_Body):
    """Signed consent events."""

    documents: list[Document] = Field(min_length=1, max_length=BATCH_MAX)


class DraftBody(_Body):
    """What the patient chose: a ready-made policy by name, or a policy of her own."""

    pid: str = Field(pattern=r"^[a-z2-7]{26}$")
    event: Literal["grant", "amend", "revoke", "suspend", "resume", "lift"]
    preset: str | None = None
    policy: Document | None = None
    data_class: str = DATA_CLASS
    disease: str | None = None
    study_id: str | None = None
    epsilon_cap_micro: int | None = Field(default=None, ge=0, le=TIME_MAX)
    end: int = Field(default=TIME_MAX, ge=1, le=TIME_MAX)
    notice: Notice | None = None
    on_death: Literal["stop", "continue"] | None = None


class SignBody(_Body):
    """The browser's signature over a draft."""

    draft_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    did: str = Field(max_length=128)
    signature: str = Field(max_length=ASSERTION_CHARS_MAX)


class QuestionBody(_Body):
    """What someone wants to do with records."""

    action: str = Field(max_length=64)
    purpose: str = Field(max_length=64)
    disease: str | None = Field(default=None, max_length=64)
    further: list[Annotated[str, Field(max_length=64)]] = Field(
        default_factory=list, max_length=ASSERTED_MAX
    )
    data_class: str = Field(max_length=64)
    study_id: str = Field(max_length=64)
    organisation: str = Field(max_length=200)
    commercial: bool
    epsilon_micro: int | None = Field(default=None, ge=0, lt=2**53)
    """What the use costs a person; without it, whoever has a cap of her own does not permit."""
    population: int | None = Field(default=None, ge=1, lt=2**53)
    """How many people the use declares to be about: its public plan, never a count of today.
    Without it, whoever wants to be among a least number does not permit."""


class DecisionBody(QuestionBody):
    """The same, about one record."""

    pid: str = Field(pattern=r"^[a-z2-7]{26}$")
    at_least_as_fresh: str | None = Field(default=None, max_length=TOKEN_CHARS_MAX)
    """The `fresh` of a receipt or decision: an answer that knows less is refused."""


def routes(doors: Doors, registry: Registry) -> APIRouter:
    """Every route of the registry."""
    router = APIRouter(tags=["consent"])
    _enrolment_routes(router, doors, registry)
    _event_routes(router, doors, registry)
    _restricting_routes(router, doors, registry)
    _owner_routes(router, doors, registry)
    _question_routes(router, doors, registry)
    return router


def _enrolment_routes(router: APIRouter, doors: Doors, registry: Registry) -> None:
    @doors.route(router, "POST", "/v1/enrolments:redeem", PUBLIC, PATIENT)
    def redeem(body: RedeemBody, caller: CallerDep) -> dict[str, Any]:
        """Redeem enrolment codes; each stands or falls for itself."""
        return {"results": registry.redeem(body.redemptions, caller.account_or_none)}

    @doors.route(router, "GET", "/v1/enrolments/{code_id}", PUBLIC)
    def enrolment_state(
        code_id: Annotated[str, Path(max_length=80, pattern=_CODE_ID)],
    ) -> dict[str, Any]:
        """How a code's redemption stands: pending, enrolled or refused."""
        return dict(registry.redemption_state(code_id))

    @doors.route(router, "GET", "/v1/sites/{site}/enrolments", SITE)
    async def waiting(
        site: str, caller: CallerDep, request: Request, wait: Wait = 0
    ) -> dict[str, Any]:
        """Redemptions that this hospital has not answered; waits for the first one."""
        _same_site(caller, site)
        found = await doors.bell.poll(
            lambda: registry.pending_redemptions(site) or None, wait, request=request
        )
        return {"redemptions": found or []}

    @doors.route(router, "POST", "/v1/sites/{site}/enrolments", SITE)
    def enrol(site: str, body: EnrolBody, caller: CallerDep) -> dict[str, Any]:
        """The hospital's enrolments and refusals."""
        _same_site(caller, site)
        refused = [{"code_id": item.code_id, "code": item.code} for item in body.refused]
        return {"results": registry.add_enrolments(site, body.documents, refused)}


def _event_routes(router: APIRouter, doors: Doors, registry: Registry) -> None:
    @doors.route(router, "POST", "/v1/consents", PUBLIC, PATIENT, response_model=dict[str, Any])
    def submit(body: ConsentsBody, caller: CallerDep) -> Response:
        """Signed consent events; each gets its receipt or its own problem."""
        del caller  # the documents' own signatures decide
        return _json({"results": registry.submit(body.documents)})

    @doors.route(router, "POST", "/v1/consents:draft", PATIENT)
    def draft(body: DraftBody, caller: CallerDep) -> dict[str, Any]:
        """What the browser shows and signs."""
        may_act(doors, registry, caller, body.pid)
        policy = _chosen(body)
        choice = Choice(event=body.event, policy=policy, notice=body.notice, on_death=body.on_death)
        return registry.draft(body.pid, choice)

    @doors.route(router, "POST", "/v1/consents:sign", PATIENT)
    def sign(body: SignBody, caller: CallerDep) -> dict[str, Any]:
        """The signature; verified over the hub's own copy of the draft."""
        may_act(doors, registry, caller, registry.pid_of_draft(body.draft_id))
        return registry.sign(body.draft_id, body.signature, body.did)

    @doors.route(router, "POST", "/v1/consents/{pid}/revoke", PATIENT, STAFF)
    def revoke(pid: Pid, caller: CallerDep) -> dict[str, Any]:
        """Withdraw: at once, without a key."""
        may_act(doors, registry, caller, pid)
        return registry.restrict(pid, "revoke", actor_of(caller))

    @doors.route(router, "POST", "/v1/consents/{pid}/suspend", PATIENT, STAFF)
    def suspend(pid: Pid, caller: CallerDep) -> dict[str, Any]:
        """Pause: at once, without a key."""
        may_act(doors, registry, caller, pid)
        return registry.restrict(pid, "suspend", actor_of(caller))


def _restricting_routes(router: APIRouter, doors: Doors, registry: Registry) -> None:
    @doors.route(router, "POST", "/v1/consents/{pid}/reject", PATIENT, STAFF)
    def reject(pid: Pid, caller: CallerDep) -> dict[str, Any]:
        """Decline what the hospital has proposed: without a key."""
        may_act(doors, registry, caller, pid)
        return registry.restrict(pid, "reject", actor_of(caller))

    @doors.route(router, "POST", "/v1/consents/{pid}/object", PATIENT, STAFF)
    def object_to_all(pid: Pid, caller: CallerDep) -> dict[str, Any]:
        """Object to all research with this record, whatever else is allowed: without a key."""
        may_act(doors, registry, caller, pid)
        return registry.restrict(pid, "object", actor_of(caller))

    @doors.route(router, "POST", "/v1/me/consents:object", PATIENT)
    def object_everywhere(caller: CallerDep) -> dict[str, Any]:
        """Object to all research with every record of mine, at every hospital: without a key."""
        if caller.did is None:
            return {"results": registry.object_everywhere(caller.account)}
        own = [
            pid
            for pid, _ in mine(doors, registry, caller)
            if registry.enrolled(pid).did == caller.did
        ]
        return {
            "results": [{"pid": pid, **registry.restrict(pid, "object", "session")} for pid in own]
        }


def _owner_routes(router: APIRouter, doors: Doors, registry: Registry) -> None:
    @doors.route(router, "GET", "/v1/consents/{pid}", PATIENT, STAFF, SITE)
    def consent(pid: Pid, caller: CallerDep) -> dict[str, Any]:
        """How the consent for one record stands."""
        may_act(doors, registry, caller, pid)
        return registry.overview(pid)

    @doors.route(router, "GET", "/v1/consents/{pid}/history", PATIENT)
    def history(
        pid: Pid,
        caller: CallerDep,
        after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        limit: Annotated[int, Query(ge=1, le=HISTORY_PAGE)] = HISTORY_PAGE,
    ) -> dict[str, Any]:
        """The events after a sequence, each with its proof; `next` leads on if there are more."""
        may_act(doors, registry, caller, pid)
        events = registry.history(pid, after=after, limit=limit)
        return {"events": events, "next": events[-1]["sequence"] if len(events) == limit else None}

    @doors.route(router, "GET", "/v1/me", PATIENT)
    def me(caller: CallerDep) -> dict[str, Any]:
        """The caller's records: her own, and those of others for whom her key decides."""
        found = mine(doors, registry, caller)
        return {
            "pids": [
                {
                    "pid": pid,
                    "site": site,
                    "own": caller.did is None or registry.enrolled(pid).did == caller.did,
                }
                for pid, site in found
            ]
        }

    @doors.route(router, "GET", "/v1/me/consents", PATIENT)
    def my_consents(caller: CallerDep) -> dict[str, Any]:
        """How the consent for each of the caller's records stands."""
        return {"consents": [registry.overview(p) for p, _ in mine(doors, registry, caller)]}


def _question_routes(router: APIRouter, doors: Doors, registry: Registry) -> None:
    @doors.route(router, "POST", "/v1/decisions", PATIENT, STAFF, SITE)
    def decision(body: DecisionBody, caller: CallerDep) -> dict[str, Any]:
        """What one record's policy says to a use; only the hospital's own decision opens it."""
        may_act(doors, registry, caller, body.pid)
        with registry.database.reading() as connection:
            # Before the decision is read: it knows at least as much as this.
            fresh = freshness.known(connection, registry.journal)
            if body.at_least_as_fresh is not None:
                freshness.demand(connection, registry.journal, body.at_least_as_fresh)
        found = registry.decision(body.pid, _request(body, registry.now()))
        return {**asdict(found), "fresh": fresh}

    @doors.route(router, "POST", "/v1/cohorts:count", RESEARCHER)
    def count(body: QuestionBody, caller: CallerDep) -> dict[str, Any]:
        """How many consents permit a use, as a band over all hospitals; never a small number."""
        del caller
        permitted = registry.permitted(_request(body, registry.now()))
        total = sum(len(pids) for pids in permitted.values())
        return {"at_least": next((edge for edge in BANDS if total >= edge), None)}

    @doors.route(router, "GET", "/v1/lease", SITE, response_model=dict[str, Any])
    def lease(
        caller: CallerDep,
        nonce: Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")],
        have: Annotated[int, Query(ge=0)] = 0,
        documents: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        """The registry's signed word for the caller's nonce, with what is needed to check it."""
        return _json(registry.lease(caller.subject, nonce, have, documents))


def mine(doors: Doors, registry: Registry, caller: Caller) -> list[tuple[str, str]]:
    """(pid, site) of the caller's own records."""
    if caller.did is not None:
        return registry.pids_of_key(caller.did)
    with doors.database.reading() as connection:
        return members.pids_of(connection, caller.account)


def may_act(doors: Doors, registry: Registry, caller: Caller, pid: str) -> Enrolled:
    """The record's enrolment, if the caller may act on it: its owner, or her hospital."""
    try:
        key = registry.enrolled(pid)
    except NotEnrolledError as error:
        raise NotFoundError("pid: not found") from error
    if caller.principal in {STAFF, SITE}:
        if caller.site != key.site:
            raise NotFoundError("pid: not found")
        return key
    if caller.did is not None and key.speakers.speaks(caller.did, registry.now()):
        return key  # her own key, or somebody who decides for her
    with doors.database.reading() as connection:
        members.owns(connection, caller, pid, key.did)
    return key


def _same_site(caller: Caller, site: str) -> None:
    if caller.subject != site:
        raise NotFoundError("site: not found")


def actor_of(caller: Caller) -> Literal["session", "registrar"]:
    """Who restricts: the patient's own session, or her hospital's desk."""
    return "registrar" if caller.principal is STAFF else "session"


def _chosen(body: DraftBody) -> Policy | None:
    if body.event not in {"grant", "amend"}:
        return None
    if body.policy is not None:
        return parse(body.policy)
    if body.preset is None:
        return None
    return preset(
        body.preset,
        data_class=body.data_class,
        disease=body.disease,
        study_id=body.study_id,
        epsilon_cap_micro=body.epsilon_cap_micro,
        end=body.end,
    )


def _request(body: QuestionBody, at: int) -> gate.Request:
    return gate.Request(
        action=body.action,
        purpose=body.purpose,
        disease=body.disease,
        further=tuple(body.further),
        data_class=body.data_class,
        study_id=body.study_id,
        organisation=body.organisation,
        commercial=body.commercial,
        epsilon_micro=body.epsilon_micro,
        population=body.population,
        at=at,
    )


def _json(value: Mapping[str, Any]) -> Response:
    # Straight to bytes: these answers hold thousands of documents that are plain JSON already.
    return Response(orjson.dumps(value), media_type="application/json")
