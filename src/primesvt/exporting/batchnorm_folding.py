"""Fold batch norms into the layer in front of them, or replace them by a scale and a shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from primesvt.calibration.wiring import ModuleGraph, trace_modules
from primesvt.models.attention import PaddedBN, RepConv
from primesvt.models.forward import LAYERS, Layer
from primesvt.models.norms import Norm, affine_of, is_norm, norms_of, time_axes

__all__ = ["Folded", "ScaleShift", "fold_norms"]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Names of the batch norms that went into a layer, and of those left as a scale and a shift."""

    folded: tuple[str, ...]
    scaled: tuple[str, ...]


class ScaleShift(nn.Module):
    """A batch norm of evaluation mode as one scale and shift per channel: ``x * scale + shift``.

    Example:
        >>> ScaleShift(torch.tensor([2.0]), torch.tensor([1.0]))(torch.ones(2, 1)).tolist()
        [[3.0], [3.0]]
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, *, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        ones = (1,) * (x.ndim - 1 - self.axis)
        return x * self.scale.view(-1, *ones) + self.shift.view(-1, *ones)


def fold_norms(model: nn.Module, example: tuple[Any, ...], *, keep: bool = False) -> Folded:
    """Fold the batch norms of a network in evaluation mode into its layers, in place.

    Norms are told by what they compute (``primesvt.models.norms``); one that is no scale and shift
    per channel is left as it is. One that is all that reads a convolution or a linear layer,
    perhaps through other such norms or a view, goes into its weight and bias:
    ``W g / sqrt(var + eps)`` and
    ``(b - mean) g / sqrt(var + eps) + beta``, computed in double precision and rounded once. Any
    other becomes a ``ScaleShift``. The padding of a ``RepConv`` moves to its depthwise layer, which
    spares the 1x1 convolution in front the border.

    Args:
        model: with its own copy of every weight.
        example: inputs that show which layer feeds which norm.
        keep: fold nothing, make every norm a ``ScaleShift``.

    Raises:
        ValueError: a norm without running statistics, which depends on the batch.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
        >>> fold_norms(net, (torch.zeros(4, 2),))
        Folded(folded=('1',), scaled=())
        >>> net[1]
        Identity()
    """
    wiring = trace_modules(model, example)
    sources = {} if keep else _sources(model, wiring)
    _check_statistics(model)
    norms = {n: m for n, m in norms_of(model).items() if affine_of(m) is not None}
    places = {name: place for place, name in enumerate(wiring.order)}
    with torch.no_grad():  # in the order in which they run; those that never do come last
        for name in sorted(norms, key=lambda name: places.get(name, len(places))):
            _replace(model, name, norms[name], sources.get(name))
    folded = tuple(name for name in norms if name in sources)
    return Folded(folded=folded, scaled=tuple(name for name in norms if name not in sources))


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is None:
            raise ValueError(
                f"{name} has no running statistics, so its answer depends on the batch and cannot"
                " be written down; make it with track_running_stats=True"
            )


def _sources(model: nn.Module, wiring: ModuleGraph) -> dict[str, str]:
    """Norm -> the layer that it can be folded into."""
    fed = [name for readers in wiring.feeds.values() for name in readers]
    found: dict[str, str] = {}
    for name in wiring.order:
        readers = wiring.feeds.get(name, ())
        source = found.get(name, name)
        if len(readers) == 1 and fed.count(readers[0]) == 1 and _takes(model, source, readers[0]):
            found[readers[0]] = source
    return found


def _takes(model: nn.Module, source: str, reader: str) -> bool:
    """Whether a norm can be folded into a layer."""
    layer, norm = model.get_submodule(source), model.get_submodule(reader)
    if not isinstance(layer, LAYERS) or not is_norm(norm) or affine_of(norm) is None:
        return False
    own = "weight" in layer._parameters  # a parametrized weight is computed anew each time
    if not own or len(norm.running_mean) != len(layer.weight):
        return False
    if not isinstance(_owner(model, reader), PaddedBN):
        return True
    # The padding can move in front of a 1x1 convolution only.
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), 0)
    )


def _replace(model: nn.Module, name: str, norm: Norm, source: str | None) -> None:
    """Fold a norm into the layer ``source``, or make it a ``ScaleShift`` where there is none."""
    affine = affine_of(norm)
    assert affine is not None
    scale, shift = affine
    owner = _owner(model, name)
    if source is None:
        if not isinstance(owner, PaddedBN):  # that one reads its norm's statistics
            dtype = norm.running_mean.dtype
            module = ScaleShift(scale.to(dtype), shift.to(dtype), axis=1 + time_axes(norm))
            _put(model, name, module, norm)
        return
    layer = model.get_submodule(source)
    assert isinstance(layer, LAYERS)
    _into(layer, scale, shift)
    _put(model, name, nn.Identity(), norm)
    if isinstance(owner, PaddedBN) and isinstance(layer, nn.Conv2d):
        pad = name.rpartition(".")[0]
        model.set_submodule(pad, nn.Identity())
        _pad(layer, _owner(model, pad))


def _put(model: nn.Module, name: str, module: nn.Module, norm: Norm) -> None:
    """Put a module in a norm's place; a forward may ask it for its step mode."""
    if hasattr(norm, "step_mode"):
        vars(module)["step_mode"] = norm.step_mode
    model.set_submodule(name, module)


def _pad(layer: nn.Conv2d, owner: nn.Module) -> None:
    """Move the padding of a ``PaddedBN`` to the 1x1 convolution in front, or to the one behind."""
    behind = owner.depthwise if isinstance(owner, RepConv) else None
    if not isinstance(behind, nn.Conv2d) or not _shifts(behind):
        # A 1x1 convolution makes of padded zeros what the norm made of a zero input.
        layer.padding = (1, 1)
        return
    # The bias lies on every pixel, border included, so behind a kernel it is a constant again.
    assert layer.bias is not None
    constant = layer.bias * behind.weight.sum((1, 2, 3))
    behind.bias = nn.Parameter(constant, requires_grad=False)
    behind.padding, layer.bias = (1, 1), None


def _into(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    weight = layer.weight
    ones = (1,) * (weight.ndim - 1)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    layer.weight = nn.Parameter(
        (weight.double() * scale.view(-1, *ones)).to(weight.dtype), requires_grad=False
    )
    layer.bias = nn.Parameter((bias * scale + shift).to(weight.dtype), requires_grad=False)


def _shifts(layer: nn.Conv2d) -> bool:
    """Whether a constant on its input becomes one constant per channel."""
    plain = layer.bias is None and "weight" in layer._parameters
    return plain and layer.groups == layer.in_channels == layer.out_channels


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
