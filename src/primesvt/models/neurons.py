"""Spiking neurons; only this module and ``fast_paths`` build on SpikingJelly's neuron classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from spikingjelly.activation_based import base, surrogate
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from primesvt.models.fast_paths import LIF, PLIF

__all__ = [
    "AcrossImages",
    "IntegerNeuron",
    "Spike",
    "Surrogate",
    "integer",
    "lif",
    "neurons",
    "noting_neurons",
    "own_neurons",
    "plif",
]

Spike = Callable[..., nn.Module]  # spike(threshold=1.0) makes a neuron layer
Surrogate = Literal["sigmoid", "atan"]
Rounding = Literal["even", "up"]


def lif(threshold: float = 1.0, *, tau: float = 2.0, gradient: Surrogate = "sigmoid") -> nn.Module:
    """Make a leaky integrate-and-fire layer that turns ``[T, ...]`` currents into spikes.

    Per time step ``v += (x - v) / tau``, a spike where ``v >= threshold``, then hard reset to
    zero (detached from autograd); surrogate gradient: sigmoid with slope 4, or arc tangent. The
    membrane potential follows the input's dtype and device, which also select the fastest backend.

    Example:
        >>> import torch
        >>> lif()(torch.ones(3, 1) * 1.5).flatten().tolist()
        [0.0, 1.0, 0.0]

    Source: Yao et al., "Spike-driven Transformer V2" (arXiv 2404.03663), and its official code.
    """
    layer: nn.Module = LIF(tau=tau, **_settings(threshold, gradient))
    return layer


def plif(threshold: float = 1.0, *, tau: float = 2.0, gradient: Surrogate = "sigmoid") -> nn.Module:
    """Make a LIF layer whose leak is learned: ``v += (x - v) * sigmoid(w)``, ``w`` a scalar.

    ``tau`` is where training starts (2 is ``w = 0``).

    Example:
        >>> [(name, abs(w.item())) for name, w in plif().named_parameters()]
        [('w', 0.0)]

    Source: Fang et al., "Incorporating Learnable Membrane Time Constant ..." (arXiv 2007.05785).
    """
    layer: nn.Module = PLIF(init_tau=tau, **_settings(threshold, gradient))
    return layer


def _settings(threshold: float, gradient: Surrogate) -> dict[str, Any]:
    slopes = {"sigmoid": lambda: surrogate.Sigmoid(alpha=4.0), "atan": surrogate.ATan}
    return {
        "v_threshold": threshold,
        "v_reset": 0.0,
        "surrogate_function": slopes[gradient](),
        "detach_reset": True,
        "step_mode": "m",
    }


class IntegerNeuron(nn.Module):
    """Stateless neuron with integer levels: ``round(clamp(x, 0, levels)) / norm``.

    It stands for ``levels`` virtual time steps. ``rounding`` says where an exact half goes: to the
    ``"even"`` neighbour, or ``"up"``. Its gradient is one between 0 and ``levels`` (with
    ``"even"`` on the borders too) and zero outside.

    Args:
        levels: the largest integer.
        norm: what integers are divided by; ``levels`` when not given.
        rounding: ``"even"`` or ``"up"``.

    Example:
        >>> import torch
        >>> x = torch.tensor([-1.0, 0.5, 1.5, 9.0])
        >>> IntegerNeuron(4)(x).tolist(), IntegerNeuron(4, norm=1, rounding="up")(x).tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 1.0, 2.0, 4.0])

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061), spike firing
    approximation; the two rounding rules are those of its official base and large models.
    """

    def __init__(
        self, levels: int = 4, *, norm: float | None = None, rounding: Rounding = "even"
    ) -> None:
        super().__init__()
        self.levels = levels
        self.norm = float(levels if norm is None else norm)
        self.rounding: Rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        levels: Tensor = _Levels.apply(x, self.levels, self.rounding)
        return levels / self.norm

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"levels={self.levels}, norm={self.norm:g}, rounding={self.rounding}"


def integer(
    threshold: float = 1.0,
    *,
    levels: int = 4,
    norm: float | None = None,
    rounding: Rounding = "even",
) -> nn.Module:
    """Make an ``IntegerNeuron``, as ``lif`` makes its layer.

    It has no threshold: any other than one is a ``ValueError``.

    Example:
        >>> integer(levels=8, rounding="up")
        IntegerNeuron(levels=8, norm=8, rounding=up)
    """
    if threshold != 1.0:
        raise ValueError(
            f"threshold is {threshold!r}, but an integer neuron has none: leave it at 1"
        )
    return IntegerNeuron(levels, norm=norm, rounding=rounding)


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, rounding: Rounding) -> Tensor:
        ctx.save_for_backward(x)
        ctx.levels, ctx.closed = levels, rounding == "even"
        clamped = x.clamp(0, levels)
        return clamped.round() if rounding == "even" else (clamped + 0.5).floor()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        inside = (x >= 0) & (x <= ctx.levels) if ctx.closed else (x > 0) & (x < ctx.levels)
        return grads[0] * inside, None, None


def neurons(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every spiking neuron inside any module: without weight matrices of its own.

    Example:
        >>> len(list(neurons(nn.Sequential(nn.Linear(2, 2), lif(), IntegerNeuron()))))
        2
    """
    for module in model.modules():
        stateful = isinstance(module, base.MemoryModule)
        if isinstance(module, IntegerNeuron) or (
            stateful and all(p.ndim < 2 for p in module.parameters())
        ):
            yield module


UNIT = "_primesvt_spike"  # of a neuron that people wrote: the value of one spike
LEVELS = 16  # different values, at most, that spikes and their counts have


@contextmanager
def noting_neurons(model: nn.Module) -> Iterator[None]:
    """Note which modules that people wrote are seen to fire in a ``with`` block.

    Such a module has no weight matrix, and turns real numbers into as many small whole multiples of
    one value, zero among them: spikes, counts of spikes, or spikes of either sign.

    Example:
        >>> class Threshold(nn.Module):
        ...     def forward(self, x):
        ...         return (x > 0.5).float()
        >>> net = nn.Sequential(nn.Linear(2, 8), Threshold())
        >>> with noting_neurons(net):
        ...     _ = net(torch.randn(16, 2))
        >>> [name for name, _, _ in own_neurons(net)]
        ['1']
    """

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        given = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if given and made and given[0].shape == made[0].shape and _levels(given[0]) is None:
            unit = _levels(made[0])
            if unit is not None:
                module.__dict__[UNIT] = unit

    candidates = [
        module
        for module in model.modules()
        if not type(module).__module__.startswith("torch.nn.")
        and not isinstance(module, base.MemoryModule | IntegerNeuron)
        and all(p.ndim < 2 for p in module.parameters())
    ]
    handles = [module.register_forward_hook(note) for module in candidates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def own_neurons(model: nn.Module) -> Iterator[tuple[str, nn.Module, float]]:
    """Modules that people wrote and that were seen to fire: name, module, value of one spike.

    Of modules inside each other it is the innermost.
    """
    found = [(n, m, vars(m)[UNIT]) for n, m in model.named_modules() if UNIT in vars(m)]
    for name, module, unit in found:
        if not any(
            other.startswith(f"{name}." if name else "") for other, m, _ in found if m is not module
        ):
            yield name, module, unit


def _levels(values: Tensor) -> float | None:
    """The value of which all are small whole multiples, zero among them; ``None`` without one."""
    if not values.is_floating_point() or not values.numel():
        return None
    found = values.detach().unique()
    if not 2 <= len(found) <= LEVELS or not bool((found == 0).any()):
        return None
    unit = float(found.abs()[found != 0].min())
    counts = found / unit
    fits = torch.allclose(counts, counts.round(), atol=1e-4) and float(counts.abs().max()) < LEVELS
    return unit if fits else None


class AcrossImages(nn.Module):
    """A neuron that treats the images of a batch as further time steps.

    ``[T, B, ...]`` to the same shape: the membrane runs over ``T * B`` steps, first all images of
    time step 0, then all of step 1. So an image's spikes depend on those before it in the batch.

    Example:
        >>> neuron = AcrossImages(lif)
        >>> neuron(torch.tensor([[1.5, 1.5, 1.5]])).tolist()
        [[0.0, 1.0, 0.0]]

    Source: official code of QKFormer, spiking self attention; reported there as issue 14.
    """

    def __init__(self, spike: Spike = lif) -> None:
        super().__init__()
        self.lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(self.lif(x.flatten(0, 1)), 0, x.shape[:2])
