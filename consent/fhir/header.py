"""What a FHIR Consent says about itself outside its rules: is it hers, in force, for research?

Core: pure, no I/O.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal, cast

from consent.fhir import words
from consent.fhir.elements import Element
from consent.fhir.refusals import Why
from consent.fhir.words import Version
from coop.documents.provision import TIME_MAX

Type = Literal["permit", "deny"]
OPPOSITE: Final[Mapping[Type, Type]] = {"permit": "deny", "deny": "permit"}
CONDITIONS: Final = ("period", "actor", "action", "purpose", "code", "dataPeriod")

_R4: Final = (
    *("resourceType", "id", "meta", "language", "text", "contained", "extension", "identifier"),
    *("status", "scope", "category", "patient", "dateTime", "performer", "organization"),
    *("sourceAttachment", "sourceReference", "policy", "policyRule", "verification", "provision"),
    "modifierExtension",
)
_R5: Final = (
    *("resourceType", "id", "meta", "language", "text", "contained", "extension", "identifier"),
    *("status", "category", "subject", "date", "period", "grantor", "manager", "controller"),
    *("sourceAttachment", "sourceReference", "regulatoryBasis", "policyBasis", "policyText"),
    *("verification", "decision", "provision", "modifierExtension"),
)
_LIMITS: Final = {words.EPSILON_CAP: "epsilon_cap_micro", words.MIN_COHORT: "min_cohort"}


def header(
    root: Element,
    version: Version,
    *,
    policies: Callable[[str], bool] = lambda uri: uri == words.POLICY,
    categories: Collection[tuple[str, str]] = (),
) -> None:
    """Note everything about the consent itself, outside its rules, that refuses it.

    Args:
        root: The resource.
        version: Which FHIR.
        policies: Whether rules written elsewhere are known here.
        categories: Categories of a profile, beside the general ones.
    """
    root.only(*(_R4 if version is Version.R4 else _R5), unsupported={"grantee"})
    for contained in root.parts("contained"):
        contained.refuse(Why.UNSUPPORTED, "cannot be kept here")
    for meta in _single(root, "meta"):
        meta.only("id", "versionId", "lastUpdated", "source", "profile", "tag", "extension")
    if root.text("status") != "active":
        root.refuse(Why.NOT_IN_FORCE, "must be active", "status")
    _categories(root, version, {*words.CATEGORIES, *categories})
    who, by = ("patient", "performer") if version is Version.R4 else ("subject", "grantor")
    patient = _reference(root.part(who))
    if patient is None:
        root.refuse(Why.INVALID, "must name the patient", who)
    for actor in root.parts(by):
        if _reference(actor) != patient:
            actor.refuse(Why.REPRESENTATIVE, "must be the patient herself")
    _basis(root, version, policies)


def base_rule(root: Element, *also: str) -> Type | None:
    """R4: the base rule in `policyRule`; None if it states none by a code."""
    rule = root.part("policyRule")
    if rule is None:
        return None
    rule.only("id", "coding", "text", *also)
    found: set[Type] = set()
    for system, code in rule.codings():
        base = words.BASE_RULES.get(code) if system == words.ACT_CODE else None
        if base is None:
            rule.refuse(Why.UNKNOWN_CODE, "must be OPTIN or OPTOUT")
        else:
            found.add(cast("Type", base))
    # A profile that allows more in it says there which form was signed; its rules stand elsewhere.
    if not also and rule.has("text") and not rule.codings():
        rule.refuse(Why.UNKNOWN_CODE, "says a rule in words only, which nobody here can obey")
    if len(found) > 1:
        rule.refuse(Why.CONTRADICTION, "is both OPTIN and OPTOUT")
    return min(found, default=None)


def root_type(root: Element, rule: Element | None, *also: str) -> Type | None:
    """R4: the type of the root rule, said once or twice and never two ways.

    Args:
        root: The resource.
        rule: Its provision.
        also: Further members that a profile allows in `policyRule`.
    """
    base = base_rule(root, *also)
    own = type_of(rule) if rule is not None else None
    if own is not None and base is not None and own != base:
        root.refuse(Why.CONTRADICTION, "its type is not that of the policyRule", "provision.type")
    if own is not None:
        return own
    if base is None:
        root.refuse(Why.MISSING_BASE_RULE, "must be permit or deny", "provision.type")
        return None
    if rule is not None and any(rule.has(name) for name in CONDITIONS):
        rule.refuse(Why.UNTYPED_ROOT, "has conditions and no type: say which it is", "type")
        return None
    return base


def type_of(element: Element) -> Type | None:
    """R4: what a rule says its type is; None if it says none."""
    if not element.has("type"):
        return None
    said = element.text("type")
    if said in OPPOSITE:
        return cast("Type", said)
    element.refuse(Why.INVALID, "must be permit or deny", "type")
    return None


def limits_of(root: Element) -> dict[str, int]:
    """Her own limits: members of a policy that stand beside its rules."""
    limits: dict[str, int] = {}
    for extension in root.parts("modifierExtension"):
        name = _LIMITS.get(extension.text("url") or "")
        if name is None:
            extension.refuse(Why.UNKNOWN_MODIFIER, "not understood here")
            continue
        extension.only("id", "url", "valueString")
        text = extension.text("valueString") or ""
        whole = text.isascii() and text.isdigit() and len(text) <= len(str(TIME_MAX))
        if not whole or name in limits:
            extension.refuse(Why.INVALID, "must be a whole number, once", "valueString")
            continue
        limits[name] = int(text)
    return limits


def _basis(root: Element, version: Version, policies: Callable[[str], bool]) -> None:
    for verification in root.parts("verification"):
        if verification.flag("verified") is not True:
            verification.refuse(Why.NOT_VERIFIED, "must be true", "verified")
    for part in root.parts("policy") if version is Version.R4 else _single(root, "policyBasis"):
        uri = part.text("uri" if version is Version.R4 else "url")
        if uri is None or not policies(uri):
            part.refuse(Why.OUTSIDE_POLICY, "refers to rules that are not known here")
    for part in root.parts("policyText"):
        part.refuse(Why.OUTSIDE_POLICY, "refers to rules that are not known here")


def _categories(root: Element, version: Version, known: Collection[tuple[str, str]]) -> None:
    codings = [coding for part in root.parts("category") for coding in part.codings()]
    if any(coding not in known for coding in codings):
        root.refuse(Why.UNKNOWN_CODE, "may be a restriction not understood here", "category")
    if version is Version.R5:
        if (words.CATEGORY, words.RESEARCH) not in codings:
            root.refuse(Why.NOT_RESEARCH, "must say research", "category")
        return
    scope = root.part("scope")
    if scope is None or scope.codings() != [(words.SCOPE, words.RESEARCH)]:
        root.refuse(Why.NOT_RESEARCH, "must be research", "scope")


def _reference(element: Element | None) -> tuple[str, str] | None:
    """What a Reference points to: its identifier, or its literal reference."""
    if element is None:
        return None
    identifier = element.part("identifier")
    if identifier is not None:
        return identifier.text("system") or "", identifier.text("value") or ""
    literal = element.text("reference")
    return ("", literal) if literal else None


def _single(root: Element, name: str) -> list[Element]:
    part = root.part(name)
    return [part] if part is not None else []
