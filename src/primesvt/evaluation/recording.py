"""The inputs that a user's score function gives to a network, recorded while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from primesvt.calibration import CalibrationSet
from primesvt.evaluation.evaluator import Measurement
from primesvt.models.forward import batch_of, first_samples, hooked

__all__ = ["RecordedInputs", "record_inputs"]

SAMPLES = 256  # inputs kept of one call, for statistics


@dataclass(frozen=True, kw_only=True)
class RecordedInputs:
    """A measurement, and the batches of inputs that the network was given during it."""

    measurement: Measurement
    batches: list[tuple[Any, ...]] = field(repr=False)

    def calibration(self, model: nn.Module) -> CalibrationSet | None:
        """The inputs as calibration inputs, where there were any."""
        if not self.batches:
            return None
        device = next((p.device for p in model.parameters()), None)
        return CalibrationSet(source=partial(iter, self.batches), device=device)


def record_inputs(
    model: nn.Module, measure: Callable[[nn.Module], Measurement], *, samples: int = SAMPLES
) -> RecordedInputs:
    """Measure a network, and record the first inputs that it is given.

    Example:
        >>> import torch
        >>> def score(network):
        ...     return Measurement(value=float(network(torch.ones(3, 2)).sum()))
        >>> seen = record_inputs(nn.Identity(), score)
        >>> seen.measurement.value, seen.batches[0][0].shape
        (6.0, torch.Size([3, 2]))
    """
    batches: list[tuple[Any, ...]] = []
    left = samples

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal left
        if left > 0 and args:
            batches.append(first_samples(args, left))
            left -= batch_of(batches[-1])

    with hooked([model.register_forward_pre_hook(note)]):
        return RecordedInputs(measurement=measure(model), batches=batches)
