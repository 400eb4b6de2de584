"""A model's files: safetensors weights, an ONNX graph, and what the model reads.

Equal weights give equal bytes, so a digest in a passport names one model and no other. The graph is
built by hand and checked against numpy with onnxruntime before anything is signed; nothing here
loads or runs code. onnx, onnxruntime and safetensors load only when a model is built or checked.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.canonical import jcs, parse_object
from coop.documents.study import CategoryFeature, FlagFeature, NumberFeature, Study
from coop.errors import CoopError, InvalidInputError, Kind
from coop.families import Family, family_of, named
from coop.features import columns

WEIGHTS_FILE: Final = "model.safetensors"
ONNX_FILE: Final = "model.onnx"
IO_FILE: Final = "io.json"
_OPSET: Final = 17  # Gemm without bias since 11; every runtime of the last years reads it
_IR_VERSION: Final = 8  # of that opset
_PARITY_ROWS: Final = 256
_PARITY_MAX: Final = 1e-5  # of a risk: float32 rounding at logits up to 8, far below what is shown
_SCORE_MAX: Final = 8.0
_DATATYPES: Final = {NumberFeature: "FP64", CategoryFeature: "BYTES", FlagFeature: "BOOL"}


class ArtefactError(CoopError):
    """The model's files do not say the same; nothing is released or believed."""

    code = "model.files-differ"
    kind = Kind.UNPROCESSABLE


def weights_file(family: Family, columns: int, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The safetensors file of a model that reads so many columns.

    Raises:
        InvalidInputError: Another name, shape or type, or a number that is not finite.
    """
    import safetensors.numpy  # noqa: PLC0415  (see the module's first lines)

    shapes = family.shapes(columns)
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise InvalidInputError(f"weights: must be those of {family.name} with {columns} columns")
    for name, value in weights.items():
        if value.dtype != np.float32 or not bool(np.isfinite(value).all()):
            raise InvalidInputError(f"weights.{name}: must be finite float32 numbers")
    ordered = {name: np.ascontiguousarray(weights[name]) for name in sorted(shapes)}
    return bytes(safetensors.numpy.save(ordered))


def onnx_file(family: Family, columns: int, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The family's graph: `x` float32 [n, columns] → risk `y` float32 [n, 1]."""
    from onnx import TensorProto, checker, helper  # noqa: PLC0415  (as above)

    nodes, tensors = family.graph(weights)
    graph = helper.make_graph(
        nodes=nodes,
        name=family.name,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        initializer=tensors,
    )
    model = helper.make_model(
        graph,
        producer_name="health-data-coop",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def io_file(model_id: str, study: Study) -> bytes:
    """What the model reads and gives: feature tensors, columns and outcome, as canonical JSON."""
    names = columns(study.schema_)
    tensors = [
        {"name": feature.name, "datatype": _DATATYPES[type(feature)], "shape": [-1]}
        for feature in study.schema_.features
    ]
    return jcs(
        {
            "v": 1,
            "model_id": model_id,
            "study_id": study.study_id,
            "version": study.version,
            "family": family_of(study).words(),
            "features": study.schema_.model_dump(mode="json", exclude_none=True),
            "label": study.label.model_dump(mode="json", exclude_none=True),
            "tensors": tensors,
            "columns": names,
            "input": {"name": "x", "datatype": "FP32", "shape": [-1, len(names)]},
            "output": {"name": "y", "datatype": "FP32", "shape": [-1, 1]},
        }
    )


def reads(io: bytes) -> tuple[Family, int]:
    """The family that a model's `io.json` names, and how many columns it reads.

    Raises:
        ArtefactError: It names none that this release knows.
    """
    try:
        match parse_object(io):
            case {"family": dict(words), "label": dict(label), "columns": list(names)}:
                return named(words, label), len(names)
            case _:
                pass
    except InvalidInputError as error:
        raise ArtefactError("io.json: describes no model that this release knows") from error
    raise ArtefactError("io.json: lacks family, label or columns")


def check_parity(family: Family, columns: int, weights: bytes, onnx: bytes) -> None:
    """Return if the graph computes what the weights say, on rows that nobody's data chose.

    Raises:
        ArtefactError: It does not, or a file cannot be read.
    """
    import onnxruntime  # noqa: PLC0415  (as above)
    import safetensors  # noqa: PLC0415  (as above)
    import safetensors.numpy  # noqa: PLC0415  (as above)
    from onnxruntime.capi import onnxruntime_pybind11_state as failures  # noqa: PLC0415  (as above)

    onnxruntime.set_default_logger_severity(4)
    try:
        arrays = safetensors.numpy.load(weights)
        if {name: value.shape for name, value in arrays.items()} != family.shapes(columns):
            raise ArtefactError("model.safetensors: does not hold what io.json says")
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        rows = _rows(columns, family.reach(arrays))
        found = session.run(["y"], {"x": rows})[0]
    except (
        safetensors.SafetensorError,
        KeyError,
        ValueError,
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NotImplemented,
        failures.RuntimeException,
    ) as error:
        raise ArtefactError(f"model files: cannot be read ({type(error).__name__})") from error
    expected = family.predict(arrays, rows)
    if found.shape != (len(rows), 1) or not np.allclose(
        found[:, 0], expected, rtol=0, atol=_PARITY_MAX
    ):
        raise ArtefactError("model.onnx: does not compute what model.safetensors says")


def _rows(width: int, reach: float) -> NDArray[np.float32]:
    """Every column alone at ±1, then mixed rows; scaled so that no score moves further than ±8."""
    alone = np.concatenate([np.eye(width), -np.eye(width)])[: 2 * _PARITY_ROWS]
    mixed = np.sin(np.arange(1, _PARITY_ROWS * width + 1) ** 2 * 0.7).reshape(-1, width)
    scale = _SCORE_MAX / max(_SCORE_MAX, reach)
    return (np.concatenate([alone, mixed]) * scale).astype(np.float32)
