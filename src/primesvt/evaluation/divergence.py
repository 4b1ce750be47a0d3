"""Divergence of a network's outputs from the unpruned network's, without labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from primesvt.calibration import CalibrationSet
from primesvt.models.shared_prefix import VariantBatch

__all__ = ["NOT_FINITE", "OutputDivergence"]

NOT_FINITE = 1e6


class OutputDivergence:
    """Mean Kullback-Leibler divergence of a network's class probabilities from the unpruned one's.

    In nats per sample. It is smooth where accuracy counts whole samples, so a few hundred inputs
    tell small losses apart. Outputs that are not logits ``[batch, classes]`` are compared by their
    squared differences, as a share of the unpruned outputs' variance. A network whose answers are
    not finite is ``NOT_FINITE`` away.

    Args:
        model: the unpruned network.
        inputs: what both networks see.

    Example:
        >>> from primesvt.calibration import calibration_of
        >>> net = nn.Linear(2, 3)
        >>> OutputDivergence(net, calibration_of(torch.eye(2)))(VariantBatch(networks=[net]))
        [0.0]
    """

    def __init__(self, model: nn.Module, inputs: CalibrationSet) -> None:
        self.inputs = inputs
        self.expected = self._answers(VariantBatch(networks=[model]))[0]

    def __call__(self, variants: VariantBatch) -> list[float]:
        """The divergences of other networks on the same inputs."""
        return [self._between(answers) for answers in self._answers(variants)]

    def _between(self, answers: list[Tensor]) -> float:
        pairs = list(zip(self.expected, answers, strict=True))
        divergence = _divergence if pairs[0][0].ndim == 2 else _squares
        total = sum(divergence(*pair) for pair in pairs)
        mean = total / sum(len(expected) for expected, _ in pairs)
        return max(0.0, mean) if math.isfinite(mean) else NOT_FINITE

    def _answers(self, variants: VariantBatch) -> list[list[Tensor]]:
        """For every network its outputs, batch by batch."""
        found: list[list[Tensor]] = [[] for _ in variants.networks]
        with variants.evaluating():
            for number, batch in enumerate(self.inputs):
                results = variants(*batch, data="distance", batch=number)
                for answers, result in zip(found, results, strict=True):
                    first = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
                    answers.append(first.double().cpu())
        return found


def _divergence(expected: Tensor, found: Tensor) -> float:
    logs, target = found.log_softmax(1), expected.log_softmax(1)
    total = functional.kl_div(logs, target, reduction="sum", log_target=True)
    return float(total)


def _squares(expected: Tensor, found: Tensor) -> float:
    spread = float(torch.var(expected, correction=0)) or 1.0
    return float((expected - found).square().mean()) / spread * len(expected)
