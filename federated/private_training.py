"""One hospital's part of a round: the noised sum of its patients' clipped gradients.

The only file that knows torch and opacus. Mode A: the hospital adds the full noise itself, before
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
from torch import nn

from coop.errors import InvariantError
from federated import noise
from federated.models import WEIGHT, Weights, check

_CHUNK: Final = 4096  # patients whose own gradients are in memory at once: 20 columns are 330 kB
_GRID_BITS: Final = 10  # the answer is rounded to a grid of about a thousandth of the noise

# A logistic regression is too small for threads to pay, and the node shares its machine.
torch.set_num_threads(1)
# The first layer's input needs no gradient; opacus reads what it needs before torch warns of that.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


def private_gradient(
    weights: Weights,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    clip: float,
    sigma: float,
) -> Weights:
    """Σ clip(∇ᵢ) + N(0, (sigma·clip)²) over the given patients, one row each.

    Guarantees: a Gaussian mechanism of sensitivity `clip` and multiplier `sigma` per patient (add
    or remove one); the noise is secret and cannot be repeated; no patients at all give pure noise,
    so the answer's presence says nothing about the cohort.

    Args:
        weights: The model so far.
        x: float32 [n, d], finite, from `coop.features.encode`; n may be 0.
        y: float32 [n], 0 or 1.
        clip: C, the most one patient's gradient can weigh; > 0.
        sigma: Noise multiplier; > 0.

    Raises:
        WrongWeightsError: The weights do not fit the columns of `x`.
    """
    if not (np.isfinite(sigma) and sigma > 0):
        raise InvariantError("sigma: must be positive; without noise nothing may leave a hospital")
    noised = _sum_of_clipped(weights, x, y, clip=clip, sigma=sigma)
    # Floating-point sums leave traces of the summands in their lowest bits (Mironov 2012): round
    # to a public grid far below the noise. Rounding is post-processing and costs nothing.
    grid = 2.0 ** (np.floor(np.log2(sigma * clip)) - _GRID_BITS)
    return {WEIGHT: (np.round(noised / grid) * grid).astype(np.float32)}


def unsafe_gradient_without_noise(
    weights: Weights, x: NDArray[np.float32], y: NDArray[np.float32], *, clip: float
) -> Weights:
    """The same sum with no noise at all: for simulations on public data and for tests only."""
    return {WEIGHT: _sum_of_clipped(weights, x, y, clip=clip, sigma=0.0).astype(np.float32)}


def clipped_gradients(
    weights: Weights, x: NDArray[np.float32], y: NDArray[np.float32], *, clip: float
) -> Iterator[NDArray[np.float64]]:
    """Each patient's own clipped gradient, a line each, in chunks: what `integer_sum` adds up.

    Exact: nothing of it may leave. Arguments as in `private_gradient`.
    """
    linear, model = _model(weights, x, y, clip=clip)
    log_loss = nn.BCEWithLogitsLoss(reduction="sum")
    for rows, _ in _chunks(len(x)):
        model.zero_grad(set_to_none=True)
        logits = model(torch.from_numpy(x[rows])).squeeze(1)
        log_loss(logits, torch.from_numpy(y[rows])).backward()
        own = linear.weight.grad_sample.detach().numpy().reshape(-1, x.shape[1])
        lines = own.astype(np.float64)
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
) -> NDArray[np.float64]:
    """Sum of the per-patient gradients of the log loss, each clipped to norm `clip`; noised."""
    linear, model = _model(weights, x, y, clip=clip)
    optimizer = SecretNoiseOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=max(1, len(x)),
        loss_reduction="sum",
    )
    log_loss = nn.BCEWithLogitsLoss(reduction="sum")
    for rows, last in _chunks(len(x)):
        optimizer.zero_grad(set_to_none=True)
        logits = model(torch.from_numpy(x[rows])).squeeze(1)
        log_loss(logits, torch.from_numpy(y[rows])).backward()
        # Chunks are clipped and summed one by one; only the last one is followed by the noise.
        optimizer.signal_skip_step(do_skip=not last)
        optimizer.pre_step()
    gradient: torch.Tensor = linear.weight.grad
    return np.asarray(gradient.detach().numpy().reshape(-1), dtype=np.float64)


def _model(
    weights: Weights, x: NDArray[np.float32], y: NDArray[np.float32], *, clip: float
) -> tuple[nn.Linear, GradSampleModule]:
    """The model at these weights, ready to tell each patient's gradient; checks its arguments."""
    if x.ndim != 2 or y.shape != (len(x),) or not np.isfinite(x).all():  # noqa: PLR2004  (a matrix)
        raise InvariantError("x and y: must be a finite matrix and one label per row")
    if not np.isin(y, (0.0, 1.0)).all() or not (np.isfinite(clip) and clip > 0):
        raise InvariantError("y: must be 0 or 1; clip: must be positive")
    linear = nn.Linear(x.shape[1], 1, bias=False)  # the constant column is the bias
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(check(weights, x.shape[1])[WEIGHT]).view(1, -1))
    return linear, GradSampleModule(linear, loss_reduction="sum")


def _chunks(count: int) -> Iterator[tuple[slice, bool]]:
    """Slices of at most `_CHUNK` rows and whether each is the last; one empty slice for none."""
    for start in range(0, max(count, 1), _CHUNK):
        yield slice(start, start + _CHUNK), start + _CHUNK >= count
