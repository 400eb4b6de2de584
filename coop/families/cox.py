"""Proportional hazards with a hazard that is constant within public time intervals.

`beta` [d-1] are log hazard ratios, `log_hazard` [k] the baseline of each interval, per interval.
Cox's partial likelihood compares every patient with all others still at risk, so no gradient in it
is one patient's own, and clipping it bounds nothing. The likelihood of this model is a product over
patients: with hazard exp(log_hazard + x · beta) she contributes

    Σ over intervals  exposure · hazard  -  log hazard in the interval of her event

and that is one vector, clipped once. As the intervals get finer, beta becomes that of the partial
likelihood (Holford 1976; Breslow 1974). The constant column is left out: the baseline is its own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from coop.errors import InvariantError
from coop.families.logistic import Arrays

BETA: Final = "beta"
LOG_HAZARD: Final = "log_hazard"
_SCORE_MAX: Final = 60.0  # of the logarithm of a cumulative hazard: beyond it the risk is 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cox:
    """The risk is that of the event within the horizon."""

    name: ClassVar[str] = "cox"

    bounds: tuple[float, ...]
    """Upper ends of the intervals, rising; the first begins at 0."""
    horizon: int
    """How many intervals the predicted risk covers."""

    def shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        """A log hazard ratio for every column but the constant one, and a baseline."""
        return {BETA: (columns - 1,), LOG_HAZARD: (len(self.bounds),)}

    def initial(self, columns: int, seed: bytes) -> dict[str, NDArray[np.float32]]:
        """Everybody alike, and one half has the event by the last bound."""
        del seed
        each = np.log(np.log(2) / len(self.bounds))
        return {
            BETA: np.zeros(columns - 1, dtype=np.float32),
            LOG_HAZARD: np.full(len(self.bounds), each, dtype=np.float32),
        }

    def check_outcomes(self, y: NDArray[np.float32]) -> None:
        """Refuse anything but a time and whether it happened."""
        fits = y.ndim == 2 and y.shape[1] == 2  # noqa: PLR2004  (time and event)
        if not fits or not bool((np.isfinite(y[:, 0]) & (y[:, 0] >= 0)).all()):
            raise InvariantError("y: must hold a time of 0 or more, and whether it happened")
        if not np.isin(y[:, 1], (0.0, 1.0)).all():
            raise InvariantError("y: whether it happened must be 0 or 1")

    def exposures(self, y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[n, k] each: the share of every interval she was seen in, and where it happened.

        What happens after the last bound is not seen.
        """
        ends = np.array(self.bounds, dtype=np.float64)
        starts = np.concatenate(([0.0], ends[:-1]))
        time = y[:, :1].astype(np.float64)
        share = np.clip((time - starts) / (ends - starts), 0.0, 1.0)
        # An interval holds its upper end: an event at a bound belongs to the interval before it.
        inside = (time <= ends) & ((time > starts) | (starts == 0))
        return share.astype(np.float32), (inside & (y[:, 1:] > 0)).astype(np.float32)

    def evaluated(self, y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Whether it happened within the horizon; unknown where she was lost before it."""
        end = np.float32(self.bounds[self.horizon - 1])
        within = (y[:, 1] > 0) & (y[:, 0] <= end)
        return within.astype(np.float32), within | (y[:, 0] >= end)

    def predict(self, weights: Arrays, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """The risk of the event within the horizon."""
        score = x[:, :-1].astype(np.float64) @ weights[BETA].astype(np.float64)
        cumulative = np.exp(np.clip(score + self._log_cumulative(weights), None, _SCORE_MAX))
        return np.asarray(-np.expm1(-cumulative), dtype=np.float64)

    def reach(self, weights: Arrays) -> float:
        """The largest log hazard ratio."""
        return float(np.abs(weights[BETA]).sum(dtype=np.float64))

    def graph(self, weights: Arrays) -> tuple[list[Any], list[Any]]:
        """1 - exp(-exp(x · beta + log of the cumulative baseline))."""
        from onnx import helper, numpy_helper  # noqa: PLC0415  (only where a graph is built)

        # It reads the same x as every family, so the constant column has a weight of 0 here.
        log_ratios = np.append(weights[BETA], np.float32(0)).reshape(-1, 1)
        baseline = np.array([self._log_cumulative(weights)], dtype=np.float32)
        nodes = [
            helper.make_node("Gemm", ["x", BETA, "log_cumulative"], ["score"]),
            helper.make_node("Min", ["score", "score_max"], ["bounded"]),
            helper.make_node("Exp", ["bounded"], ["cumulative"]),
            helper.make_node("Neg", ["cumulative"], ["log_survival"]),
            helper.make_node("Exp", ["log_survival"], ["survival"]),
            helper.make_node("Sub", ["one", "survival"], ["y"]),
        ]
        arrays = {
            BETA: np.ascontiguousarray(log_ratios),
            "log_cumulative": baseline,
            "score_max": np.array([_SCORE_MAX], dtype=np.float32),
            "one": np.array([1], dtype=np.float32),
        }
        return nodes, [numpy_helper.from_array(value, name) for name, value in arrays.items()]

    def words(self) -> dict[str, object]:
        """Its name; the intervals stand in the label."""
        return {"name": self.name}

    def _log_cumulative(self, weights: Arrays) -> float:
        parts = weights[LOG_HAZARD][: self.horizon].astype(np.float64)
        largest = float(parts.max())
        return largest + float(np.log(np.exp(parts - largest).sum()))
