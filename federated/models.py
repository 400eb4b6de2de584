"""Model weights as named float32 arrays: one shape, one encoding, one digest. No torch here.

A logistic regression is `{"weight": float32 [d]}`; the last of the d columns is the constant one,
so the last weight is the bias.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from coop.canonical import sha256
from coop.errors import InvalidInputError, Kind

Weights = dict[str, NDArray[np.float32]]

WEIGHT: Final = "weight"
COLUMNS_MAX: Final = 100_000  # 256 features of 64 values and 256 sites are under 20,000
WEIGHT_MAX: Final = 1e6  # a logit of 10^6 is certainty; far larger ones could overflow float32
_FILE_BYTES_MAX: Final = 4 * COLUMNS_MAX + 4096


class WrongWeightsError(InvalidInputError):
    """The weights have a wrong name, shape, type, or are not finite."""

    code = "models.wrong-weights"
    kind = Kind.UNPROCESSABLE


def initial(columns: int) -> Weights:
    """Where every training starts: all zeros, which depends on no data."""
    return {WEIGHT: np.zeros(columns, dtype=np.float32)}


def check(weights: Mapping[str, NDArray[np.float32]], columns: int) -> Weights:
    """The same weights if they are exactly one finite float32 vector of `columns` numbers.

    Raises:
        WrongWeightsError: They are not.
    """
    if set(weights) != {WEIGHT}:
        raise WrongWeightsError(f"weights: must hold exactly {WEIGHT!r}")
    vector = weights[WEIGHT]
    if vector.dtype != np.float32 or vector.shape != (columns,):
        raise WrongWeightsError(f"weights: must be float32 of shape [{columns}]")
    # `<=` is false for NaN too.
    if not bool((np.abs(vector) <= WEIGHT_MAX).all()):
        raise WrongWeightsError(f"weights: must be finite and within ±{WEIGHT_MAX:.0f}")
    return {WEIGHT: vector}


def unflatten(numbers: NDArray[np.float64], like: Weights) -> Weights:
    """One vector as arrays of the shapes of `like`, name after name in their order."""
    parts: Weights = {}
    start = 0
    for name in sorted(like):
        size = like[name].size
        parts[name] = numbers[start : start + size].reshape(like[name].shape).astype(np.float32)
        start += size
    return parts


def to_safetensors(weights: Weights) -> bytes:
    """The one file form of `weights`; equal weights give equal bytes."""
    ordered = {name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}
    return bytes(safetensors.numpy.save(ordered))


def from_safetensors(data: bytes, columns: int) -> Weights:
    """Read weights of a known shape; nothing in the file is ever run.

    Raises:
        WrongWeightsError: Not the weights of a model with so many columns.
    """
    if len(data) > _FILE_BYTES_MAX:
        raise WrongWeightsError(f"weights: longer than {_FILE_BYTES_MAX} bytes")
    try:
        weights = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WrongWeightsError("weights: not a safetensors file") from error
    return check(weights, columns)


def weights_digest(weights: Weights) -> str:
    """Hex SHA-256 of the safetensors bytes: how weights and updates are named in documents."""
    return sha256(to_safetensors(weights)).hex()


def predict(weights: Weights, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probability of the outcome for each row of the design matrix `x` (`coop.features.encode`)."""
    logits = x.astype(np.float64) @ weights[WEIGHT].astype(np.float64)
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)
