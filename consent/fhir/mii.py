"""The broad consent of the German Medical Informatics Initiative (MII), both ways.

Its root denies, and each rule below names codes of the MII's own policy system. One of them is
about what happens here: .8, scientific use of medical data; its period is when the rule is in
force. Which data it opens follows from others: .6 (collection) and .45 (data from before). All
codes are kept: those about samples, insurers or recontacting by clinics become rules about a kind
of data that no study here can name, so they open and close nothing and are written back unchanged.

    .8 permitted  ─▶  permit research in health, in its period, on data of the window
    window        =   [.6's period), from the beginning of time with .45; or before the consent

Core: pure, no I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from consent.fhir import times, words
from consent.fhir.elements import Element
from consent.fhir.header import Type, header, root_type, type_of
from consent.fhir.reader import checked
from consent.fhir.refusals import NotExpressibleError, Problem, UnreadableConsentError, Why
from consent.fhir.words import Version
from consent.fhir.writer import coding, concept
from consent.purposes import HMB, Use
from coop.canonical import Json
from coop.documents.provision import TIME_MAX, Policy, Provision

PROFILE: Final = (
    "https://www.medizininformatik-initiative.de/fhir/modul-consent/StructureDefinition/"
    "mii-pr-consent-einwilligung"
)
SYSTEM: Final = "urn:oid:2.16.840.1.113883.3.1937.777.24.5.3"
_CATEGORIES: Final = (
    "https://www.medizininformatik-initiative.de/fhir/modul-consent/CodeSystem/"
    "mii-cs-consent-consent_category"
)
CATEGORY: Final = (_CATEGORIES, "2.16.840.1.113883.3.1937.777.24.2.184")
DOCUMENTS: Final = frozenset(
    {1790, 4053, 2718, 2719, 1791, 2720, 2721, 2079, 4054, 2722, 2723, 4031, 4036, 4037, 4048}
)
"""Forms of the broad consent, its refusals, withdrawals and modules, for adults."""
OF_MINORS: Final = frozenset({3542, 3543, 3544})

_PREFIX: Final = "2.16.840.1.113883.3.1937.777.24.5.3."
_DOCUMENT: Final = "urn:oid:2.16.840.1.113883.3.1937.777.24.2."
_CODES: Final = frozenset(range(1, 67))
_GROUPS: Final = frozenset({1, 10, 14, 18, 24, 26, 30, 32, 35, 44, 48, 50, 54, 57, 59, 61, 63})
_USE, _COLLECT, _STORE, _BEFORE = 8, 6, 7, 45
_KEPT: Final = "mii:"
_RULE: Final = ("id", "type", "period", "code")
_ACTIONS: Final = (str(Use.TRAIN), str(Use.EVALUATE), str(Use.RELEASE), str(Use.INFER))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    kind: Type
    span: times.Span
    codes: tuple[int, ...]
    element: Element


def is_mii(resource: Mapping[str, Json]) -> bool:
    """Whether the resource says that it is of this profile."""
    meta = resource.get("meta")
    profiles = meta.get("profile") if isinstance(meta, dict) else None
    return isinstance(profiles, list) and any(
        isinstance(profile, str) and profile.partition("|")[0] == PROFILE for profile in profiles
    )


def read(resource: Mapping[str, Json]) -> Policy:
    """The policy that an MII consent states, of the R4 profile.

    Raises:
        UnreadableConsentError: It is not clear, or not to be kept here; every reason is named.
    """
    found: list[Problem] = []
    root = Element(resource, "Consent", found)
    header(root, Version.R4, policies=_is_document, categories=frozenset({CATEGORY}))
    _check_document(root)
    rule = root.part("provision")
    # An XACML copy of the rules may stand beside them; the rules are what is read.
    kind = root_type(root, rule, "extension")
    if rule is None or kind != "deny":
        root.refuse(Why.CONTRADICTION, "the profile's root rule denies", "provision.type")
        raise UnreadableConsentError(found)
    rule.only("id", "type", "period", "provision")
    span = _span(rule)
    parts = [_rule(part) for part in rule.parts("provision")]
    window = _window(root, parts, span)
    children = tuple(child for part in parts for child in _children(part, window))
    provision = Provision(type="deny", start=span[0], end=span[1], children=children[:64])
    if len(children) > 64:  # noqa: PLR2004  (what a provision holds)
        rule.refuse(Why.INVALID, "holds more rules than a policy can", "provision")
    if found:
        raise UnreadableConsentError(found)
    return checked(provision, {}, root)


def resource(policy: Policy, *, pid: str, site: str, at: int, document: int) -> dict[str, Json]:
    """The MII consent of a policy that has the profile's form.

    Args:
        policy: A denying root with two dates, below it rules about MII codes and their use.
        pid: The patient.
        site: Her hospital.
        at: When she signed, UTC seconds.
        document: The number of the form in the MII's list, as in 2079 for version 1.7.2.

    Raises:
        NotExpressibleError: The profile has no words for it.
    """
    root = policy.provision
    plain = Provision(type="deny", start=root.start, end=root.end, children=root.children)
    if plain != root or policy.epsilon_cap_micro is not None or policy.min_cohort is not None:
        raise NotExpressibleError("policy: the MII profile has no word for the patient's limits")
    if document not in DOCUMENTS:
        raise NotExpressibleError("document: not a form of the MII broad consent")
    rules = [_written(child) for child in root.children]
    made: dict[str, Json] = {
        "resourceType": "Consent",
        "meta": {"profile": [PROFILE]},
        "status": "active",
        "scope": concept(words.SCOPE, words.RESEARCH),
        "category": [concept(words.LOINC, "57016-8"), concept(*CATEGORY)],
        "patient": {"identifier": {"system": words.PID, "value": pid}},
        "dateTime": times.moment(at),
        "organization": [{"identifier": {"system": words.SITE, "value": site}}],
        "policy": [{"uri": f"{_DOCUMENT}{document}"}],
        "provision": {"type": "deny", "period": _dates(root), "provision": rules},
    }
    # Read back: what the window of the data follows from must be among the rules.
    if not rules or _read_back(made) != policy:
        raise NotExpressibleError("policy: its rules are not those of an MII consent")
    return made


def _read_back(made: Mapping[str, Json]) -> Policy | None:
    try:
        return read(made)
    except UnreadableConsentError:
        return None


def _is_document(uri: str) -> bool:
    number = uri.removeprefix(_DOCUMENT)
    return (
        uri.startswith(_DOCUMENT)
        and number.isascii()
        and number.isdigit()
        and int(number) in DOCUMENTS | OF_MINORS
    )


def _check_document(root: Element) -> None:
    numbers = {(part.text("uri") or "").removeprefix(_DOCUMENT) for part in root.parts("policy")}
    if not numbers:
        root.refuse(Why.OUTSIDE_POLICY, "must name the form that was signed", "policy")
    if numbers & {str(number) for number in OF_MINORS}:
        root.refuse(Why.REPRESENTATIVE, "a form for minors: her guardian signs here", "policy")


def _rule(element: Element) -> _Rule:
    element.only(*_RULE)
    kind = type_of(element)
    if kind is None:
        element.refuse(Why.UNTYPED_RULE, "must be permit or deny", "type")
    codes = tuple(_code(part) for part in element.parts("code"))
    if not codes:
        element.refuse(Why.UNKNOWN_CODE, "must name what it is about", "code")
    return _Rule(kind=kind or "deny", span=_span(element), codes=codes, element=element)


def _code(element: Element) -> int:
    known = [
        int(code.removeprefix(_PREFIX))
        for system, code in element.codings()
        if system == SYSTEM and code.startswith(_PREFIX) and code.removeprefix(_PREFIX).isdecimal()
    ]
    if len(known) != 1 or known[0] not in _CODES:
        element.refuse(Why.UNKNOWN_CODE, "must be one code of the MII's policy system")
        return 0
    if known[0] in _GROUPS:
        element.refuse(Why.GROUP_CODE, "names a group: name the codes that are meant")
    return known[0]


def _span(element: Element) -> times.Span:
    part = element.part("period")
    if part is None or not part.has("start") or not part.has("end"):
        element.refuse(Why.TIME, "must have a start and an end", "period")
        return 0, TIME_MAX
    return times.period(part, dates=False)


def _window(root: Element, rules: Sequence[_Rule], whole: times.Span) -> times.Span | None:
    """Which data .8 opens, by their dates; None where it opens none."""
    if not any(rule.kind == "permit" and _USE in rule.codes for rule in rules):
        return None
    needed = (_COLLECT, _STORE, _BEFORE)
    if any(rule.kind == "deny" and set(rule.codes) & set(needed) for rule in rules):
        root.refuse(Why.CONTRADICTION, "use is permitted and what it needs is denied", "provision")
        return None
    if not any(rule.kind == "permit" and _STORE in rule.codes for rule in rules):
        root.refuse(Why.CONTRADICTION, "use is permitted and keeping (.7) is not", "provision")
        return None
    collected = [rule.span for rule in rules if _COLLECT in rule.codes]
    before = any(_BEFORE in rule.codes for rule in rules)
    if len(collected) > 1 or not (collected or before):
        root.refuse(Why.DATA_WINDOW, "must follow from one rule about .6, or from .45", "provision")
        return None
    start, end = collected[0] if collected else (0, whole[0])
    return 0 if before else start, end


def _children(rule: _Rule, window: times.Span | None) -> list[Provision]:
    start, end = rule.span
    found = []
    kept = tuple(f"{_KEPT}{code}" for code in rule.codes if code != _USE)
    if kept:
        found.append(Provision(type=rule.kind, start=start, end=end, classes=kept))
    if _USE in rule.codes and rule.kind == "deny":
        found.append(_use("deny", rule.span, (0, TIME_MAX)))
    elif _USE in rule.codes and window is not None:
        if window[0] >= window[1]:
            rule.element.refuse(Why.DATA_WINDOW, "opens no data at all")
            return found
        found.append(_use("permit", rule.span, window))
    return found


def _use(kind: Type, span: times.Span, window: times.Span) -> Provision:
    return Provision(
        type=kind,
        start=span[0],
        end=span[1],
        data_start=window[0],
        data_end=window[1],
        actions=_ACTIONS,
        purposes=(HMB,),
    )


def _written(provision: Provision) -> dict[str, Json]:
    span = (provision.start, provision.end)
    window = (provision.data_start, provision.data_end)
    if provision == _use(provision.type, span, window):
        codes = [_USE]
    else:
        codes = [_number(name) for name in provision.classes]
    concepts = [{"coding": [coding(SYSTEM, f"{_PREFIX}{code}")]} for code in codes]
    return {"type": provision.type, "period": _dates(provision), "code": concepts}


def _number(name: str) -> int:
    text = name.removeprefix(_KEPT)
    if not (name.startswith(_KEPT) and text.isascii() and text.isdigit()):
        raise NotExpressibleError("policy: a rule names data the MII profile has no word for")
    return int(text)


def _dates(provision: Provision) -> dict[str, Json]:
    period = times.written(provision.start, provision.end)
    if period is None or set(period) != {"start", "end"}:
        raise NotExpressibleError("policy: the MII profile needs a start and an end, before 10000")
    return period
