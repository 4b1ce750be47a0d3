"""A network's predictions, to see whether another network gives the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from primesvt.calibration import Calibration, calibrating
from primesvt.profiling.memory import batch_of

__all__ = ["Answers"]

TOLERANCE = 1e-5  # relative, of outputs that are no logits


class Answers:
    """What a network answers to some inputs.

    Of logits ``[batch, classes]`` it is the class; other outputs are the answer themselves, and the
    same up to 1e-5 of their largest value.

    Args:
        model: the network.
        inputs: what it is asked.

    Example:
        >>> from primesvt.calibration import calibration_of
        >>> answers = Answers(nn.Identity(), calibration_of(torch.eye(3)))
        >>> answers.inputs, answers.same(nn.ReLU()), answers.same(nn.Flatten(0))
        (3, True, False)
    """

    def __init__(self, model: nn.Module, inputs: Calibration) -> None:
        self._source = inputs
        with calibrating(model):
            self._expected = [_answer(result) for result in inputs.run(model)]
        self.inputs = sum(batch_of(tuple(expected)) for expected in self._expected)

    def same(self, model: nn.Module) -> bool:
        """Whether another network answers the same to every input."""
        with calibrating(model):
            pairs = zip(self._expected, self._source.run(model), strict=True)
            return all(_alike(expected, _answer(result)) for expected, result in pairs)


def _answer(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] > 1:
        return [result.argmax(1).cpu()]
    return [leaf.detach().cpu() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _alike(expected: list[Tensor], found: list[Tensor]) -> bool:
    if [x.shape for x in expected] != [x.shape for x in found]:
        return False
    return all(_close(*pair) for pair in zip(expected, found, strict=True))


def _close(expected: Tensor, found: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0.0, atol=TOLERANCE * scale)
