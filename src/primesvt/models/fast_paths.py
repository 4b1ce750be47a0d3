"""Faster neurons and pooling for inference, with the same values as SpikingJelly and PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = ["LIF", "PLIF", "HalvingMaxPool", "as_evaluated", "exported", "forgetting", "unwatched"]


class HalvingMaxPool(nn.MaxPool2d):
    """Max pooling, 3x3, stride two, padded by one: ``[B, C, H, W]`` to half of both, rounded up.

    On a CPU, where no gradient is recorded, rows and then columns are compared as whole slices:
    a maximum rounds nothing, so the values are those of ``nn.MaxPool2d``. Images with channels
    last, which PyTorch pools quickly itself, are left to it, and so is whatever is watched.

    Example:
        >>> with torch.no_grad():
        ...     HalvingMaxPool()(torch.arange(16.0).view(1, 1, 4, 4)).tolist()
        [[[[5.0, 7.0], [13.0, 15.0]]]]
    """

    def __init__(self) -> None:
        super().__init__(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool images; the result has the memory format that PyTorch gives it."""
        plain = type(x) is Tensor and x.device.type == "cpu" and x.is_floating_point()
        images = x.ndim == 4 and x.is_contiguous() and x.numel() > 0
        if plain and images and unwatched() and not exported():
            return _halved(_halved(x, dim=2), dim=3)
        pooled: Tensor = super().forward(x)
        return pooled


def _halved(x: Tensor, *, dim: int) -> Tensor:
    """Maxima of places ``2 i - 1``, ``2 i`` and ``2 i + 1`` along an axis, where they exist."""
    even = x[(slice(None),) * dim + (slice(0, None, 2),)]
    odd = x[(slice(None),) * dim + (slice(1, None, 2),)]
    out = even.clone(memory_format=torch.contiguous_format)
    for begin, those in ((0, odd), (1, odd.narrow(dim, 0, even.shape[dim] - 1))):
        part = out.narrow(dim, begin, those.shape[dim])
        torch.maximum(part, those, out=part)
    return out


# Of a time step: (x, out) writes the share of x that flows in, (x, v, spare) adds it to v.
Flow = tuple[Callable[[Tensor, Tensor], Any], Callable[[Tensor, Tensor, Tensor], Any]]
_EXACT = (torch.float32, torch.float64)  # half precision rounds the threshold otherwise
# Lists, not context variables: those break a compiled forward into a dozen graphs (PyTorch 2.15).
_evaluated: list[bool] = []
_forgetting: list[bool] = []


class LIF(neuron.LIFNode):  # type: ignore[misc]
    """SpikingJelly's ``LIFNode``, several times faster where no gradient is recorded.

    Spikes and membrane potentials are those of ``LIFNode``, bit for bit. Anything but several
    time steps on a CPU in single or double precision, with a hard reset to zero and a decaying
    input, is left to it: training, CUDA, tracing, stored potentials.

    Example:
        >>> layer = LIF(detach_reset=True, step_mode="m")
        >>> with torch.no_grad():
        ...     spikes = layer(torch.tensor([[1.5], [1.5], [0.5]]))
        >>> spikes.flatten().tolist(), layer.v.tolist()
        ([0.0, 1.0, 0.0], [0.25])
    """

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Spikes of all time steps."""
        usual = bool(args or kwargs) or not isinstance(self.tau, float)
        if usual or not _applies(self, x_seq):
            return super().multi_step_forward(x_seq, *args, **kwargs)
        if len(x_seq) == 1 and _forgets(self) and _divides_exactly(self):
            spikes = _like_stacked(x_seq)
            return torch.ge(x_seq, self.v_threshold * self.tau, out=spikes)
        return _run(self, x_seq, _divided(_scalar(self.tau, x_seq.dtype)))

    def reset(self) -> None:
        """Forget the potentials, where there are any."""
        if not _rests(self):
            super().reset()


class PLIF(neuron.ParametricLIFNode):  # type: ignore[misc]
    """SpikingJelly's ``ParametricLIFNode``, several times faster without gradients; see ``LIF``.

    Example:
        >>> layer = PLIF(detach_reset=True, step_mode="m")
        >>> with torch.no_grad():
        ...     layer(torch.tensor([[1.5], [1.5]])).flatten().tolist()
        [0.0, 1.0]
    """

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Spikes of all time steps."""
        usual = bool(args or kwargs) or self.w.ndim > 0 or self.w.dtype != x_seq.dtype
        if usual or not _applies(self, x_seq):
            return super().multi_step_forward(x_seq, *args, **kwargs)
        return _run(self, x_seq, _multiplied(self.w.sigmoid()))

    def reset(self) -> None:
        """Forget the potentials, where there are any."""
        if not _rests(self):
            super().reset()


def unwatched() -> bool:
    """Whether only values matter: no gradient, no compiler, and no dispatch mode is active.

    Otherwise a channel trace or a memory count follows SpikingJelly's operators, step by step.

    Example:
        >>> with torch.no_grad():
        ...     unwatched()
        True
    """
    return bool(_evaluated) or not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
    )


@contextmanager
def as_evaluated() -> Iterator[None]:
    """Run the operators of evaluation in a ``with`` block, also while an exporter records them.

    Example:
        >>> with as_evaluated():
        ...     unwatched()
        True
    """
    _evaluated.append(True)
    try:
        yield
    finally:
        _evaluated.pop()


def exported() -> bool:
    """Whether an exporter records the operators of evaluation, inside ``as_evaluated``."""
    return bool(_evaluated)


@contextmanager
def forgetting() -> Iterator[None]:
    """Do not store the membrane potentials of neurons that start from rest, in a ``with`` block.

    Spikes are the same. A layer with a forward hook keeps its potentials.

    Example:
        >>> layer = LIF(detach_reset=True, step_mode="m")
        >>> with torch.no_grad(), forgetting():
        ...     spikes = layer(torch.tensor([[1.5], [1.5], [0.5]]))
        >>> spikes.flatten().tolist(), layer.v
        ([0.0, 1.0, 0.0], 0.0)
    """
    _forgetting.append(True)
    try:
        yield
    finally:
        _forgetting.pop()


def _rests(layer: neuron.BaseNode) -> bool:
    """Whether a reset would change nothing; this check takes a tenth of a reset's time."""
    memories, rest = layer._memories, layer._memories_rv
    v = memories["v"]
    stored = len(memories) > 1 or layer.v_seq is not None
    return not stored and type(v) is float and v == rest["v"]


def _forgets(layer: neuron.BaseNode) -> bool:
    return bool(_forgetting) and isinstance(layer.v, float) and not layer._forward_hooks


def _divides_exactly(layer: neuron.LIFNode) -> bool:
    """``x / tau >= threshold`` just where ``x >= tau * threshold``: nothing is rounded."""
    power_of_two = math.frexp(layer.tau)[0] == 0.5
    return power_of_two and isinstance(layer.v_threshold, float) and layer.v_threshold > 1e-6


def _applies(layer: neuron.BaseNode, x: Tensor) -> bool:
    """Whether the fast path gives the same values as SpikingJelly's own code."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in _EXACT
    several = x.ndim > 1 and x.numel() > 0
    return plain and several and unwatched() and _usual(layer) and _fits(layer.v, x)


def _usual(layer: neuron.BaseNode) -> bool:
    """Whether a layer has the settings of the fast path; ``spiking`` off makes outputs smooth."""
    spikes = type(layer.surrogate_function) in (surrogate.Sigmoid, surrogate.ATan)
    return (
        isinstance(layer.v_threshold, float)
        and layer.v_reset == 0.0
        and layer.decay_input is True
        and not layer.store_v_seq
        and layer._neuron_precision is None
        and spikes
        and layer.surrogate_function.spiking is True
    )


def _fits(v: Any, x: Tensor) -> bool:
    """Whether the membrane potentials are at rest, or left by an earlier call of the same shape."""
    if isinstance(v, float):
        return v == 0.0
    return type(v) is Tensor and (v.shape, v.dtype, v.device) == (x.shape[1:], x.dtype, x.device)


@lru_cache
def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """A scalar tensor, shared by all calls: it must not be written to."""
    return torch.tensor(value, dtype=dtype)


def _divided(tau: Tensor) -> Flow:
    def charge(x: Tensor, v: Tensor, spare: Tensor) -> None:
        torch.sub(x, v, out=spare)
        torch.addcdiv(v, spare, tau, out=v)  # rounds the quotient, then the sum: SpikingJelly's way

    return lambda x, v: torch.div(x, tau, out=v), charge


def _multiplied(rate: Tensor) -> Flow:
    def charge(x: Tensor, v: Tensor, spare: Tensor) -> None:
        torch.sub(x, v, out=spare)
        v.add_(spare.mul_(rate))  # addcmul may fuse the two, and round once

    return lambda x, v: torch.mul(x, rate, out=v), charge


def _run(layer: neuron.BaseNode, x: Tensor, flow: Flow) -> Tensor:
    """Run a neuron layer on all time steps; state and memory format end as with SpikingJelly."""
    (begin, charge), forgets, last = flow, _forgets(layer), len(x) - 1
    before, threshold = layer.v, layer.v_threshold
    steps, spikes = x.unbind(0), _like_stacked(x)
    v = torch.empty_like(steps[0])
    fresh = isinstance(before, float)
    spare = v if fresh and len(steps) == 1 else torch.empty_like(v)
    if not fresh:
        v.copy_(before)
    for step, (current, fired) in enumerate(zip(steps, spikes.unbind(0), strict=True)):
        if fresh:  # 0 + (x - 0) / tau
            begin(current, v)
            fresh = False
        else:
            charge(current, v, spare)
        torch.ge(v, threshold, out=fired)
        if step < last or not forgets:
            torch.addcmul(v, v, fired, value=-1, out=v)  # v - v * spike: exact, spikes are 0 or 1
    if not forgets:
        layer.v = v
    return spikes


def _like_stacked(x: Tensor) -> Tensor:
    """An uninitialised tensor in the memory format of ``torch.stack`` of all time steps.

    The kernel of a convolution behind it, and so its last bit, may depend on the layout.
    """
    step = x[0]
    if step.ndim == 4 and not step.is_contiguous():
        last = step.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if last else torch.contiguous_format
        merged = torch.empty(x.shape[:2].numel(), *x.shape[2:], dtype=x.dtype, memory_format=form)
        return torch.unflatten(merged, 0, x.shape[:2])
    return torch.empty(x.shape, dtype=x.dtype)
