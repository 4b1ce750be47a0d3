"""Networks that really fire, and what a test may measure on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from primesvt.models import reset

Hook = Callable[[Tensor], Tensor]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def neurons(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, neuron.BaseNode)}


def membrane(module: nn.Module, current: Tensor) -> tuple[Tensor, Tensor]:
    """Our own LIF: potentials before the reset and spikes, for currents ``[T, ...]``."""
    steps = current if module.step_mode == "m" else current[None]
    v, potentials, spikes = torch.zeros_like(steps[0]), [], []
    for x in steps:
        v = v + (x - v) / module.tau
        spike = (v >= module.v_threshold).to(v)
        potentials.append(v)
        spikes.append(spike)
        v = v * (1 - spike)
    return torch.stack(potentials), torch.stack(spikes)


def excite(model: nn.Module, x: Tensor, seed: int, *, low: float = 0.02, high: float = 0.7) -> bool:
    """Random batch norms with re-estimated statistics; True if every neuron fires enough.

    Neurons that no batch norm feeds (attention, classifier) get the threshold that their input asks
    for.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS):
            scale = torch.rand(module.weight.shape, generator=generator, dtype=torch.float64)
            shift = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
            module.weight.data.copy_(1.0 + scale)
            module.bias.data.copy_(0.4 + 0.4 * shift)
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()
        for _ in range(1):
            reset(model)
            model(x)
        reset(model)
        model.eval()
        with before_neurons(model, _tune):
            model(x)
        reset(model)
        rates = [float(s.mean()) for s in record(model, x)[1].values()]
    return all(low <= rate <= high for rate in rates)


def _tune(module: nn.Module, current: Tensor) -> Tensor:
    """Move a threshold only where the default leaves the neuron silent or saturated."""
    rate = float(membrane(module, current)[1].mean())
    if not 0.05 <= rate <= 0.5:
        first = (current / module.tau).flatten()
        module.v_threshold = max(float(first.quantile(0.75)), 1e-3) * 1.0003
    return current


@contextmanager
def before_neurons(
    model: nn.Module, action: Callable[[nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (action(module, args[0]),)

    handles = [m.register_forward_pre_hook(hook) for m in neurons(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(model: nn.Module, x: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Currents into every neuron, its spikes (our own simulation, compared), and the output."""
    currents: dict[str, Tensor] = {}
    spikes: dict[str, Tensor] = {}
    handles = []
    for name, module in neurons(model).items():

        def hook(m: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            currents[name] = args[0].detach().clone()
            spikes[name] = membrane(m, args[0].detach())[1].reshape(out.shape)

        handles.append(module.register_forward_hook(hook, prepend=True))
    reset(model)
    with torch.no_grad():
        out = model(x)
    reset(model)
    for handle in handles:
        handle.remove()
    return currents, spikes, out


def margin(model: nn.Module, currents: dict[str, Tensor]) -> float:
    """Smallest distance of a membrane potential from its threshold, ties excepted."""
    smallest = float("inf")
    for name, module in neurons(model).items():
        if name not in currents:
            continue
        gap = (membrane(module, currents[name])[0] - module.v_threshold).abs()
        gap = gap[gap > 0]
        if gap.numel():
            smallest = min(smallest, float(gap.min()))
    return smallest


def silence(module: nn.Module, channels: Any, dim: int = 2) -> None:
    """Set the spikes that a module puts out to zero in some channels."""
    gone = torch.as_tensor(channels, dtype=torch.long)

    def hook(_m: nn.Module, _a: Any, out: Tensor) -> Tensor:
        return out.index_fill(dim, gone, 0.0)

    module.register_forward_hook(hook)


def same(found: Tensor, wanted: Tensor) -> bool:
    """Equal to 1e-9 relative, in float64."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    scale = max(float(wanted.abs().max()), 1e-3) if wanted.numel() else 1.0
    return bool(torch.allclose(found, wanted, rtol=1e-9, atol=1e-9 * scale))


def clone(model: nn.Module) -> nn.Module:
    reset(model)
    return copy.deepcopy(model)


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {
        n: t.detach().cpu().contiguous().numpy().tobytes() for n, t in model.state_dict().items()
    }
