"""Searching consents as FHIR does: every parameter must match, a comma means either.

Core: pure, no I/O.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from consent.fhir import words
from consent.fhir.record import Record, status
from consent.fhir.refusals import BadSearchError
from consent.fhir.times import Span, span_of
from consent.policy import walk
from consent.purposes import is_disease
from coop.documents.provision import Provision

VALUES_MAX: Final = 50
_TEXT_MAX: Final = 400
PARAMETERS: Final[Mapping[str, tuple[str, str]]] = {
    "_id": ("token", "The resource's id."),
    "status": ("token", "active or inactive."),
    "patient": ("reference", "The record's pid; also as patient:identifier."),
    "_profile": ("uri", "The cooperative's own profile."),
    "period": ("date", "From when to when the policy permits anything at all."),
    "actor": ("reference", "A study, an organisation or `commercial`, named in a rule."),
    "purpose": ("token", "A DUO or MONDO code, named in a rule."),
}
"""What a capability statement says of the parameters: type and meaning."""
_MONDO: Final = len("MONDO:0000000")
_STATES: Final = "http://hl7.org/fhir/consent-state-codes"

Test = Callable[[Record], bool]


def tests_of(asked: Mapping[str, Sequence[str]], now: int) -> list[Test]:
    """What a record must pass to be found.

    Args:
        asked: Values by parameter; each value may hold alternatives.
        now: UTC seconds, for the status.

    Raises:
        BadSearchError: A parameter is unknown or has no such value.
    """
    unknown = sorted(set(asked) - set(_MAKERS))
    if unknown:
        known = ", ".join(sorted(_MAKERS))
        raise BadSearchError(f"{unknown[0][:40]}: not a parameter; there are {known}")
    found = []
    for name, values in asked.items():
        if len(values) > VALUES_MAX or any(len(value) > _TEXT_MAX for value in values):
            raise BadSearchError(f"{name}: too many or too long values")
        found += [_MAKERS[name](value.split(","), now) for value in values]
    return found


def permitted_span(record: Record) -> Span | None:
    """From when to when a record's policy permits anything; None if nothing."""
    policy = record.policy
    if policy is None:
        return None
    root = policy.provision
    permits = [part for _, _, part in walk(root) if part.type == "permit"]
    starts = [max(part.start, root.start) for part in permits]
    ends = [min(part.end, root.end) for part in permits]
    return (min(starts), max(ends)) if permits else None


def _ids(values: Collection[str], _now: int) -> Test:
    return lambda record: record.id in values


def _statuses(values: Collection[str], now: int) -> Test:
    codes = {_code(value, _STATES) for value in values}
    return lambda record: status(record, now) in codes


def _patients(values: Collection[str], _now: int) -> Test:
    pids = {value.removeprefix("Patient/") for value in values}
    return lambda record: record.pid in pids


def _patient_ids(values: Collection[str], _now: int) -> Test:
    pids = {_code(value, words.PID) for value in values}
    return lambda record: record.pid in pids


def _profiles(values: Collection[str], _now: int) -> Test:
    return lambda _record: words.PROFILE in values


def _actors(values: Collection[str], _now: int) -> Test:
    names = {_code(value, words.ACTOR) for value in values}
    return lambda record: any(names & set(part.actors) for part in _parts(record))


def _purposes(values: Collection[str], _now: int) -> Test:
    codes = {_code(v, words.MONDO if is_disease(v[-_MONDO:]) else words.DUO) for v in values}
    return lambda record: any(codes & set(part.purposes) for part in _parts(record))


def _periods(values: Sequence[str], _now: int) -> Test:
    tests = [_period(value) for value in values]

    def test(record: Record) -> bool:
        span = permitted_span(record)
        return span is not None and any(one(span) for one in tests)

    return test


def _period(value: str) -> Callable[[Span], bool]:
    prefix, text = (value[:2], value[2:]) if value[:2] in _COMPARED else ("eq", value)
    asked = span_of(text)
    if asked is None:
        raise BadSearchError("period: must be a date, with eq, ne, gt, lt, ge, le, sa, eb or ap")
    first, last = asked
    return lambda span: _COMPARED[prefix](span[0], span[1], first, last)


_COMPARED: Final[Mapping[str, Callable[[int, int, int, int], bool]]] = {
    # (start, end) of the resource, then of the value; both half-open.
    "eq": lambda start, end, first, last: first <= start and end <= last,
    "ne": lambda start, end, first, last: not (first <= start and end <= last),
    "gt": lambda _start, end, _first, last: end > last,
    "lt": lambda start, _end, first, _last: start < first,
    "ge": lambda start, end, first, last: end > last or (first <= start and end <= last),
    "le": lambda start, end, first, last: start < first or (first <= start and end <= last),
    "sa": lambda start, _end, _first, last: start >= last,
    "eb": lambda _start, end, first, _last: end <= first,
    "ap": lambda start, end, first, last: start < last and first < end,
}
_MAKERS: Final[Mapping[str, Callable[[Sequence[str], int], Test]]] = {
    "_id": _ids,
    "status": _statuses,
    "patient": _patients,
    "patient:identifier": _patient_ids,
    "_profile": _profiles,
    "period": _periods,
    "actor:identifier": _actors,
    "actor": _actors,
    "purpose": _purposes,
}


def _parts(record: Record) -> list[Provision]:
    policy = record.policy
    return [] if policy is None else [part for _, _, part in walk(policy.provision)]


def _code(value: str, of_system: str) -> str | None:
    """The code of a token; None, which matches nothing, if it is of another system."""
    system, bar, code = value.partition("|")
    if not bar:
        return value
    return code if system == of_system else None
