"""Spiking neurons written out as plain operators, step by step, in SpikingJelly's order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

from primesvt.compat import kind_of
from primesvt.models.fast_paths import LIF, PLIF
from primesvt.models.neurons import IntegerNeuron, Rounding

__all__ = ["KNOWN", "Leak", "Plain", "PlainInteger", "PlainNeuron", "plain"]

_LEAKY = (LIF, neuron.LIFNode)
_LEARNED = (PLIF, neuron.ParametricLIFNode)
_STATEFUL = (*_LEAKY, *_LEARNED, neuron.IFNode)
KNOWN = "LIFNode, ParametricLIFNode, IFNode and IntegerNeuron"


@dataclass(frozen=True, kw_only=True)
class Leak:
    """The leak of a neuron: a tensor divided by ``by``, or multiplied by it if ``times``.

    ``decays``: the input leaks too, not the membrane potential alone.
    """

    by: float
    times: bool = False
    decays: bool = True

    @property
    def exact(self) -> bool:
        """Whether ``by`` is a power of two, so that products and quotients are the same."""
        return math.frexp(self.by)[0] == 0.5

    @property
    def part(self) -> float:
        """The factor that the leak multiplies by."""
        return self.by if self.times else 1 / self.by

    def of(self, x: Tensor) -> Tensor:
        """A tensor times the factor; as a product where that is exact, which runtimes do faster."""
        return x * self.part if self.times or self.exact else x / self.by


class Plain(nn.Module):
    """A neuron layer of plain operators; ``seen`` collects its outputs, where it is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] | None = None

    def rest(self) -> None:
        """Reset the membrane potential."""

    def shown(self, out: Tensor) -> Tensor:
        """Return an output, after recording it where ``seen`` is a list."""
        if self.seen is not None:
            self.seen.append(out)
        return out


class PlainNeuron(Plain):
    """Integrate-and-fire with all time steps written out: ``[T, ...]`` to spikes of that shape.

    Per step, rounded in the order of SpikingJelly's reference: charge, a spike where
    ``v >= threshold``, then a hard reset to ``reset``, or ``v - threshold`` where that is ``None``.
    The number of time steps is that of the input while the graph is written. Without several steps
    (``multi_step=False``) the potential is kept from call to call until ``rest``.

    Example:
        >>> layer = PlainNeuron(leak=Leak(by=2.0))
        >>> layer(torch.tensor([[1.5], [1.5], [0.5]])).flatten().tolist()
        [0.0, 1.0, 0.0]

    Source: SpikingJelly (Science Advances 9, 2023, eadi1480), LIF, PLIF and IF neurons.
    """

    def __init__(
        self,
        *,
        leak: Leak | None = None,
        threshold: float = 1.0,
        reset: float | None = 0.0,
        multi_step: bool = True,
    ) -> None:
        super().__init__()
        self.leak = leak
        self.threshold = threshold
        self.reset = reset
        self.multi_step = multi_step
        self._v: Tensor | None = None

    def rest(self) -> None:
        """Reset the membrane potential."""
        self._v = None

    def forward(self, x: Tensor) -> Tensor:
        v = self._v
        if not self.multi_step:
            fired, self._v = self._step(x, v)
            return self.shown(fired)
        spikes = []
        for current in _steps(x):
            fired, v = self._step(current, v)
            spikes.append(fired)
        return self.shown(torch.cat(spikes))

    def _step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        charged = self._first(x) if v is None else self._charge(x, v)
        # From rest the input itself can be compared with a threshold of its own scale.
        leak = self.leak
        scales = leak is not None and leak.decays and leak.exact and not self.reset
        at_once = v is None and scales  # then a single time step needs no charge at all
        level = self.threshold / leak.part if at_once and leak else self.threshold
        spikes = ((x if at_once else charged) >= level).to(x.dtype)
        if self.reset is None:
            return spikes, charged - spikes * self.threshold
        kept = charged * (1 - spikes)
        return spikes, kept + spikes * self.reset if self.reset else kept

    def _first(self, x: Tensor) -> Tensor:
        """The membrane potential after one input from rest, where no potential leaks."""
        flow = self.leak.of(x) if self.leak is not None and self.leak.decays else x
        return self.reset + flow if self.reset else flow

    def _charge(self, x: Tensor, v: Tensor) -> Tensor:
        if self.leak is None:
            return v + x
        above = v - self.reset if self.reset else v
        if self.leak.decays:
            return v + self.leak.of(x - above)
        return v - self.leak.of(above) + x


class PlainInteger(Plain):
    """Stateless neuron with integer levels: ``round(clamp(x, 0, levels)) / norm``.

    Example:
        >>> PlainInteger(levels=4, norm=4.0, rounding="even")(torch.tensor([0.5, 1.5])).tolist()
        [0.0, 0.5]
    """

    def __init__(self, *, levels: int, norm: float, rounding: Rounding) -> None:
        super().__init__()
        self.levels = levels
        self.norm = norm
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        clamped = x.clamp(0, self.levels)
        whole = clamped.round() if self.rounding == "even" else (clamped + 0.5).floor()
        return self.shown(whole / self.norm if self.norm != 1 else whole)


def plain(module: nn.Module, *, name: str = "the neuron") -> Plain:
    """A neuron layer rewritten as plain operators.

    Raises ``ValueError`` for kinds and settings that are not known here, by ``name``.

    Example:
        >>> from primesvt.models import lif
        >>> plain(lif(0.5)).threshold
        0.5
    """
    if isinstance(module, IntegerNeuron):
        return PlainInteger(levels=module.levels, norm=module.norm, rounding=module.rounding)
    if kind_of(module) not in _STATEFUL:
        raise ValueError(
            f"{name} is a {type(module).__name__}, which cannot be written as plain operators;"
            f" {KNOWN} can"
        )
    # Settings under which a neuron gives something else than spikes are refused.
    node: Any = module
    if not isinstance(node.v_threshold, int | float):
        raise ValueError(f"{name} has a threshold that is no number; give it one number")
    answer = node.surrogate_function
    if not isinstance(answer, surrogate.SurrogateFunctionBase) or not answer.spiking:
        raise ValueError(
            f"{name} answers smoothly (its surrogate has spiking=False): set spiking=True"
        )
    return PlainNeuron(
        leak=_leak(node),
        threshold=float(node.v_threshold),
        reset=None if node.v_reset is None else float(node.v_reset),
        multi_step=node.step_mode == "m",
    )


def _leak(module: neuron.BaseNode) -> Leak | None:
    kind = kind_of(module)
    if kind in _LEAKY:
        return Leak(by=float(module.tau), decays=bool(module.decay_input))
    if kind in _LEARNED:
        # The sigmoid in the parameter's own precision, as the network computes it.
        rate = float(module.w.detach().sigmoid())
        return Leak(by=rate, times=True, decays=bool(module.decay_input))
    return None


def _steps(x: Tensor) -> tuple[Tensor, ...]:
    """The time steps, each ``[1, ...]``; equal ones are the same tensor, repeated."""
    if len(x) > 1 and x.stride(0) == 0:
        return (x[:1],) * len(x)
    steps: tuple[Tensor, ...] = x.split(1)
    return steps
