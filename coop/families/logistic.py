"""Logistic regression: `weight` [d]; the last column is the constant one, so it is the bias."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from coop.errors import InvariantError

WEIGHT: Final = "weight"
Arrays = Mapping[str, NDArray[np.float32]]


def sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + e^-score), even far out."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores)), dtype=np.float64)


def check_binary(y: NDArray[np.float32]) -> None:
    """Return if every outcome is 0 or 1.

    Raises:
        InvariantError: They are not.
    """
    if y.ndim != 1 or not np.isin(y, (0.0, 1.0)).all():
        raise InvariantError("y: must be 0 or 1")


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """The risk is a sigmoid of a weighted sum."""

    name: ClassVar[str] = "logistic-regression"

    def shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        """One vector."""
        return {WEIGHT: (columns,)}

    def initial(self, columns: int, seed: bytes) -> dict[str, NDArray[np.float32]]:
        """All zeros: every risk is one half."""
        del seed
        return {WEIGHT: np.zeros(columns, dtype=np.float32)}

    def check_outcomes(self, y: NDArray[np.float32]) -> None:
        """Refuse anything but 0 and 1."""
        check_binary(y)

    def evaluated(self, y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The outcome itself, always known."""
        return y, np.ones(len(y), dtype=np.bool_)

    def predict(self, weights: Arrays, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """The risk of each row."""
        return sigmoid(x.astype(np.float64) @ weights[WEIGHT].astype(np.float64))

    def reach(self, weights: Arrays) -> float:
        """The largest logit."""
        return float(np.abs(weights[WEIGHT]).sum(dtype=np.float64))

    def graph(self, weights: Arrays) -> tuple[list[Any], list[Any]]:
        """sigmoid(x · weight)."""
        from onnx import helper, numpy_helper  # noqa: PLC0415  (only where a graph is built)

        matrix = np.ascontiguousarray(weights[WEIGHT].reshape(-1, 1))
        nodes = [
            helper.make_node("Gemm", ["x", WEIGHT], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["y"]),
        ]
        return nodes, [numpy_helper.from_array(matrix, WEIGHT)]

    def words(self) -> dict[str, object]:
        """Its name says everything."""
        return {"name": self.name}
