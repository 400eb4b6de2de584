"""Study files: YAML a researcher writes by hand, read into the integers of a signed study.

Names and nesting are those of `coop.documents.study.Study`; units are dropped and decimals are
written plainly (`epsilon: 0.5`, `fee_point: 0.01`, `expires: 2030-01-01`). `study.schema.json`
holds the form; every error names its field. No number ever passes through a float.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, DecimalException
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import orjson
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError as SchemaError
from pydantic import ValidationError

from coop.canonical import INTEGER_MAX, sha256
from coop.documents.study import MICRO, NANO, PICO, Study
from coop.errors import InvalidInputError, NotFoundError

_BYTES_MAX: Final = 262_144  # as long as the longest signed document
_DOCUMENT_BYTES_MAX: Final = 100_000_000  # a scanned ethics vote
_DECIMAL: Final = re.compile(r"-?[0-9]{1,16}(\.[0-9]{1,12})?([eE]-?[0-9]{1,2})?")
_UNITS: Final[Mapping[str, Mapping[str, tuple[str, int]]]] = {
    # part: {name in the file: (member of the signed study, units in one)}
    "": {"fee_point": ("fee_point_nano", NANO), "fee_cohort": ("fee_cohort_nano", NANO)},
    "feature": {
        "center": ("center_micro", MICRO),
        "scale": ("scale_micro", MICRO),
        "clip": ("clip_micro", MICRO),
        "gain": ("gain_micro", MICRO),
    },
    "source": {"low": ("low_micro", MICRO), "high": ("high_micro", MICRO)},
    "label": {"horizon": ("horizon_micro", MICRO)},
    "recipe": {
        "learning_rate": ("learning_rate_micro", MICRO),
        "clip": ("clip_micro", MICRO),
        "sampling": ("sampling_micro", MICRO),
        "noise": ("noise_micro", MICRO),
    },
    "evaluation": {"floor": ("floor_micro", MICRO)},
    "budget": {
        "epsilon": ("epsilon_micro", MICRO),
        "delta": ("delta_pico", PICO),
        "cohort_rho": ("cohort_rho_nano", NANO),
    },
}


class StudyFileError(InvalidInputError):
    """The study file is not one; the message names the field and what it must be."""

    code = "study-file.invalid"


def load_study(path: Path) -> dict[str, Any]:
    """The members of the study in `path`, ready for `Study.model_validate`.

    Steps: (1) read YAML without floats, dates or duplicate names; (2) check its form against
    `study.schema.json`; (3) turn decimals and dates into integers, exactly; (4) check the result as
    the signed study it will be.

    Raises:
        NotFoundError: There is no such file.
        StudyFileError: Any step fails; the field is named.
    """
    if not path.is_file():
        raise NotFoundError(f"study file {path} is missing")
    # (1)
    if path.stat().st_size > _BYTES_MAX:
        raise StudyFileError(f"file: longer than {_BYTES_MAX} bytes")
    try:
        written = _PlainLoader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise StudyFileError(f"file: not YAML: {' '.join(str(error).split())[:300]}") from error
    # (2)
    _check_form(written)
    # (3)
    study = _in_units(written, folder=path.parent)
    # (4)
    try:
        Study.model_validate(study)
    except ValidationError as error:
        raise StudyFileError(_in_words_of_the_file(error)) from error
    return study


def schema() -> dict[str, Any]:
    """The JSON Schema of study files."""
    text = (Path(__file__).parent / "study.schema.json").read_bytes()
    loaded: dict[str, Any] = orjson.loads(text)
    return loaded


class _PlainLoader(yaml.SafeLoader):
    """YAML in which only whole numbers, true, false and null are not text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  (the library's signature)
        names = [key.value for key, _value in node.value]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise yaml.YAMLError(f"{min(twice)} stands twice")
        return super().construct_mapping(node, deep)


def _without_surprises() -> None:
    # 0.1 must stay the text "0.1", "no" a word, 0o17 no number, and `<<` no merge.
    _PlainLoader.yaml_implicit_resolvers = {}
    for tag, pattern, first in (
        ("tag:yaml.org,2002:int", r"-?(0|[1-9][0-9]*)", "-0123456789"),
        ("tag:yaml.org,2002:bool", r"true|false", "tf"),
        ("tag:yaml.org,2002:null", r"null|~|", ["n", "~", ""]),
    ):
        _PlainLoader.add_implicit_resolver(tag, re.compile(rf"^(?:{pattern})$"), list(first))


_without_surprises()


def _check_form(written: object) -> None:
    errors = sorted(Draft202012Validator(schema()).iter_errors(written), key=lambda e: e.json_path)
    if errors:
        error = _deepest(errors[0])
        raise StudyFileError(f"{_place(error.absolute_path)}: {_said(error)}")


def _deepest(error: SchemaError) -> SchemaError:
    """The most telling error below a choice between forms: the one that got furthest."""
    while error.context:
        error = max(error.context, key=lambda below: len(below.absolute_path))
    return error


def _said(error: SchemaError) -> str:
    form = error.schema
    if isinstance(form, Mapping) and form.get("$comment") == "decimal":
        return f"{str(error.instance)[:40]!r} is not a plain decimal number"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = [str(name) for name in form.get("properties", {})]  # type: ignore[union-attr]
        return _unexpected([str(name) for name in error.instance], known)
    return error.message[:300]


def _unexpected(written: Sequence[str], known: Sequence[str]) -> str:
    """The names that do not belong here, each with the one it may have been meant as."""
    said = []
    for name in written:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            said.append(
                f"{name[:60]!r} is unknown" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return "; ".join(said)[:300]


def _in_words_of_the_file(error: ValidationError) -> str:
    """The first complaint about the signed study, with the name the field has in the file."""
    complaints = error.errors()
    # A feature is tried as each kind: only the complaints of its own kind say anything.
    others = {one["loc"][:-1] for one in complaints if one["loc"][-1:] == ("kind",)}
    telling = [one for one in complaints if not any(_below(one["loc"], loc) for loc in others)]
    first = (telling or complaints)[0]
    members = {member: name for units in _UNITS.values() for name, (member, _) in units.items()}
    place = [members.get(str(part), part) for part in first["loc"] if not str(part)[:1].isupper()]
    return f"{_place(place)}: {first['msg']}"


def _below(place: tuple[int | str, ...], above: tuple[int | str, ...]) -> bool:
    return place[: len(above)] == above


def _in_units(written: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    study = _part(written, "", "")
    schema_part = written["features"]
    study["features"] = {
        **schema_part,
        "features": [
            _sourced(
                _part(feature, "feature", f"features.features.{position}."),
                f"features.features.{position}.",
            )
            for position, feature in enumerate(schema_part["features"])
        ],
    }
    study["label"] = _sourced(_part(written["label"], "label", "label."), "label.")
    if "intervals" in study["label"]:
        study["label"]["intervals_micro"] = [
            _whole(bound, MICRO, f"label.intervals.{position}")
            for position, bound in enumerate(study["label"].pop("intervals"))
        ]
    if "index" in written:
        study["index"] = _index(written["index"])
    for name in ("recipe", "budget", "evaluation"):
        study[name] = _part(written[name], name, f"{name}.")
    study["expires"] = _time(written["expires"], "expires")
    if "ethics_document" in study:
        study["ethics_sha256"] = _digest_of(folder / study.pop("ethics_document"))
    return study


def _part(written: Mapping[str, Any], part: str, where: str) -> dict[str, Any]:
    units = _UNITS[part]
    read: dict[str, Any] = {}
    for name, value in written.items():
        if name in units:
            member, scale = units[name]
            read[member] = _whole(value, scale, where + name)
        else:
            read[name] = value
    return read


def _sourced(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A feature or the label with its source, if it has one, as it will be signed."""
    if "source" not in part:
        return {**part}
    source = _part(part["source"], "source", f"{where}source.")
    if "codes" in source:
        source["codes"] = _codes(source["codes"])
    if "values" in source:
        source["values"] = {name: _codes(codes) for name, codes in source["values"].items()}
    return {**part, "source": source}


def _index(written: Mapping[str, Any]) -> dict[str, Any]:
    index = {**written}
    if "date" in index:
        index["at"] = _time(index.pop("date"), "index.date")
    if "codes" in index:
        index["codes"] = _codes(index["codes"])
    return index


def _codes(written: Mapping[str, list[int | str]]) -> dict[str, list[str]]:
    """Codes are text, also those that look like numbers (SNOMED, OMOP concepts)."""
    return {system: [str(code) for code in codes] for system, codes in written.items()}


def _whole(value: object, scale: int, where: str) -> int:
    text = str(value)
    try:
        exact = Decimal(text) * scale if _DECIMAL.fullmatch(text) else None
    except DecimalException:
        exact = None
    if exact is None or exact != exact.to_integral_value():
        places = len(str(scale)) - 1
        raise StudyFileError(f"{where}: must be a decimal number of at most {places} places")
    if abs(exact) > INTEGER_MAX:
        raise StudyFileError(f"{where}: is too large")
    return int(exact)


def _time(value: int | str, where: str) -> int:
    if isinstance(value, int):
        return value
    try:
        return int(datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise StudyFileError(f"{where}: must be a date like 2030-01-01 (UTC)") from error


def _digest_of(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _DOCUMENT_BYTES_MAX:
        raise StudyFileError(f"ethics_document: {path.name} is missing or longer than 100 MB")
    return sha256(path.read_bytes()).hex()


def _place(parts: Iterable[object]) -> str:
    return ".".join(str(part) for part in parts) or "file"
