"""Model families as torch modules: what each patient's own loss is. The node's side of a family.

A network may use only layers whose per-patient gradients opacus computes exactly (`nn.Linear`), and
its loss must be a sum over patients, each term of one patient's row alone. Then clipping bounds
what one patient can change, whatever the weights are.
"""

from abc import ABC, abstractmethod
from typing import Final, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from coop.families import Cox, Family, LogisticRegression, Mlp
from coop.families.cox import BETA, LOG_HAZARD
from coop.families.logistic import WEIGHT
from coop.families.mlp import BIAS, HIDDEN, OUTPUT
from federated.models import Weights

_LINEAR_FROM: Final = 20.0
"""Above it a hazard grows like its tangent: e^20 per interval is certainty, all stays finite."""


class Network(nn.Module, ABC):
    """A family's model: its forward pass, its loss, and which tensor is which parameter."""

    tensors: dict[str, nn.Parameter]

    @abstractmethod
    def loss(self, scores: torch.Tensor, y: NDArray[np.float32]) -> torch.Tensor:
        """The sum over patients of each one's own loss, for what `forward` gave."""


def network(family: Family, weights: Weights) -> Network:
    """The family's network at these checked weights."""
    match family:
        case LogisticRegression():
            built: Network = _Logistic(weights)
        case Mlp():
            built = _Perceptron(weights, family)
        case Cox():
            built = _Hazards(weights, family)
        case _:
            assert_never(family)
    with torch.no_grad():
        for name, parameter in built.tensors.items():
            parameter.copy_(torch.from_numpy(weights[name]).view_as(parameter))
    return built


def _log_loss(logits: torch.Tensor, y: NDArray[np.float32]) -> torch.Tensor:
    targets = torch.from_numpy(y)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


class _Logistic(Network):
    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.linear = nn.Linear(weights[WEIGHT].size, 1, bias=False)
        self.tensors = {WEIGHT: self.linear.weight}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).squeeze(1)

    def loss(self, scores: torch.Tensor, y: NDArray[np.float32]) -> torch.Tensor:
        return _log_loss(scores, y)


class _Perceptron(Network):
    def __init__(self, weights: Weights, family: Mlp) -> None:
        super().__init__()
        units, columns = weights[HIDDEN].shape
        self.hidden = nn.Linear(columns, units, bias=False)
        self.output = nn.Linear(units, 1)
        self.bend = torch.tanh if family.activation == "tanh" else torch.relu
        self.tensors = {
            HIDDEN: self.hidden.weight,
            OUTPUT: self.output.weight,
            BIAS: self.output.bias,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.bend(self.hidden(x))).squeeze(1)

    def loss(self, scores: torch.Tensor, y: NDArray[np.float32]) -> torch.Tensor:
        return _log_loss(scores, y)


class _Hazards(Network):
    def __init__(self, weights: Weights, family: Cox) -> None:
        super().__init__()
        self.family = family
        self.ratio = nn.Linear(weights[BETA].size, 1, bias=False)
        # A layer, not a bare parameter, so that opacus knows each patient's part in it.
        self.baseline = nn.Linear(1, weights[LOG_HAZARD].size, bias=False)
        self.tensors = {BETA: self.ratio.weight, LOG_HAZARD: self.baseline.weight}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ratio(x[:, :-1]) + self.baseline(torch.ones(len(x), 1))

    def loss(self, scores: torch.Tensor, y: NDArray[np.float32]) -> torch.Tensor:
        exposure, happened = (torch.from_numpy(part) for part in self.family.exposures(y))
        beyond = torch.relu(scores - _LINEAR_FROM)
        hazard = torch.exp(torch.clamp(scores, max=_LINEAR_FROM)) * (1 + beyond)
        return (exposure * hazard - happened * scores).sum()
