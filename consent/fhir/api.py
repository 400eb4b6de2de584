"""`/fhir`: consents read, searched, created and withdrawn as FHIR does it.

A patient sees her own, a hospital and its staff those of their own patients; everybody else's look
absent. A consent is created only with the envelope that the patient signed in it: FHIR is how it
travels, and what it says must be what she signed.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from consent.api import actor_of, may_act, mine
from consent.fhir import mii, reader
from consent.fhir.capability import statement
from consent.fhir.record import Record, envelope_in, resource
from consent.fhir.records import Visible, one, page
from consent.fhir.refusals import (
    BadSearchError,
    NotWhatIsSignedError,
    UnsupportedVersionError,
)
from consent.fhir.search import tests_of
from consent.fhir.times import moment
from consent.fhir.words import EFFECTIVE_BY, PID, Version
from consent.registry import Registry
from consent.store import snapshot
from coop.canonical import Json, parse_object
from coop.documents.consent import Consent
from coop.documents.envelope import open_document
from coop.doors import Caller, CallerDep, Doors, Principal
from coop.errors import NotFoundError
from coop.journal.store import Journal
from coop.outcome import MEDIA_TYPE

COUNT: Final = 50
COUNT_MAX: Final = 200
PATIENT, STAFF, SITE = Principal.PATIENT, Principal.STAFF, Principal.SITE
_PAGING: Final = frozenset({"_count", "_after", "_format"})
_FORMATS: Final = frozenset({"json", "application/json", MEDIA_TYPE})
_OUTCOME: Final[dict[int | str, dict[str, Any]]] = {
    family: {
        "description": text,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/OperationOutcome"}}},
    }
    for family, text in (
        ("4XX", "Refused: an OperationOutcome whose issues carry stable codes."),
        ("5XX", "Failed: an OperationOutcome; trying again later may help."),
    )
}
_RESOURCE: Final = {MEDIA_TYPE: {"schema": {"type": "object"}}}

Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9\-.]{1,64}$")]
Values = Annotated[list[str] | None, Query()]


async def _raw(request: Request) -> bytes:
    return await request.body()


def _spoken(request: Request) -> Version:
    """The FHIR version that the caller wants: of the body it sends, or of the answer."""
    header = "content-type" if request.method == "POST" else "accept"
    said = request.headers.get(header, "").lower()
    if "xml" in said and "json" not in said:
        raise UnsupportedVersionError(f"{header}: FHIR is spoken as JSON here")
    _, has, version = said.partition("fhirversion=")
    if not has:
        return Version.R4
    for known in Version:
        if version.strip(" \"'").startswith(known):
            return known
    raise UnsupportedVersionError(f"{header}: fhirVersion must be 4.0 or 5.0")


Raw = Annotated[bytes, Depends(_raw)]
Spoken = Annotated[Version, Depends(_spoken)]


def routes(doors: Doors, registry: Registry, journal: Journal) -> APIRouter:
    """The FHIR routes."""
    router = APIRouter(tags=["fhir"])
    _reading(router, doors, registry, journal)
    _writing(router, doors, registry, journal)
    return router


def _reading(router: APIRouter, doors: Doors, registry: Registry, journal: Journal) -> None:
    shown: dict[int | str, dict[str, Any]] = {
        200: {"description": "A FHIR resource.", "content": _RESOURCE},
        **_OUTCOME,
    }

    @doors.route(
        router,
        "GET",
        "/fhir/metadata",
        Principal.PUBLIC,
        response_class=Response,
        responses=shown,
    )
    def metadata(version: Spoken) -> Response:
        """The CapabilityStatement: what can be asked here."""
        return _fhir(statement(version, registry.now()), version)

    @doors.route(
        router,
        "GET",
        "/fhir/Consent/{id}",
        PATIENT,
        STAFF,
        SITE,
        response_class=Response,
        responses=shown,
    )
    def read(id: Id, caller: CallerDep, version: Spoken) -> Response:  # noqa: A002  (FHIR's own word)
        """One consent chain as it stands, with the newest signed event in it."""
        return _shown(_found(doors, registry, journal, caller, id), version, registry.now())

    @doors.route(
        router,
        "GET",
        "/fhir/Consent",
        PATIENT,
        STAFF,
        SITE,
        response_class=Response,
        responses=shown,
    )
    def search(  # noqa: PLR0913, PLR0917  (the parameters of the search)
        request: Request,
        caller: CallerDep,
        version: Spoken,
        status: Values = None,
        patient: Values = None,
        patient_identifier: Annotated[list[str] | None, Query(alias="patient:identifier")] = None,
        profile: Annotated[list[str] | None, Query(alias="_profile")] = None,
        period: Values = None,
        actor: Values = None,
        actor_identifier: Annotated[list[str] | None, Query(alias="actor:identifier")] = None,
        purpose: Values = None,
        resource_id: Annotated[list[str] | None, Query(alias="_id")] = None,
        count: Annotated[int, Query(alias="_count", ge=1, le=COUNT_MAX)] = COUNT,
        after: Annotated[str, Query(alias="_after", max_length=26)] = "",
        form: Annotated[str, Query(alias="_format", max_length=64)] = "json",
    ) -> Response:
        """Consents as a Bundle of type searchset, in pages; `next` leads on."""
        if form.partition(";")[0] not in _FORMATS:
            raise BadSearchError("_format: JSON only")
        # Read from the request itself: a parameter nobody declared must not be ignored.
        del status, patient, patient_identifier, profile, period, actor, actor_identifier
        del purpose, resource_id
        asked: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            if name not in _PAGING:
                asked.setdefault(name, []).append(value)
        tests = tests_of(asked, registry.now())
        with snapshot(doors.database) as connection:
            found = page(
                connection,
                journal,
                _visible(doors, registry, caller),
                tests,
                after=after,
                count=count,
            )
        return _fhir(
            _bundle(found.records, asked, (count, found.after), version, registry.now()), version
        )


def _writing(router: APIRouter, doors: Doors, registry: Registry, journal: Journal) -> None:
    body = {"requestBody": {"required": True, "content": _RESOURCE}}

    @doors.route(
        router,
        "POST",
        "/fhir/Consent",
        PATIENT,
        STAFF,
        SITE,
        response_class=Response,
        status_code=201,
        responses={201: {"description": "The consent.", "content": _RESOURCE}, **_OUTCOME},
        openapi_extra=body,
    )
    def create(raw: Raw, caller: CallerDep, version: Spoken) -> Response:
        """A consent whose sourceAttachment holds the grant or amendment the patient signed."""
        sent = parse_object(raw)
        envelope = envelope_in(sent, version)
        event = open_document(Consent, envelope, issuers=None, passkeys=registry.passkeys).subject
        may_act(doors, registry, caller, event.pid)
        _check_same(sent, event, version)
        registry.accept(envelope)
        record = _found(doors, registry, journal, caller, f"{event.pid}-{event.domain}")
        answer = _shown(record, version, registry.now(), status=201)
        answer.headers["Location"] = f"/fhir/Consent/{record.id}"
        return answer

    @doors.route(
        router,
        "POST",
        "/fhir/Consent/{id}/$revoke",
        PATIENT,
        STAFF,
        response_class=Response,
        responses={200: {"description": "The consent.", "content": _RESOURCE}, **_OUTCOME},
    )
    def revoke(id: Id, caller: CallerDep, version: Spoken) -> Response:  # noqa: A002  (FHIR's own word)
        """Withdraw: at once, without a key; the answer says when it is in force everywhere."""
        record = _found(doors, registry, journal, caller, id)
        result = registry.restrict(record.pid, "revoke", actor_of(caller))
        record = _found(doors, registry, journal, caller, id)
        by = {"url": EFFECTIVE_BY, "valueDateTime": moment(result["effective_by"])}
        return _shown(record, version, registry.now(), extension=by)


def _visible(doors: Doors, registry: Registry, caller: Caller) -> Visible:
    if caller.principal in {STAFF, SITE}:
        return Visible(site=caller.site or "")
    return Visible(pids={pid for pid, _ in mine(doors, registry, caller)})


def _found(
    doors: Doors, registry: Registry, journal: Journal, caller: Caller, resource_id: str
) -> Record:
    visible = _visible(doors, registry, caller)
    with snapshot(doors.database) as connection:
        record = one(connection, journal, visible, resource_id)
    if record is None:
        raise NotFoundError("Consent: not found")
    return record


def _check_same(sent: Mapping[str, Json], event: Consent, version: Version) -> None:
    """Return if the resource says what the patient signed, about the same record.

    Raises:
        UnreadableConsentError: It cannot be read.
        NotWhatIsSignedError: It says something else.
    """
    profiled = version is Version.R4 and mii.is_mii(sent)
    policy = mii.read(sent) if profiled else reader.read(sent, version)
    if event.policy is None or policy != event.policy:
        raise NotWhatIsSignedError(
            "Consent.provision: must say what the signed event says, which grants or amends; "
            "to withdraw use $revoke"
        )
    who = sent.get("patient" if version is Version.R4 else "subject")
    named = who.get("identifier") if isinstance(who, dict) else None
    if not isinstance(named, dict) or (named.get("system"), named.get("value")) != (PID, event.pid):
        raise NotWhatIsSignedError("Consent.patient: must be the record of the signed event")


def _bundle(
    records: Sequence[Record],
    asked: Mapping[str, Sequence[str]],
    paging: tuple[int, str | None],
    version: Version,
    now: int,
) -> dict[str, Json]:
    count, after = paging
    plain = [(name, value) for name, values in asked.items() for value in values]
    links = [{"relation": "self", "url": _url([*plain, ("_count", str(count))])}]
    if after is not None:
        more = [*plain, ("_count", str(count)), ("_after", after)]
        links.append({"relation": "next", "url": _url(more)})
    entries = [
        {
            "fullUrl": f"urn:coop:consent:{record.id}",
            "resource": resource(record, version, now),
            "search": {"mode": "match"},
        }
        for record in records
    ]
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "link": links,
        **({"entry": entries} if entries else {}),
    }


def _url(parameters: Sequence[tuple[str, str]]) -> str:
    return f"/fhir/Consent?{urlencode(parameters)}"


def _shown(
    record: Record,
    version: Version,
    now: int,
    *,
    status: int = 200,
    extension: dict[str, Any] | None = None,
) -> Response:
    made: dict[str, Any] = resource(record, version, now)
    if extension is not None:
        made["extension"] = [*made["extension"], extension]
    answer = _fhir(made, version, status=status)
    answer.headers["ETag"] = f'W/"{record.sequence}"'
    return answer


def _fhir(value: Mapping[str, Json], version: Version, *, status: int = 200) -> Response:
    return Response(
        orjson.dumps(value), status, media_type=f"{MEDIA_TYPE}; fhirVersion={version.value}"
    )
