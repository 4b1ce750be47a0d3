"""Networks that really fire, and what a test may measure on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from primesvt.models import IntegerNeuron, reset

Hook = Callable[[Tensor], Tensor]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def neurons(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (neuron.BaseNode, IntegerNeuron)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


def leak(module: nn.Module) -> Any:
    """The part of its input that a neuron takes up in one time step."""
    if isinstance(module, neuron.ParametricLIFNode):
        return module.w.detach().sigmoid()
    return 1 / module.tau


def membrane(module: nn.Module, current: Tensor) -> tuple[Tensor, Tensor]:
    """Our own neurons: potentials before the reset and spikes, for currents ``[T, ...]``."""
    if isinstance(module, IntegerNeuron):
        clamped = current.clamp(0, module.levels)
        whole = clamped.round() if module.rounding == "even" else (clamped + 0.5).floor()
        return current, whole / module.norm
    steps = current if module.step_mode == "m" else current[None]
    v, potentials, spikes = torch.zeros_like(steps[0]), [], []
    for x in steps:
        charge = (x - v) * leak(module) if hasattr(module, "w") else (x - v) / module.tau
        v = v + charge
        spike = (v >= module.v_threshold).to(v)
        potentials.append(v)
        spikes.append(spike)
        v = v * (1 - spike)
    return torch.stack(potentials), torch.stack(spikes)


def gaps(module: nn.Module, current: Tensor) -> Tensor:
    """Distance of every potential from the nearest value at which the output changes."""
    potentials = membrane(module, current)[0]
    if isinstance(module, IntegerNeuron):
        steps = potentials.floor().clamp(0, module.levels - 1) + 0.5
        return (potentials - steps).abs()
    return (potentials - module.v_threshold).abs()


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
        rates = [float((s != 0).double().mean()) for s in record(model, x)[1].values()]
    return all(low <= rate <= high for rate in rates)


class Gain:
    """Multiplies what enters a module; stays with the model, copies included."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0] * self.factor,)


def _tune(module: nn.Module, current: Tensor) -> Tensor:
    """Move a threshold only where the default leaves the neuron silent or saturated.

    An integer neuron has none to move: its input is scaled instead.
    """
    rate = float((membrane(module, current)[1] != 0).double().mean())
    if 0.05 <= rate <= 0.5:
        return current
    if isinstance(module, IntegerNeuron):
        gain = Gain(0.5003 / max(float(current.quantile(0.75)), 1e-3))
        module.register_forward_pre_hook(gain)
        return current * gain.factor
    first = (current * leak(module)).flatten()
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
    """Smallest distance of a potential from where its neuron changes, ties excepted."""
    smallest = float("inf")
    for name, module in neurons(model).items():
        if name not in currents:
            continue
        gap = gaps(module, currents[name])
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
