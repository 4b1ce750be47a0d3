"""Mean and variance of the input of every batch norm, for each calibration batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from primesvt.calibration.inputs import CalibrationSet
from primesvt.models.forward import evaluating, hooked
from primesvt.models.norms import Norm, norms_of, time_axes

__all__ = ["NormInput", "before_each", "norm_input", "seen_by"]


@dataclass(frozen=True, kw_only=True)
class NormInput:
    """Mean and variance ``[C]`` of a batch norm's input in one call, over ``count`` values each."""

    mean: Tensor
    variance: Tensor
    count: int


def norm_input(norm: Norm, x: Tensor) -> NormInput:
    """Mean and variance of one input of a batch norm, also of SpikingJelly's multi-step ones.

    Example:
        >>> found = norm_input(nn.BatchNorm1d(1), torch.tensor([[1.0], [3.0]]))
        >>> found.mean.item(), found.variance.item(), found.count
        (2.0, 1.0, 2)
    """
    merged = x.flatten(0, 1) if time_axes(norm) else x
    rows = merged.flatten(2) if merged.ndim > 2 else merged[:, :, None]
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    count = rows.shape[0] * rows.shape[2]
    mean = rows.sum(2).sum(0) / count
    # Ten times as fast as torch.var_mean over several axes on a CPU.
    spread = torch.linalg.vector_norm(rows - mean[:, None], dim=2)
    return NormInput(mean=mean, variance=spread.square().sum(0) / count, count=count)


def seen_by(
    model: nn.Module, calibration: CalibrationSet
) -> tuple[Mapping[str, list[NormInput]], ...]:
    """Statistics of the inputs of all batch norms: for every batch, norm -> one for each call.

    Example:
        >>> from primesvt.calibration import calibration_of
        >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> inputs = calibration_of(torch.ones(5, 1), batch_size=2)
        >>> [len(batch["0"]) for batch in seen_by(net, inputs)]
        [1, 1, 1]
    """
    batches: list[dict[str, list[NormInput]]] = []
    current: dict[str, list[NormInput]] = {}

    def note(name: str, norm: Norm, x: Tensor) -> None:
        current.setdefault(name, []).append(norm_input(norm, x))

    with evaluating(model), before_each(norms_of(model), note):
        for _ in calibration.run(model):
            batches.append({name: list(calls) for name, calls in current.items()})
            current.clear()
    return tuple(batches)


@contextmanager
def before_each(
    norms: Mapping[str, Norm], note: Callable[[str, Norm, Tensor], None]
) -> Iterator[None]:
    """Call ``note(name, norm, input)`` before every call of some norms, in a ``with`` block."""

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda norm, args: note(name, norm, args[0])

    modules = {name: cast(nn.Module, norm) for name, norm in norms.items()}
    with hooked(norm.register_forward_pre_hook(hook(name)) for name, norm in modules.items()):
        yield
