"""Open Inference Protocol v2, REST with JSON tensors: a codec that guesses nothing.

One tensor per feature, of shape `[rows]`: a number is FP64, a category BYTES, a flag BOOL. A
feature without a tensor is missing in every row; rows missing only here or there are listed in the
tensor's parameter `missing`, `"0 3 7"`. A value of another type, a shape that does not fit or a
name that stands twice is refused, never converted.

Core: pure, no I/O.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from coop.canonical import INTEGER_MAX
from coop.documents.study import CategoryFeature, Feature, FeatureSchema, FlagFeature, NumberFeature
from coop.errors import CoopError, InvalidInputError, Kind, broken

BODY_BYTES_MAX: Final = 8 * 1024 * 1024  # 10 000 rows of 30 features are 3 MB of JSON
ROWS_MAX: Final = 10_000
_RANK_MAX: Final = 8  # checked before any product of dimensions is formed
_TENSORS_MAX: Final = 512  # a schema has at most 256 features
_ID_CHARACTERS_MAX: Final = 128
_TEXT_CHARACTERS_MAX: Final = 1_000
_LENGTH_DIGITS_MAX: Final = 12  # int() refuses 4 300 digits with an error of its own

Value = float | str | bool
"""One value of one feature in one row."""


class BadTensorError(InvalidInputError):
    """The body is not the Open Inference Protocol request this model takes."""

    code = "oip.bad-request"


class UnsupportedEncodingError(InvalidInputError):
    """The body is compressed or binary; this server reads plain JSON."""

    code = "oip.unsupported-encoding"


class TooManyRowsError(CoopError):
    """More rows or bytes than one request may carry."""

    code = "oip.too-large"
    kind = Kind.TOO_LARGE


class Datatype(StrEnum):
    """The tensor types of a study's features."""

    NUMBER = "FP64"
    CATEGORY = "BYTES"
    FLAG = "BOOL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A well-formed request: so many rows, each a value by feature name (absent means missing)."""

    id: str | None
    rows: list[dict[str, Value]]


def datatype_of(feature: Feature) -> Datatype:
    """The tensor type that carries `feature`."""
    match feature:
        case NumberFeature():
            return Datatype.NUMBER
        case CategoryFeature():
            return Datatype.CATEGORY
        case FlagFeature():
            return Datatype.FLAG


def check_encoding(headers: Mapping[str, str], body_bytes: int) -> None:
    """Refuse what this server cannot read, with the client's own way out.

    Args:
        headers: With lower-case names.
        body_bytes: Length of the body.

    Raises:
        UnsupportedEncodingError: Compressed, not JSON, or followed by binary tensors.
        BadTensorError: `Inference-Header-Content-Length` is no length within the body.
    """
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedEncodingError("Content-Encoding: send the body uncompressed")
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    length = headers.get("inference-header-content-length")
    if length is not None:
        # `int()` also reads "+5", "1_0", " 10 " and other scripts' digits.
        plain = length.isascii() and length.isdigit() and len(length) <= _LENGTH_DIGITS_MAX
        if not plain or int(length) > body_bytes:
            raise BadTensorError("Inference-Header-Content-Length: must be a length in the body")
        if int(length) != body_bytes:
            raise UnsupportedEncodingError(
                "binary tensors are not supported yet; send JSON tensors (binary_data=False)"
            )
    elif kind not in ("application/json", ""):
        raise UnsupportedEncodingError("Content-Type: must be application/json")


def read(body: bytes, schema: FeatureSchema) -> Question:
    """The rows asked about.

    Steps: (1) bounded strict JSON; (2) an object of known members; (3) each tensor on its own;
    (4) all tensors together: known names, once each, equally many rows.

    Raises:
        BadTensorError: Any step fails; the message names the tensor.
        TooManyRowsError: Too many bytes or rows.
    """
    # (1)
    if len(body) > BODY_BYTES_MAX:
        raise TooManyRowsError(f"body: longer than {BODY_BYTES_MAX} bytes; send fewer rows")
    request = _object(_json(body), "body")
    # (2)
    _only(request, {"id", "parameters", "inputs", "outputs"}, "body")
    request_id = request.get("id")
    if request_id is not None and not _is_text(request_id, _ID_CHARACTERS_MAX):
        raise BadTensorError("id: must be a string of at most 128 characters")
    _check_parameters(request.get("parameters", {}), "parameters")
    _check_outputs(request.get("outputs"))
    tensors = request.get("inputs")
    if not isinstance(tensors, list) or not 0 < len(tensors) <= _TENSORS_MAX:
        raise BadTensorError("inputs: must be a list of tensors, one per feature")
    # (3), (4)
    features = {feature.name: feature for feature in schema.features}
    columns: dict[str, list[Value | None]] = {}
    for tensor in tensors:
        name, column = _column(_object(tensor, "inputs"), features)
        if name in columns:
            raise BadTensorError(f"inputs.{name}: stands twice")
        columns[name] = column
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise BadTensorError("inputs: all tensors must have equally many rows")
    rows = [
        {name: value for name, column in columns.items() if (value := column[row]) is not None}
        for row in range(lengths.pop())
    ]
    return Question(id=request_id if isinstance(request_id, str) else None, rows=rows)


def answer(
    model_id: str, version: str, question_id: str | None, risk: Sequence[float]
) -> dict[str, object]:
    """The response to a question whose rows have these risks.

    Raises:
        InvariantError: A risk is not finite.
    """
    if not all(math.isfinite(value) for value in risk):
        broken("a model's score is not finite")
    output = {"name": "risk", "datatype": "FP64", "shape": [len(risk)], "data": list(risk)}
    said: dict[str, object] = {
        "model_name": model_id,
        "model_version": version,
        "outputs": [output],
    }
    return said if question_id is None else {**said, "id": question_id}


def metadata(model_id: str, version: str, schema: FeatureSchema) -> dict[str, object]:
    """The protocol's model metadata: what to send and what comes back."""
    return {
        "name": model_id,
        "versions": [version],
        "platform": "onnx_onnxruntime",
        "inputs": [
            {"name": feature.name, "datatype": datatype_of(feature).value, "shape": [-1]}
            for feature in schema.features
        ],
        "outputs": [{"name": "risk", "datatype": "FP64", "shape": [-1]}],
    }


def _json(body: bytes) -> object:
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        # RecursionError: nested some thousand levels deep. UnicodeDecodeError is a ValueError.
        raise BadTensorError("body: not strict JSON") from error


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name stands twice")
    return members


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadTensorError(f"{where}: must hold JSON objects")
    return value


def _only(value: Mapping[str, object], known: set[str], where: str) -> None:
    if extra := sorted(set(value) - known):
        raise BadTensorError(f"{where}: unknown member {_shown(extra[0])}")


def _is_text(value: object, characters_max: int) -> bool:
    if not isinstance(value, str) or len(value) > characters_max:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate could not be sent back
        return False
    return True


def _shown(value: object) -> str:
    return ascii(value)[:80]


def _check_parameters(value: object, where: str) -> dict[str, object]:
    parameters = _object(value, where)
    for name, content in parameters.items():
        if not isinstance(content, str | int | float | bool):
            raise BadTensorError(f"{where}: {_shown(name)} must be a string, number or boolean")
    return parameters


def _check_outputs(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        raise BadTensorError("outputs: must be a list")
    names = []
    for item in value:
        output = _object(item, "outputs")
        _only(output, {"name", "parameters"}, "outputs")
        _check_parameters(output.get("parameters", {}), "outputs")
        names.append(output.get("name"))
    # A wish for binary output is answered in JSON: the extension is not advertised in `/v2`.
    if names not in ([], ["risk"]):
        raise BadTensorError("outputs: the only output is risk, once")


def _column(
    tensor: dict[str, object], features: Mapping[str, Feature]
) -> tuple[str, list[Value | None]]:
    name = tensor.get("name")
    feature = features.get(name) if isinstance(name, str) else None
    if feature is None:
        raise BadTensorError(f"inputs: {_shown(name)} is not a feature of this model")
    where = f"inputs.{feature.name}"
    _only(tensor, {"name", "shape", "datatype", "parameters", "data"}, where)
    datatype = datatype_of(feature)
    if tensor.get("datatype") != datatype.value:
        raise BadTensorError(f"{where}.datatype: must be {datatype.value}")
    parameters = _check_parameters(tensor.get("parameters", {}), where)
    if "binary_data_size" in parameters:
        raise BadTensorError(f"{where}: binary tensors are not supported yet; send `data`")
    rows = _rows(tensor.get("shape"), where)
    data = tensor.get("data")
    if not isinstance(data, list) or len(data) != rows:
        raise BadTensorError(f"{where}.data: must be a flat list of {rows} values, as its shape")
    column: list[Value | None] = [_value(item, datatype, where) for item in data]
    for row in _missing(parameters.get("missing"), rows, where):
        column[row] = None
    return feature.name, column


def _rows(shape: object, where: str) -> int:
    if not isinstance(shape, list) or not 0 < len(shape) <= _RANK_MAX:
        raise BadTensorError(f"{where}.shape: must be [rows]")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise BadTensorError(f"{where}.shape: must be [rows]")
        if size > ROWS_MAX:
            raise TooManyRowsError(f"{where}.shape: at most {ROWS_MAX} rows in one request")
    if len(shape) != 1 or shape[0] == 0:
        raise BadTensorError(f"{where}.shape: must be [rows], with at least one row")
    return int(shape[0])


def _value(value: object, datatype: Datatype, where: str) -> Value:
    match datatype:
        case Datatype.NUMBER if isinstance(value, int | float) and not isinstance(value, bool):
            # 1e400 parses as infinity; beyond 2^53 nothing is a measurement.
            if abs(value) <= INTEGER_MAX:
                return float(value)
        case Datatype.CATEGORY if _is_text(value, _TEXT_CHARACTERS_MAX):
            return str(value)
        case Datatype.FLAG if isinstance(value, bool):
            return value
        case _:
            pass
    raise BadTensorError(f"{where}.data: holds a value that is no finite {datatype.value}")


def _missing(value: object, rows: int, where: str) -> list[int]:
    if value is None:
        return []
    words = value.split(" ") if isinstance(value, str) else [""]
    plain = all(word.isascii() and word.isdigit() and len(word) <= len(str(rows)) for word in words)
    found = [int(word) for word in words] if plain else []
    if not found or found != sorted(set(found)) or found[-1] >= rows:
        raise BadTensorError(f"{where}.parameters.missing: must be ascending rows like '0 3 7'")
    return found
