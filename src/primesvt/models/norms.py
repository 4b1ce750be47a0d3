"""Norms with running statistics: found by what a module computes, whatever its class is called."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Protocol, TypeGuard, cast

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

__all__ = ["Norm", "affine_of", "is_norm", "norms_of", "time_axes"]


class Norm(Protocol):
    """What norms with running statistics have: mean and variance ``[C]`` and a small number."""

    running_mean: Tensor
    running_var: Tensor
    eps: float


# Their forwards are known to be batch norms in evaluation mode.
_PLAIN = frozenset(
    kind.forward
    for kind in (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(layer.BatchNorm1d, layer.BatchNorm2d, layer.BatchNorm3d),
    )
)
_KNOWN: dict[tuple[Any, ...], bool] = {}


def is_norm(module: nn.Module) -> TypeGuard[Norm]:
    """Whether a module, in evaluation mode, standardises every channel by running statistics.

    A class that is not known is run: where its statistics and its input move together, its output
    must stay; where the statistics move alone, it must not. So subclasses with a factor of their
    own count (tdBN, Zheng et al., AAAI 2021; TEBN, Duan et al., NeurIPS 2022), and norms of one's
    own that keep ``running_mean``, ``running_var`` and ``eps``.

    Example:
        >>> is_norm(nn.SyncBatchNorm(2)), is_norm(nn.LayerNorm(2)), is_norm(nn.Linear(2, 2))
        (True, False, False)
    """
    mean, variance = (getattr(module, n, None) for n in ("running_mean", "running_var"))
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return False
    if mean.ndim != 1 or mean.shape != variance.shape:
        return False
    if not isinstance(getattr(module, "eps", None), float):
        return False
    if _is_plain(module):
        return True
    plain = {n: v for n, v in vars(module).items() if isinstance(v, bool | int | float | str)}
    forward = getattr(module.forward, "__func__", module.forward)
    key = (forward, len(mean), *sorted(plain.items()))  # a class may have modes
    if key not in _KNOWN:
        _KNOWN[key] = any(_standardises(twin, x) for twin, x in _trials(module))
    return _KNOWN[key]


def _is_plain(module: nn.Module) -> bool:
    return type(module).forward in _PLAIN and "forward" not in vars(module)


def norms_of(model: nn.Module) -> dict[str, Norm]:
    """The norms of a network that have running statistics, by name.

    Example:
        >>> list(norms_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1']
    """
    return {name: module for name, module in model.named_modules() if is_norm(module)}


def time_axes(norm: object) -> int:
    """Number of axes in front of the samples: one for SpikingJelly's norms of sequences."""
    return int(getattr(norm, "step_mode", "s") == "m")


def affine_of(norm: Norm) -> tuple[Tensor, Tensor] | None:
    """Scale and shift ``[C]`` of a norm in evaluation mode, in double precision.

    ``None`` where it computes something else than one scale and one shift per channel, such as a
    scale of every time step.

    Example:
        >>> class Half(nn.BatchNorm1d):
        ...     def forward(self, x):
        ...         return super().forward(x) / 2
        >>> scale, shift = affine_of(Half(1, eps=0.0).eval())
        >>> scale.item(), shift.item()
        (0.5, 0.0)
    """
    module = cast(nn.Module, norm)
    if module._forward_hooks or module._forward_pre_hooks:
        return None  # they may change what goes in and comes out
    if _is_plain(module):
        return _affine(norm)
    for twin, x in _trials(module):
        dim = 1 + time_axes(module)
        with torch.no_grad():
            at_zero, at_one = twin(torch.zeros_like(x)), twin(torch.ones_like(x))
            found = twin(x)
        others = [d for d in range(x.ndim) if d != dim]
        shift, scale = at_zero.mean(others), (at_one - at_zero).mean(others)
        ones = (1,) * (x.ndim - 1 - dim)
        expected = x * scale.view(-1, *ones) + shift.view(-1, *ones)
        if expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-9, atol=1e-9):
            return scale, shift
    return None


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _trials(module: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Copies in double precision, each with an input of a shape that it can read."""
    generator = torch.Generator().manual_seed(0)
    channels = len(cast(Norm, module).running_mean)
    own = {len(p) for p in module.parameters(recurse=False) if p.ndim and p.numel() == len(p)}
    times = [()] if not time_axes(module) else [(n,) for n in sorted({2, 3} | own)]
    for time in times:
        for space in ((3, 3), (), (3,), (2, 3, 3)):
            x = torch.randn(*time, 4, channels, *space, generator=generator, dtype=torch.float64)
            try:
                twin = copy.deepcopy(module).cpu().double().eval()
                with torch.no_grad():
                    found = twin(x)
            except Exception:  # it does not read this shape
                continue
            if isinstance(found, Tensor) and found.shape == x.shape:
                yield twin, x


def _standardises(twin: nn.Module, x: Tensor) -> bool:
    norm = cast(Norm, twin)
    ones = (1,) * (x.ndim - 2 - time_axes(twin))

    def along(values: Tensor) -> Tensor:
        return values.view(-1, *ones)

    with torch.no_grad():
        for parameter in twin.parameters():  # of zeros, nothing would show
            parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
        before = twin(x)
        mean, deviation = norm.running_mean.clone(), (norm.running_var + norm.eps).sqrt()
        norm.running_mean += 1.5
        norm.running_var.mul_(3).add_(0.5)
        wider = (norm.running_var + norm.eps).sqrt()
        moved = (x - along(mean)) / along(deviation) * along(wider) + along(norm.running_mean)
        alike = torch.allclose(twin(moved), before, rtol=1e-9, atol=1e-9)
        return bool(alike and not torch.allclose(twin(x), before, rtol=1e-3, atol=1e-3))
