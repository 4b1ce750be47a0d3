"""Spiking neurons: the one place that knows SpikingJelly."""

from __future__ import annotations

from collections.abc import Iterator

from spikingjelly.activation_based import base, neuron, surrogate
from torch import nn

__all__ = ["lif", "neurons", "reset"]


def lif(threshold: float = 1.0, *, tau: float = 2.0) -> nn.Module:
    """Make a leaky integrate-and-fire layer that turns ``[T, ...]`` currents into spikes.

    Per time step ``v += (x - v) / tau``, a spike where ``v >= threshold``, then hard reset to
    zero (detached from autograd); surrogate gradient: sigmoid with slope 4. The membrane potential
    follows the input's dtype and device, which also select the fastest backend.

    Example:
        >>> import torch
        >>> lif()(torch.ones(3, 1) * 1.5).flatten().tolist()
        [0.0, 1.0, 0.0]

    Source: Yao et al., "Spike-driven Transformer V2" (arXiv 2404.03663), and its official code.
    """
    layer: nn.Module = neuron.LIFNode(
        tau=tau,
        v_threshold=threshold,
        v_reset=0.0,
        surrogate_function=surrogate.Sigmoid(alpha=4.0),
        detach_reset=True,
        step_mode="m",
    )
    return layer


def neurons(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every SpikingJelly neuron inside any module: stateful, and without weight matrices.

    Example:
        >>> len(list(neurons(nn.Sequential(nn.Linear(2, 2), lif()))))
        1
    """
    for module in model.modules():
        if isinstance(module, base.MemoryModule) and all(p.ndim < 2 for p in module.parameters()):
            yield module


def reset(model: nn.Module) -> None:
    """Forget the membrane potentials of every SpikingJelly neuron inside any module.

    Example:
        >>> import torch
        >>> layer = lif()
        >>> _ = layer(torch.ones(1, 2))
        >>> reset(layer)
        >>> layer.v
        0.0
    """
    for module in model.modules():
        if isinstance(module, base.MemoryModule):
            module.reset()
