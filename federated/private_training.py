"""One hospital's part of a round: the noised sum of its patients' clipped gradients.

One step for every family (`federated.networks`); only these two files know torch. A patient is
clipped over all parameters together. Mode A: the hospital adds the full noise itself, before
anything leaves it.
"""

import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from coop.errors import InvariantError
from coop.families import LOGISTIC_REGRESSION, Family
from federated import noise
from federated.models import Weights, check
from federated.networks import Network, network

_CHUNK: Final = 4096  # patients whose own gradients are in memory at once, at most
_NUMBERS: Final = 4_000_000  # … and their numbers: 16 MB, however large the model is
_GRID_BITS: Final = 10  # the answer is rounded to a grid of about a thousandth of the noise

# These models are too small for threads to pay, and the node shares its machine.
torch.set_num_threads(1)
# The first layer's input needs no gradient; opacus reads what it needs before torch warns of that.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


def private_gradient(  # noqa: PLR0913  (what the mechanism is: each figure by its name)
    weights: Weights,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    clip: float,
    sigma: float,
    family: Family = LOGISTIC_REGRESSION,
    sampling: float = 1.0,
) -> Weights:
    """Σ clip(∇ᵢ) + N(0, (sigma·clip)²) over the given patients, one row each, or a sample of them.

    Guarantees: a Gaussian mechanism of sensitivity `clip` and multiplier `sigma` per patient (add
    or remove one), on a Poisson sample of rate `sampling`; noise and sample are secret and cannot
    be repeated; no patients at all, or none in the sample, give pure noise, so the answer's
    presence says nothing about the cohort.

    Args:
        weights: The model so far.
        x: float32 [n, d], finite, from `coop.features.encode`; n may be 0.
        y: float32, as `coop.features.label` gives it for the family.
        clip: C, the most one patient's gradient can weigh; > 0.
        sigma: Noise multiplier; > 0.
        family: What the weights are of.
        sampling: q: each patient takes part with this chance, independently; in (0, 1].

    Raises:
        WrongWeightsError: The weights do not fit the family or the columns of `x`.
    """
    if not (np.isfinite(sigma) and sigma > 0):
        raise InvariantError("sigma: must be positive; without noise nothing may leave a hospital")
    if not 0 < sampling <= 1:
        raise InvariantError("sampling: must be above 0 and at most 1")
    if sampling < 1:
        taken = noise.uniform(len(x)) < sampling
        x, y = x[taken], y[taken]
    noised = _sum_of_clipped(weights, x, y, clip=clip, sigma=sigma, family=family)
    # Floating-point sums leave traces of the summands in their lowest bits (Mironov 2012): round
    # to a public grid far below the noise. Rounding is post-processing and costs nothing.
    grid = 2.0 ** (np.floor(np.log2(sigma * clip)) - _GRID_BITS)
    return {
        name: (np.round(value / grid) * grid).astype(np.float32) for name, value in noised.items()
    }


def unsafe_gradient_without_noise(
    weights: Weights,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    clip: float,
    family: Family = LOGISTIC_REGRESSION,
) -> Weights:
    """The same sum with no noise at all: for simulations on public data and for tests only."""
    exact = _sum_of_clipped(weights, x, y, clip=clip, sigma=0.0, family=family)
    return {name: value.astype(np.float32) for name, value in exact.items()}


def clipped_gradients(
    weights: Weights,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    clip: float,
    family: Family = LOGISTIC_REGRESSION,
) -> Iterator[NDArray[np.float64]]:
    """Each patient's own clipped gradient, a line each, in chunks: what `integer_sum` adds up.

    A line holds the tensors name after name, as `models.unflatten` reads them. Exact: nothing of it
    may leave. Arguments as in `private_gradient`.
    """
    built, model = _model(weights, x, y, clip=clip, family=family)
    for rows, _ in _chunks(len(x), weights):
        model.zero_grad(set_to_none=True)
        built.loss(model(torch.from_numpy(x[rows])), y[rows]).backward()
        parts = [built.tensors[name].grad_sample.detach().numpy() for name in sorted(built.tensors)]
        own = [part.reshape(len(part), int(np.prod(part.shape[1:]))) for part in parts]
        lines = np.concatenate(own, axis=1).astype(np.float64)
        norms = np.linalg.norm(lines, axis=1, keepdims=True)
        yield lines * np.minimum(1.0, clip / np.maximum(norms, np.finfo(np.float64).tiny))


class SecretNoiseOptimizer(DPOptimizer):
    """Opacus' optimizer whose noise comes from `federated.noise` instead of torch's generator."""

    def add_noise(self) -> None:
        """Put sum + noise into every parameter's `grad`; a sum is noised once, then spent."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            _check_processed_flag(parameter.summed_grad)
            total = parameter.summed_grad.to(torch.float64)
            if deviation > 0:
                draws = noise.normal(total.numel()).reshape(tuple(total.shape))
                total = total + torch.from_numpy(draws) * deviation
            parameter.grad = total.view_as(parameter).to(parameter.dtype)
            _mark_as_processed(parameter.summed_grad)


def _sum_of_clipped(
    weights: Weights,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    clip: float,
    sigma: float,
    family: Family,
) -> dict[str, NDArray[np.float64]]:
    """Sum of the per-patient gradients of the loss, each clipped to norm `clip`; noised."""
    built, model = _model(weights, x, y, clip=clip, family=family)
    optimizer = SecretNoiseOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=max(1, len(x)),
        loss_reduction="sum",
    )
    for rows, last in _chunks(len(x), weights):
        optimizer.zero_grad(set_to_none=True)
        built.loss(model(torch.from_numpy(x[rows])), y[rows]).backward()
        # Chunks are clipped and summed one by one; only the last one is followed by the noise.
        optimizer.signal_skip_step(do_skip=not last)
        optimizer.pre_step()
    return {
        name: parameter.grad.detach().numpy().reshape(weights[name].shape).astype(np.float64)
        for name, parameter in built.tensors.items()
    }


def _model(
    weights: Weights,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    clip: float,
    family: Family,
) -> tuple[Network, GradSampleModule]:
    """The model at these weights, ready to tell each patient's gradient; checks its arguments."""
    if x.ndim != 2 or len(y) != len(x) or not np.isfinite(x).all():  # noqa: PLR2004  (a matrix)
        raise InvariantError("x and y: must be a finite matrix and one label per row")
    if not (np.isfinite(clip) and clip > 0):
        raise InvariantError("clip: must be positive")
    family.check_outcomes(y)
    built = network(family, check(weights, x.shape[1], family))
    return built, GradSampleModule(built, loss_reduction="sum")


def _chunks(count: int, weights: Weights) -> Iterator[tuple[slice, bool]]:
    """Slices of the rows, few enough for memory, and whether each is the last; one of none."""
    numbers = sum(value.size for value in weights.values())
    size = max(1, min(_CHUNK, _NUMBERS // numbers))
    for start in range(0, max(count, 1), size):
        yield slice(start, start + size), start + size >= count
