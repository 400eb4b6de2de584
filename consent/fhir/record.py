"""A consent chain as a whole FHIR resource, with the signed envelope in it.

    | chain                    | R4 and R5 status | extension `urn:coop:fhir:state` |
    |--------------------------|------------------|---------------------------------|
    | active                   | active           | active                          |
    | active, all periods over | inactive         | expired                         |
    | active, not counting yet | inactive         | waiting                         |
    | suspended                | inactive         | suspended                       |
    | any other                | inactive         | its name                        |
    | whatever, and objected   | inactive         | objected                        |

Core: pure, no I/O.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from consent import decide
from consent.decide import State
from consent.fhir import words
from consent.fhir.refusals import UnsignedConsentError
from consent.fhir.times import moment
from consent.fhir.words import Version
from consent.fhir.writer import coding, concept, rules
from coop.canonical import Json, NotCanonicalError, jcs, parse_object
from coop.documents.provision import TIME_MAX, Policy, Provision

ENVELOPE_BYTES_MAX: Final = 65_536  # a consent of 128 rules is about 30 kB
_HOW: Final = (
    "sourceAttachment: must hold the consent event that the patient's own key signed, as "
    f"contentType {words.ENVELOPE_TYPE} with base64 data; POST /v1/consents:draft gives it to sign"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the registry knows of one chain, at one instant."""

    pid: str
    site: str
    domain: str
    did: str
    custody: str
    state: State
    sequence: int
    at: int
    """UTC seconds of the newest event."""
    event: str
    head_sha256: str
    log_index: int
    policy: Policy | None
    envelope: Mapping[str, Json] | None
    """The newest signed event; None once erased."""
    starts_at: int = 0
    ends_at: int = TIME_MAX
    """Between which who gave the consent could give it (`consent.decide.Standing`)."""
    objected: bool = False

    @property
    def id(self) -> str:
        """The resource's id."""
        return f"{self.pid}-{self.domain}"


def state_at(record: Record, now: int) -> str:
    """The chain's state, `objected` whatever it is while she objects to all research."""
    if record.objected:
        return "objected"
    counts = record.starts_at, record.ends_at
    return decide.state_at(record.state, record.policy, counts, now)


def status(record: Record, now: int) -> str:
    """The resource's status, the same word in R4 and R5."""
    return "active" if state_at(record, now) == State.ACTIVE else "inactive"


def resource(record: Record, version: Version, now: int) -> dict[str, Json]:
    """The chain as a Consent resource."""
    shared: dict[str, Json] = {
        "resourceType": "Consent",
        "id": record.id,
        "meta": {
            "versionId": str(record.sequence),
            "lastUpdated": moment(record.at),
            "profile": [words.PROFILE],
        },
        "extension": [
            {
                "url": words.IN_STATE,
                "valueCoding": coding(words.STATE, state_at(record, now)),
            },
            {
                "url": words.CHAIN,
                "extension": [
                    {"url": "sequence", "valueString": str(record.sequence)},
                    {"url": "head", "valueString": record.head_sha256},
                    {"url": "log-index", "valueString": str(record.log_index)},
                ],
            },
        ],
        "status": status(record, now),
        "category": [concept(words.LOINC, "59284-0"), concept(words.CATEGORY, words.RESEARCH)],
    }
    policy = _in_force(record)
    who = {"identifier": {"system": words.PID, "value": record.pid}}
    site = [{"identifier": {"system": words.SITE, "value": record.site}}]
    attached = _attachment(record)
    own: dict[str, Json]
    if version is Version.R4:
        own = {
            "scope": concept(words.SCOPE, words.RESEARCH),
            "patient": who,
            "dateTime": moment(record.at),
            "organization": site,
            "policy": [{"uri": words.POLICY}],
            **({"sourceAttachment": attached} if attached else {}),
        }
    else:
        own = {
            "subject": who,
            "date": moment(record.at)[:10],
            "controller": site,
            "policyBasis": {"url": words.POLICY},
            **({"sourceAttachment": [attached]} if attached else {}),
        }
    return {**shared, **own, **rules(policy, version)}


def envelope_in(resource: Mapping[str, Json], version: Version) -> dict[str, Json]:
    """The signed event that a resource carries.

    Raises:
        UnsignedConsentError: It carries none, or not one that can be read.
    """
    held = resource.get("sourceAttachment")
    parts = held if version is Version.R5 and isinstance(held, list) else [held]
    found = [
        part
        for part in parts
        if isinstance(part, dict) and part.get("contentType") == words.ENVELOPE_TYPE
    ]
    if len(found) != 1:
        raise UnsignedConsentError(_HOW)
    data = found[0].get("data")
    if not isinstance(data, str) or len(data) > ENVELOPE_BYTES_MAX:
        raise UnsignedConsentError(_HOW)
    try:
        return parse_object(base64.b64decode(data, validate=True))
    except (binascii.Error, NotCanonicalError, UnicodeDecodeError) as error:
        raise UnsignedConsentError(_HOW) from error


def _in_force(record: Record) -> Policy:
    """The policy as long as it can count: a guardian's word ends with her office."""
    policy = record.policy or Policy(provision=Provision(type="deny"))
    root = policy.provision
    start, end = max(root.start, record.starts_at), min(root.end, record.ends_at)
    if start >= end or (start, end) == (root.start, root.end):
        return policy
    clipped = root.model_copy(update={"start": start, "end": end})
    return policy.model_copy(update={"provision": clipped})


def _attachment(record: Record) -> dict[str, Json] | None:
    if record.envelope is None:
        return None
    return {
        "contentType": words.ENVELOPE_TYPE,
        "data": base64.b64encode(jcs(dict(record.envelope))).decode(),
        "title": f"consent event {record.sequence}: {record.event}",
    }
