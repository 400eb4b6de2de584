"""A patient's decisions as other systems' receipts, made from what the registry proved to her."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from consent.chain import after_event
from consent.decide import Standing
from consent.fhir.receipts import dpv, kantara
from consent.fhir.record import Record, resource
from consent.fhir.refusals import NotExpressibleError
from consent.fhir.words import Version
from coop.canonical import Json
from coop.documents.consent import Consent, Notice
from coop.documents.provision import Policy
from coop.errors import InvalidInputError


def exports(
    form: str,
    events: Sequence[Mapping[str, Any]],
    standing: Mapping[str, Any],
    jurisdiction: str | None,
    now: int,
) -> dict[int, dict[str, Json] | None]:
    """Each event of a chain in another form, by its sequence; None where the form has no words.

    Args:
        form: `fhir` (R4), `fhir-r5`, `dpv` or `kantara`.
        events: The chain's history, oldest first, as the registry gives it.
        standing: How the chain stands: whose key, in whose custody.
        jurisdiction: Whose law applies.
        now: UTC seconds.
    """
    made: dict[int, dict[str, Json] | None] = {}
    writer = _writer(form, jurisdiction, now)
    policy: Policy | None = None
    notice: Notice | None = None
    held: Standing | None = None
    for event in events:
        document = event["proof"]["document"]
        said = Consent.model_validate(document["credentialSubject"])
        policy, notice = said.policy or policy, said.notice or notice
        state, objected = after_event(held, said.event)
        held = Standing(
            state=state,
            objected=objected,
            on_death=said.on_death or (held.on_death if held else "stop"),
            policy=policy,
            head_digest=event["digest"],
            sequence=said.sequence,
            log_index=event["log_index"],
        )
        record = Record(
            pid=said.pid,
            site=said.site,
            domain=said.domain,
            did=standing["did"],
            custody=standing["custody"],
            state=state,
            objected=objected,
            sequence=said.sequence,
            at=event["at"],
            event=said.event,
            head_sha256=event["digest"],
            log_index=event["log_index"],
            policy=policy,
            envelope=document,
        )
        made[said.sequence] = writer(record, notice)
    return made


def _writer(
    form: str, jurisdiction: str | None, now: int
) -> Callable[[Record, Notice | None], dict[str, Json] | None]:
    match form:
        case "fhir":
            return lambda record, _notice: resource(record, Version.R4, now)
        case "fhir-r5":
            return lambda record, _notice: resource(record, Version.R5, now)
        case "dpv":
            return lambda record, notice: dpv(record, now, notice=notice, jurisdiction=jurisdiction)
        case "kantara":
            if not jurisdiction:
                raise NotExpressibleError("--jurisdiction: a Kantara receipt must name one")
            return lambda record, notice: _kantara(record, notice, jurisdiction)
        case _:
            raise InvalidInputError("--format: must be fhir, fhir-r5, dpv or kantara")


def _kantara(record: Record, notice: Notice | None, jurisdiction: str) -> dict[str, Json] | None:
    try:
        return kantara(record, notice=notice, jurisdiction=jurisdiction)
    except NotExpressibleError:
        return None
