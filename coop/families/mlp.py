"""A network with one hidden layer: `hidden` [h, d], `output` [h], `bias` [1].

The last column of x is the constant one, so the hidden layer needs no bias of its own. There is no
batch norm: it would mix patients, and then no patient's gradient is her own.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from coop.families.logistic import Arrays, check_binary, sigmoid

HIDDEN: Final = "hidden"
OUTPUT: Final = "output"
BIAS: Final = "bias"
_BITS: Final = 32
_OPERATORS: Final = {"tanh": "Tanh", "relu": "Relu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """The risk is a sigmoid of a weighted sum of the hidden units."""

    name: ClassVar[str] = "mlp"

    hidden: int
    """Width, public."""
    activation: Literal["tanh", "relu"]

    def shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        """Two layers and a bias."""
        return {HIDDEN: (self.hidden, columns), OUTPUT: (self.hidden,), BIAS: (1,)}

    def initial(self, columns: int, seed: bytes) -> dict[str, NDArray[np.float32]]:
        """Uniform within ±sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010), from `seed` alone.

        By SHAKE-256, so every machine and every version of numpy starts at the same bytes.
        """
        count = self.hidden * columns + self.hidden
        bits = np.frombuffer(hashlib.shake_256(seed).digest(4 * count), dtype="<u4")
        uniform = (bits.astype(np.float64) + 0.5) / 2.0 ** (_BITS - 1) - 1.0
        first, second = np.split(uniform, [self.hidden * columns])
        return {
            HIDDEN: (first * np.sqrt(6 / (columns + self.hidden)))
            .reshape(self.hidden, columns)
            .astype(np.float32),
            OUTPUT: (second * np.sqrt(6 / (self.hidden + 1))).astype(np.float32),
            BIAS: np.zeros(1, dtype=np.float32),
        }

    def check_outcomes(self, y: NDArray[np.float32]) -> None:
        """Refuse anything but 0 and 1."""
        check_binary(y)

    def evaluated(self, y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The outcome itself, always known."""
        return y, np.ones(len(y), dtype=np.bool_)

    def predict(self, weights: Arrays, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """The risk of each row."""
        numbers = {name: value.astype(np.float64) for name, value in weights.items()}
        units = x.astype(np.float64) @ numbers[HIDDEN].T
        units = np.tanh(units) if self.activation == "tanh" else np.maximum(units, 0.0)
        return sigmoid(units @ numbers[OUTPUT] + numbers[BIAS][0])

    def reach(self, weights: Arrays) -> float:
        """The largest logit but for the bias: no activation grows faster than its input."""
        units = np.abs(weights[HIDDEN]).sum(axis=1, dtype=np.float64)
        return float(np.abs(weights[OUTPUT]).astype(np.float64) @ units)

    def graph(self, weights: Arrays) -> tuple[list[Any], list[Any]]:
        """sigmoid(activation(x · hiddenᵀ) · output + bias)."""
        from onnx import helper, numpy_helper  # noqa: PLC0415  (only where a graph is built)

        nodes = [
            helper.make_node("Gemm", ["x", HIDDEN], ["sums"], transB=1),
            helper.make_node(_OPERATORS[self.activation], ["sums"], ["units"]),
            helper.make_node("Gemm", ["units", OUTPUT, BIAS], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["y"]),
        ]
        arrays = {**weights, OUTPUT: weights[OUTPUT].reshape(-1, 1)}
        tensors = [
            numpy_helper.from_array(np.ascontiguousarray(arrays[name]), name)
            for name in (HIDDEN, OUTPUT, BIAS)
        ]
        return nodes, tensors

    def words(self) -> dict[str, object]:
        """Name, width and activation."""
        return {"name": self.name, "hidden": self.hidden, "activation": self.activation}
