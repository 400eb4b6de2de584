"""Model weights as named float32 arrays: one check, one encoding, one digest. No torch here.

What the arrays are is the family's word (`coop.families`).
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from coop.canonical import sha256
from coop.errors import InvalidInputError, Kind
from coop.families import LOGISTIC_REGRESSION, Family, size

Weights = dict[str, NDArray[np.float32]]

WEIGHT_MAX: Final = 1e6  # a logit of 10^6 is certainty; far larger ones could overflow float32
_HEADER_BYTES_MAX: Final = 4096


class WrongWeightsError(InvalidInputError):
    """The weights have a wrong name, shape, type, or are not finite."""

    code = "models.wrong-weights"
    kind = Kind.UNPROCESSABLE


def initial(columns: int) -> Weights:
    """Where a logistic regression starts: all zeros."""
    return LOGISTIC_REGRESSION.initial(columns, b"")


def check(
    weights: Mapping[str, NDArray[np.float32]], columns: int, family: Family = LOGISTIC_REGRESSION
) -> Weights:
    """The same weights if they are exactly the finite float32 arrays of such a model.

    Raises:
        WrongWeightsError: They are not.
    """
    shapes = family.shapes(columns)
    if set(weights) != set(shapes):
        raise WrongWeightsError(f"weights: must hold exactly {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        value = weights[name]
        if value.dtype != np.float32 or value.shape != shape:
            raise WrongWeightsError(f"weights.{name}: must be float32 of shape {list(shape)}")
        # `<=` is false for NaN too.
        if not bool((np.abs(value) <= WEIGHT_MAX).all()):
            raise WrongWeightsError(f"weights.{name}: must be finite and within ±{WEIGHT_MAX:.0f}")
    return {name: weights[name] for name in shapes}


def unflatten(numbers: NDArray[np.float64], like: Weights) -> Weights:
    """One vector as arrays of the shapes of `like`, name after name in their order."""
    parts: Weights = {}
    start = 0
    for name in sorted(like):
        length = like[name].size
        parts[name] = numbers[start : start + length].reshape(like[name].shape).astype(np.float32)
        start += length
    return parts


def to_safetensors(weights: Weights) -> bytes:
    """The one file form of `weights`; equal weights give equal bytes."""
    ordered = {name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}
    return bytes(safetensors.numpy.save(ordered))


def from_safetensors(data: bytes, columns: int, family: Family = LOGISTIC_REGRESSION) -> Weights:
    """Read weights of a known shape; nothing in the file is ever run.

    Raises:
        WrongWeightsError: Not the weights of such a model with so many columns.
    """
    longest = 4 * size(family, columns) + _HEADER_BYTES_MAX
    if len(data) > longest:
        raise WrongWeightsError(f"weights: longer than {longest} bytes")
    try:
        weights = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WrongWeightsError("weights: not a safetensors file") from error
    return check(weights, columns, family)


def weights_digest(weights: Weights) -> str:
    """Hex SHA-256 of the safetensors bytes: how weights and updates are named in documents."""
    return sha256(to_safetensors(weights)).hex()


def predict(
    weights: Weights, x: NDArray[np.float32], family: Family = LOGISTIC_REGRESSION
) -> NDArray[np.float64]:
    """The risk of each row of the design matrix `x` (`coop.features.encode`)."""
    return family.predict(weights, x)
