"""A hospital's own rules in Cedar, which can only forbid: read, checked, and asked.

What an overlay may see is the request: who asks for what, on which data, at what price. It never
sees a patient, so one answer serves a whole round, and a refusal says nothing about anybody. The
language, the schema and examples stand in docs/spec/overlay.md.

Closed in every doubt: a file that is not exactly a list of prohibitions is no overlay, and a rule
that cannot be evaluated forbids. (Cedar itself would skip it.)

Pure: no I/O. Cedar is loaded when an overlay is first read: a hospital without one needs no
Cedar.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import orjson

from consent.duo import asserted
from consent.purposes import DS, closure
from coop.documents.study import Study
from coop.errors import CoopError, InvalidInputError, Kind

if TYPE_CHECKING:
    import cedarpy

BYTES_MAX: Final = 65_536  # a hundred rules with their comments
SCHEMA: Final = """\
entity Organisation { commercial: Bool };
entity Study {
  version: Long,
  purposes: Set<String>,
  within: Set<String>,
  data_class: String,
  fields: Set<String>,
  people: Long,
  epsilon_micro: Long,
  ethics_reference: String,
};
action "train-federated", "evaluate", "infer-aggregate" appliesTo {
  principal: [Organisation],
  resource: [Study],
  context: { at: Long },
};
"""
_PERMIT_THE_REST: Final = "\npermit(principal, action, resource);\n"
_KEPT: Final = 16


class OverlaySyntaxError(InvalidInputError):
    """The overlay is not Cedar."""

    code = "overlay.syntax"
    kind = Kind.UNPROCESSABLE


class OverlayPermitsError(InvalidInputError):
    """The overlay holds something else than prohibitions."""

    code = "overlay.permits"
    kind = Kind.UNPROCESSABLE


class OverlaySchemaError(InvalidInputError):
    """The overlay speaks of actions or facts that do not exist."""

    code = "overlay.schema"
    kind = Kind.UNPROCESSABLE


class OverlayLibraryError(CoopError):
    """There is an overlay and no Cedar to read it with."""

    code = "overlay.no-cedar"
    kind = Kind.UNAVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an overlay may see of a request."""

    action: str
    at: int
    """UTC seconds."""
    study: Study


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Overlay:
    """Prohibitions that were read and found to be nothing else. Make it with `read`."""

    rules: Mapping[str, str]
    """By Cedar's own name of each rule, the name its author gave it."""
    _policies: "cedarpy.PolicySet"
    _schema: "cedarpy.Schema"


@lru_cache(maxsize=_KEPT)
def read(text: str) -> Overlay:
    """The overlay in a text.

    Steps: (1) Cedar can read it; (2) every rule forbids; (3) actions and facts are those of the
    schema, each with its type.

    Raises:
        OverlayLibraryError: Cedar is not installed.
        OverlaySyntaxError, OverlayPermitsError, OverlaySchemaError: (1), (2) or (3) fails.
    """
    try:
        import cedarpy  # noqa: PLC0415  (belongs to the node; a hub has none)
    except ImportError as error:
        raise OverlayLibraryError("cedarpy: install health-data-coop[node]") from error
    # (1)
    try:
        said = orjson.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise OverlaySyntaxError(f"overlay: {str(error)[:200]}") from error
    # (2)
    rules = said["staticPolicies"]
    if said["templates"] or any(rule["effect"] != "forbid" for rule in rules.values()):
        raise OverlayPermitsError("overlay: a hospital's own rules only forbid; take the rest out")
    # (3)
    schema = cedarpy.Schema.from_str(SCHEMA)
    checked = cedarpy.validate_policies(text, schema)
    if not checked.validation_passed:
        raise OverlaySchemaError(f"overlay: {str(checked.errors[0])[:200]}")
    return Overlay(
        rules={name: _named(name, rule) for name, rule in rules.items()},
        _policies=cedarpy.PolicySet.from_str(text + _PERMIT_THE_REST),
        _schema=schema,
    )


def forbidding(overlay: Overlay, facts: Facts) -> tuple[str, ...]:
    """The rules that forbid the request, and those that cannot be evaluated; empty if none."""
    import cedarpy  # noqa: PLC0415

    answer = cedarpy.is_authorized(
        {
            "principal": _uid("Organisation", facts.study.proposer),
            "action": _uid("Action", facts.action),
            "resource": _uid("Study", facts.study.study_id),
            "context": {"at": facts.at},
        },
        overlay._policies,  # noqa: SLF001
        orjson.dumps(_entities(facts.study)).decode(),
        overlay._schema,  # noqa: SLF001
    )
    failed = [f"cannot be evaluated: {error}" for error in answer.diagnostics.errors]
    if answer.allowed and not failed:
        return ()
    named = [overlay.rules[reason] for reason in answer.diagnostics.reasons if not answer.allowed]
    return (*named, *failed) or ("Cedar gave no reason",)


def _named(name: str, rule: Mapping[str, Mapping[str, str]]) -> str:
    """The rule's `@id`, or its place in the file, counted from one."""
    return rule.get("annotations", {}).get("id") or f"rule {int(name.removeprefix('policy')) + 1}"


def _entities(study: Study) -> list[dict[str, object]]:
    each = asserted(study.purpose, study.disease, tuple(study.further_purposes)).each
    fields = {
        *study.label.fields,
        study.evaluation.group_field,
        *(feature.name for feature in study.schema_.features),
        *study.cohort.number_fields,
        *study.cohort.category_fields,
    }
    return [
        {
            "uid": _uid("Organisation", study.proposer),
            "attrs": {"commercial": study.commercial},
            "parents": [],
        },
        {
            "uid": _uid("Study", study.study_id),
            "attrs": {
                "version": study.version,
                "purposes": sorted({str(kind) if code == DS else code for code, kind in each}),
                "within": sorted({code for one in each for code in closure(*one)}),
                "data_class": study.data_class,
                "fields": sorted(fields),
                "people": study.recipe.population,
                "epsilon_micro": study.budget.epsilon_micro,
                "ethics_reference": study.ethics_reference,
            },
            "parents": [],
        },
    ]


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}
