"""A model's files: safetensors weights, an ONNX graph, and what the model reads.

Equal weights give equal bytes, so a digest in a passport names one model and no other. The graph is
built by hand and checked against numpy with onnxruntime before anything is signed; nothing here
loads or runs code. onnx, onnxruntime and safetensors load only when a model is built or checked.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.canonical import jcs
from coop.documents.study import CategoryFeature, FlagFeature, NumberFeature, Study
from coop.errors import CoopError, InvalidInputError, Kind
from coop.features import columns

WEIGHTS_FILE: Final = "model.safetensors"
ONNX_FILE: Final = "model.onnx"
IO_FILE: Final = "io.json"
_WEIGHT: Final = "weight"
_OPSET: Final = 17  # Gemm without bias since 11; every runtime of the last years reads it
_IR_VERSION: Final = 8  # of that opset
_PARITY_ROWS: Final = 256
_PARITY_MAX: Final = 1e-5  # of a risk: float32 rounding at logits up to 8, far below what is shown
_LOGIT_MAX: Final = 8.0
_DATATYPES: Final = {NumberFeature: "FP64", CategoryFeature: "BYTES", FlagFeature: "BOOL"}


class ArtefactError(CoopError):
    """The model's files do not say the same; nothing is released or believed."""

    code = "model.files-differ"
    kind = Kind.UNPROCESSABLE


def weights_file(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The safetensors file of `{"weight": float32 [d]}`.

    Raises:
        InvalidInputError: Another name, shape or type, or a number that is not finite.
    """
    import safetensors.numpy  # noqa: PLC0415  (see the module's first lines)

    vector = weights.get(_WEIGHT)
    if set(weights) != {_WEIGHT} or vector is None or vector.dtype != np.float32:
        raise InvalidInputError("weights: must hold exactly one float32 array 'weight'")
    if vector.ndim != 1 or not vector.size or not bool(np.isfinite(vector).all()):
        raise InvalidInputError("weights: must be one vector of finite numbers")
    return bytes(safetensors.numpy.save({_WEIGHT: np.ascontiguousarray(vector)}))


def onnx_file(vector: NDArray[np.float32]) -> bytes:
    """The graph sigmoid(x · weight): `x` float32 [n, d] → `y` float32 [n, 1].

    Args:
        vector: float32 [d]; the last column of x is the constant one, so its weight is the bias.
    """
    from onnx import TensorProto, checker, helper, numpy_helper  # noqa: PLC0415  (as above)

    width = vector.shape[0]
    matrix = numpy_helper.from_array(np.ascontiguousarray(vector.reshape(width, 1)), _WEIGHT)
    graph = helper.make_graph(
        nodes=[
            helper.make_node("Gemm", ["x", _WEIGHT], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["y"]),
        ],
        name="logistic-regression",
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        initializer=[matrix],
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
            "features": study.schema_.model_dump(mode="json"),
            "label": study.label.model_dump(mode="json"),
            "tensors": tensors,
            "columns": names,
            "input": {"name": "x", "datatype": "FP32", "shape": [-1, len(names)]},
            "output": {"name": "y", "datatype": "FP32", "shape": [-1, 1]},
        }
    )


def check_parity(weights: bytes, onnx: bytes) -> None:
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
        vector = safetensors.numpy.load(weights)[_WEIGHT]
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        rows = _rows(vector)
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
    logits = rows.astype(np.float64) @ vector.astype(np.float64)
    expected = 1 / (1 + np.exp(-logits))
    if found.shape != (len(rows), 1) or not np.allclose(
        found[:, 0], expected, rtol=0, atol=_PARITY_MAX
    ):
        raise ArtefactError("model.onnx: does not compute what model.safetensors says")


def _rows(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every column alone at ±1, then mixed rows; scaled so that no logit leaves ±8."""
    width = vector.shape[0]
    alone = np.concatenate([np.eye(width), -np.eye(width)])[: 2 * _PARITY_ROWS]
    mixed = np.sin(np.arange(1, _PARITY_ROWS * width + 1) ** 2 * 0.7).reshape(-1, width)
    scale = _LOGIT_MAX / max(_LOGIT_MAX, float(np.abs(vector).sum(dtype=np.float64)))
    return (np.concatenate([alone, mixed]) * scale).astype(np.float32)
