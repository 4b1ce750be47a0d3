"""One call of a user's score, watched: the inputs that it gives a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from primesvt.calibration import Calibration
from primesvt.evaluation.evaluator import Measurement
from primesvt.models.forward import batch_of, first_samples

__all__ = ["Watched", "watch"]

SAMPLES = 256  # inputs kept of one call, for statistics


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What a measurement gave, and the batches of inputs that the network saw meanwhile."""

    measurement: Measurement
    batches: list[tuple[Any, ...]] = field(repr=False)

    def calibration(self, model: nn.Module) -> Calibration | None:
        """The inputs as calibration inputs, where there were any."""
        if not self.batches:
            return None
        device = next((p.device for p in model.parameters()), None)
        return Calibration(source=partial(iter, self.batches), device=device)


def watch(
    model: nn.Module, measure: Callable[[nn.Module], Measurement], *, samples: int = SAMPLES
) -> Watched:
    """Measure a network, and keep the first inputs that it is given.

    Example:
        >>> import torch
        >>> def score(network):
        ...     return Measurement(value=float(network(torch.ones(3, 2)).sum()))
        >>> seen = watch(nn.Identity(), score)
        >>> seen.measurement.value, seen.batches[0][0].shape
        (6.0, torch.Size([3, 2]))
    """
    seen: list[tuple[Any, ...]] = []
    left = samples

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal left
        if left > 0 and args:
            seen.append(first_samples(args, left))
            left -= batch_of(seen[-1])

    handle = model.register_forward_pre_hook(note)
    try:
        return Watched(measurement=measure(model), batches=seen)
    finally:
        handle.remove()
