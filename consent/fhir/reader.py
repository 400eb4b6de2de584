"""FHIR Consent to policy, strictly: what is not clear is refused, with every reason at once.

Nothing is guessed and no code is dropped: an empty list of codes means "any", so leaving out a code
that is not understood would turn a narrow rule into a wide one. Rules get explicit types: in R4
each names its own, in R5 each level is the opposite of the one above.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from consent.fhir import times, words
from consent.fhir.elements import Element
from consent.fhir.header import OPPOSITE, Type, header, limits_of, root_type, type_of
from consent.fhir.refusals import Problem, UnreadableConsentError, Why
from consent.fhir.words import Version
from consent.policy import PolicyError, check
from consent.purposes import HMB, is_disease
from coop.canonical import Json
from coop.documents.provision import TIME_MAX, Policy, Provision

DEPTH_MAX: Final = 12  # R5 writes the five levels of a policy as eleven at most
RULES_MAX: Final = 512

_RULE: Final = ("id", "extension", "period", "actor", "action", "purpose", "code", "dataPeriod")
_KEPT_BY_NOBODY: Final = {
    Version.R4: frozenset({"securityLabel", "class", "data"}),
    Version.R5: frozenset({"securityLabel", "documentType", "resourceType", "data", "expression"}),
}


class _Rules:
    """Reads provisions; counts them, so that a bomb is refused and not walked."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._left = RULES_MAX

    def rule(self, element: Element, kind: Type, depth: int = 0) -> Provision | None:
        """The provision in `element`; None if something in it is wrong."""
        self._left -= 1
        if depth > DEPTH_MAX or self._left < 0:
            element.refuse(Why.INVALID, "too many rules, or nested too deeply")
            return None
        own = ("type",) if self._version is Version.R4 else ()
        element.only(*_RULE, *own, "provision", unsupported=_KEPT_BY_NOBODY[self._version])
        children = tuple(
            child
            for part in element.parts("provision")
            if (child := self._child(part, kind, depth + 1)) is not None
        )
        return _made(element, kind, children)

    def _child(self, element: Element, above: Type, depth: int) -> Provision | None:
        if self._version is Version.R5:
            marks = _extensions(element, words.FLIP)
            return self.exception(element, OPPOSITE[above], marks, depth)
        kind = type_of(element)
        if kind is None:
            element.refuse(Why.UNTYPED_RULE, "must be permit or deny", "type")
        _extensions(element)
        return self.rule(element, kind or "deny", depth)

    def exception(
        self, element: Element, kind: Type, marks: set[str], depth: int
    ) -> Provision | None:
        """R5: a level marked as a mere flip stands for the one rule below it."""
        read = self.rule(element, kind, depth)
        if words.FLIP not in marks or read is None:
            return read
        only = read.children[0] if len(read.children) == 1 else None
        if only is None or _conditions(only) != _conditions(read):
            element.refuse(Why.CONTRADICTION, "a flip must hold one rule, with its own conditions")
            return None
        return only


def read(resource: Mapping[str, Json], version: Version) -> Policy:
    """The policy that a FHIR Consent states.

    Raises:
        UnreadableConsentError: It is not clear, or not to be kept here; every reason is named.
    """
    found: list[Problem] = []
    root = Element(resource, "Consent", found)
    if resource.get("resourceType") != "Consent":
        root.refuse(Why.INVALID, "must be Consent", "resourceType")
        raise UnreadableConsentError(found)
    provision = _r4(root) if version is Version.R4 else _r5(root)
    limits = limits_of(root)
    if found or provision is None:
        raise UnreadableConsentError(found)
    return checked(provision, limits, root)


def checked(provision: Provision, limits: Mapping[str, int], root: Element) -> Policy:
    """The policy, if it is one that a machine can obey.

    Raises:
        UnreadableConsentError: It is not.
    """
    try:
        policy = Policy.model_validate({"provision": provision, **limits})
        check(policy)
    except (PolicyError, ValidationError) as error:
        said = error.message if isinstance(error, PolicyError) else "a value is out of range"
        problem = Problem(why=Why.INVALID, where=f"{root.path}.provision", message=said)
        raise UnreadableConsentError([problem]) from error
    return policy


def _r4(root: Element) -> Provision | None:
    header(root, Version.R4)
    rule = root.part("provision")
    kind = root_type(root, rule)
    if rule is None:
        return Provision(type=kind) if kind is not None else None
    _extensions(rule)
    return _Rules(Version.R4).rule(rule, kind or "deny")


def _r5(root: Element) -> Provision | None:
    header(root, Version.R5)
    decision = root.text("decision")
    if decision not in OPPOSITE:
        root.refuse(Why.MISSING_BASE_RULE, "must be permit or deny", "decision")
    kind: Type = "permit" if decision == "permit" else "deny"
    start, end = _period(root, "period", dates=False)
    rules = _Rules(Version.R5)
    marked: list[Provision] = []
    children: list[Provision] = []
    for part in root.parts("provision"):
        marks = _extensions(part, words.FLIP, words.ROOT)
        child = rules.exception(part, OPPOSITE[kind], marks, 1)
        if child is not None:
            (marked if words.ROOT in marks else children).append(child)
    if not marked:
        return Provision(type=kind, start=start, end=end, children=tuple(children))
    if children or len(marked) > 1 or kind != "deny" or root.has("period"):
        root.refuse(Why.CONTRADICTION, "a root rule must stand alone under deny", "provision")
        return None
    return marked[0]


def _made(element: Element, kind: Type, children: tuple[Provision, ...]) -> Provision | None:
    start, end = _period(element, "period", dates=False)
    data_start, data_end = _period(element, "dataPeriod", dates=True)
    values = {
        "type": kind,
        "start": start,
        "end": end,
        "data_start": data_start,
        "data_end": data_end,
        "actions": [_word(part, words.USE) for part in element.parts("action")],
        "purposes": [_purpose(part) for part in element.parts("purpose")],
        "classes": [_word(part, words.DATA_CLASS) for part in element.parts("code")],
        "actors": [_actor(part) for part in element.parts("actor")],
        "children": children,
    }
    try:
        return Provision.model_validate(values)
    except ValidationError:
        element.refuse(Why.INVALID, "holds more than a rule can")
        return None


def _word(concept: Element, system: str) -> str:
    """The code of ours in a CodeableConcept; its other codings are translations of it."""
    concept.only("id", "coding", "text")
    known = {code for found, code in concept.codings() if found == system and code}
    if len(known) != 1:
        why = Why.CONTRADICTION if known else Why.UNKNOWN_CODE
        concept.refuse(why, f"must hold one code of {system}")
    return min(known, default="")


def _purpose(coding: Element) -> str:
    coding.only("id", "system", "version", "code", "display", "userSelected")
    system, code = coding.coding()
    if (system == words.DUO and code.startswith("DUO:")) or (
        system == words.MONDO and is_disease(code)
    ):
        return code
    if system == words.ACT_REASON and code in words.PURPOSES:
        return words.PURPOSES[code]
    coding.refuse(Why.UNKNOWN_CODE, "must be a DUO or MONDO code, or HRESCH")
    return HMB


def _actor(actor: Element) -> str:
    actor.only("id", "role", "reference")
    reference = actor.part("reference")
    identifier = reference.part("identifier") if reference is not None else None
    if identifier is None or identifier.text("system") != words.ACTOR:
        actor.refuse(Why.UNKNOWN_ACTOR, f"must be an identifier of {words.ACTOR}", "reference")
        return ""
    identifier.only("id", "use", "system", "value")
    return identifier.text("value") or ""


def _period(element: Element, name: str, *, dates: bool) -> times.Span:
    part = element.part(name)
    return (0, TIME_MAX) if part is None else times.period(part, dates=dates)


def _extensions(element: Element, *known: str) -> set[str]:
    """The marks on a rule; an extension nobody knows is refused."""
    marks = set()
    for extension in element.parts("extension"):
        url = extension.text("url")
        if url in known and extension.flag("valueBoolean"):
            marks.add(url)
        else:
            extension.refuse(Why.UNKNOWN_ELEMENT, "an extension not understood here")
    return marks


def _conditions(provision: Provision) -> dict[str, object]:
    return provision.model_dump(exclude={"type", "children"})
