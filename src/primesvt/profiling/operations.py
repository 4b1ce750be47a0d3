"""Count operations of a forward pass, module by module, with SpikingJelly's counters.

SpikingJelly's mode tells every operator with the module that runs it, and its SynOp rules count
what spikes of 0 and 1 cause. What it lacks or counts otherwise is done here: integer neurons and
summed spikes (multiplications there), inputs that happen to be 0 and 1 (spikes there), images that
are the same at every time step (computed again there), and how many multiply-accumulates a layer
has whatever its inputs are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based.op_counter import BaseCounter, DispatchCounterMode, SynOpCounter
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from primesvt.models import reset
from primesvt.models.forward import batch_of, evaluating
from primesvt.models.neurons import IntegerNeuron
from primesvt.models.state import kept_tensors
from primesvt.profiling.memory import watch_decisions
from primesvt.profiling.spikes import follow, given, marking, origin_of, spikes_in

__all__ = ["COUNTED", "Contraction", "ModuleCosts", "Operations", "contracts", "count_operations"]


aten = torch.ops.aten
# Where the two factors stand among the arguments; a convolution's second one is its kernel.
_FACTORS = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
    aten.convolution.default: 0,
}


def contracts(func: Any) -> bool:
    """Whether an operator sums products: PyTorch's own counter knows it.

    Example:
        >>> contracts(aten.mm.default), contracts(aten.add.Tensor)
        (True, False)
    """
    return getattr(func, "overloadpacket", func) in flop_registry


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """One call of an operator that sums products, such as a convolution or a matrix product.

    Args:
        func, args, kwargs: the call.
        out: what it gave.
        weighted: the second factor is a weight.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    weighted: bool

    def macs(self) -> int:
        """Number of multiply-accumulates; those of an image repeated at every time step, once."""
        flops = flop_registry[self.func.overloadpacket](*self.args, **self.kwargs, out_val=self.out)
        origins = [origin_of(x) for x in self.args if isinstance(x, Tensor)]
        repeats = min((origin.repeats for origin in origins if origin), default=1)
        return int(flops) // 2 // repeats

    def spikes(self) -> tuple[Tensor | None, Tensor | None]:
        """Number of spikes in each value of both factors; ``None`` for factors of real numbers."""
        if self.func not in _FACTORS:
            return None, None
        x, y = self._factors()
        return spikes_in(x), None if self.weighted else spikes_in(y)

    def accumulates(self, left: Tensor | None, right: Tensor | None, rule: Any) -> int:
        """Number of accumulates caused by spikes of one factor, or by pairs of spikes of both.

        ``rule`` is SpikingJelly's, for factors of 0 and 1: a value of three stands in three of
        them. A factor of real numbers is hidden from it, as it judges by the values.
        """
        place = _FACTORS[self.func]
        x, y = self._factors()
        total = 0
        for first in _planes(x, left):
            for second in _planes(y, right):
                args = (*self.args[:place], first, second, *self.args[place + 2 :])
                both = left is not None and right is not None
                total += rule(args, {}, self.func(*args) if both else self.out)
        return total

    def _factors(self) -> tuple[Tensor, Tensor]:
        place = _FACTORS[self.func]
        return self.args[place], self.args[place + 1]


def _planes(factor: Tensor, counts: Tensor | None) -> Iterator[Tensor]:
    """Spikes as tensors of 0 and 1; for real numbers, one of that shape that is neither."""
    if counts is None:
        yield factor.new_full((1,), 2.0).expand(factor.shape)
        return
    for spike in range(int(counts.max()) if counts.numel() else 0):
        yield (counts > spike).to(counts.dtype)


COUNTED = 64  # samples: the mean over so many is known to a percent or two

Kind = Literal["layer", "product", "neuron"]


@dataclass(frozen=True, kw_only=True)
class ModuleCosts:
    """Operations of one module for one sample, over all time steps, as a mean over samples.

    Attributes:
        module: its name.
        kind: ``layer`` (it has weights), ``product`` (a product of two activations, as in
            attention), or ``neuron``.
        macs: multiply-accumulates, as if every input were a real number: what a CPU computes.
        multiplied: those of them whose inputs are real numbers.
        synops: accumulates that spikes cause; they take the place of all other ``macs``.
        rate: of a layer, spikes per input value; of a neuron, spikes per neuron and time step (of
            an integer neuron, and virtual time step). ``None`` where inputs are real numbers.
        membrane_bytes: potentials of a neuron.
    """

    module: str
    kind: Kind
    macs: float = 0.0
    multiplied: float = 0.0
    synops: float = 0.0
    rate: float | None = None
    membrane_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Operations of a network for one sample, over all time steps, as a mean over samples.

    Attributes:
        samples: over how many the means are.
        macs: multiply-accumulates, as if every input were a real number.
        multiplied: those of real numbers.
        synops: accumulates that spikes cause.
        firing_rate: spikes per neuron and time step; ``None`` without neurons.
        operand_bytes: what all operations fetch, one weight or operand each.
        state_bytes: potentials read and written, once at every time step; ``None``: not counted, as
            something fires that is no neuron of a known class.
        modules: in the order in which they run first.
    """

    samples: int
    macs: float
    multiplied: float
    synops: float
    firing_rate: float | None
    operand_bytes: float
    state_bytes: float | None
    modules: tuple[ModuleCosts, ...] = field(repr=False)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Operations:
        """Read what ``dataclasses.asdict`` made, from JSON too."""
        modules = tuple(ModuleCosts(**each) for each in content["modules"])
        return cls(**{**content, "modules": modules})


def count_operations(
    model: nn.Module, batches: Iterable[tuple[Any, ...]], *, samples: int = COUNTED
) -> Operations:
    """Count the operations of every module of a network, on batches of inputs.

    Multiply-accumulates count every place of a kernel, those on the padding too; accumulates count
    the spikes that arrive. Batch norm counts as folded into the layer before it, so not at all; nor
    do biases, neurons, poolings, gates, sums of streams, and what is done once for all images.

    Args:
        model: any network; its neurons are reset around every batch.
        batches: inputs, as the model takes them; labels have no part.
        samples: how many to take; whole batches, at least one.

    Raises:
        ValueError: no inputs.

    Example:
        >>> from primesvt.models import lif
        >>> net = nn.Sequential(nn.Linear(4, 3), lif(), nn.Linear(3, 2))
        >>> _ = torch.nn.init.constant_(net[0].weight, 1.0), torch.nn.init.zeros_(net[0].bias)
        >>> found = count_operations(net, [(torch.ones(1, 4),)])  # all three neurons fire
        >>> [(m.module, m.macs, m.multiplied, m.synops) for m in found.modules if m.macs]
        [('0', 12.0, 12.0, 0.0), ('2', 6.0, 0.0, 6.0)]
    """
    counter, counted = _Counter(model), 0
    with evaluating(model), marking(model, counter.neuron):
        for batch in batches:
            if counted >= samples:
                break
            given(batch)
            counter.batch = batch_of(batch)
            reset(model)
            with DispatchCounterMode([counter]), watch_decisions(model) as decided:
                model(*batch)
            counter.unknown = counter.unknown or bool(decided)
            reset(model)
            counted += counter.batch
    if counted == 0:
        raise ValueError("there are no inputs to count operations on; give at least one sample")
    return counter.per_sample(counted)


@dataclass
class _Sums:
    """Counts of one module over all samples."""

    kind: Kind
    macs: int = 0
    multiplied: int = 0
    synops: int = 0
    spikes: float = 0.0
    places: int = 0
    membrane_bytes: int = 0

    def costs(self, module: str, samples: int) -> ModuleCosts:
        """Means over samples."""
        return ModuleCosts(
            module=module or "(model)",
            kind=self.kind,
            macs=self.macs / samples,
            multiplied=self.multiplied / samples,
            synops=self.synops / samples,
            rate=_share(self.spikes, self.places),
            membrane_bytes=self.membrane_bytes,
        )


class _Counter(BaseCounter):  # type: ignore[misc]
    """SpikingJelly counter that is called for every operator and adds up costs by module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.root = type(model).__name__
        self.weighted = {
            name
            for name, module in model.named_modules()
            if any(p.ndim > 1 for p in module.parameters(recurse=False))
        }
        self.sums: dict[str, _Sums] = {}
        self.synops = SynOpCounter()
        self.operand_bytes = self.state_bytes = 0
        self.batch = 1
        self.unknown = False

    def has_rule(self, func: Any) -> bool:
        return True

    def record(self, scope: str, func: Any, value: int) -> None:
        """Do nothing: sums are kept by module here, not by operator."""

    def count(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        active_modules: set[nn.Module] | None = None,
        parent_names: set[str] | None = None,
    ) -> int:
        contracted = contracts(func)
        if contracted:
            # The module that runs, of scopes such as Net, Net.block and Net.block.fc.
            scope = max((parent_names or set()) - {"Global"}, key=len, default=self.root)
            module = scope.removeprefix(self.root).lstrip(".")
            weighted = module in self.weighted
            call = Contraction(func=func, args=args, kwargs=kwargs, out=out, weighted=weighted)
            self._take(call, self._of(module, "layer" if weighted else "product"))
        follow(func, args, out, contracted=contracted)
        return 0

    def _take(self, call: Contraction, sums: _Sums) -> None:
        left, right = call.spikes()
        done = call.macs()
        sums.macs += done
        if left is None and right is None:
            sums.multiplied += done
        else:
            done = call.accumulates(left, right, self.synops.rules[call.func])
            sums.synops += done
        made = next(x for x in tree_leaves(call.out) if isinstance(x, Tensor))
        self.operand_bytes += done * made.element_size()
        if call.weighted and left is not None:
            sums.spikes += float(left.sum(dtype=torch.float64))
            sums.places += left.numel()

    def _of(self, module: str, kind: Kind) -> _Sums:
        return self.sums.setdefault(module, _Sums(kind=kind))

    def neuron(self, name: str, module: nn.Module, current: Tensor, spikes: Tensor) -> None:
        """Add the spikes and the membrane potentials of one call of a neuron layer."""
        sums = self._of(name, "neuron")
        counts = spikes_in(spikes)
        levels = module.levels if isinstance(module, IntegerNeuron) else 1
        if counts is not None:
            sums.spikes += float(counts.sum(dtype=torch.float64)) / levels
            sums.places += counts.numel()
        if isinstance(module, base.MemoryModule):
            steps = len(current) if getattr(module, "step_mode", "s") == "m" else 1
            size = current.numel() * current.element_size()
            self.state_bytes += 2 * size
            sums.membrane_bytes = size // steps // self.batch
        elif kept := kept_tensors(module):
            size = sum(each.numel() * each.element_size() for each in kept)
            steps = max(1, current.numel() // max(each.numel() for each in kept))
            self.state_bytes += 2 * size * steps
            sums.membrane_bytes = size // self.batch

    def per_sample(self, samples: int) -> Operations:
        """Means over the samples seen."""
        neurons = [sums for sums in self.sums.values() if sums.kind == "neuron"]
        modules = tuple(sums.costs(name, samples) for name, sums in self.sums.items())
        return Operations(
            samples=samples,
            macs=sum(sums.macs for sums in self.sums.values()) / samples,
            multiplied=sum(sums.multiplied for sums in self.sums.values()) / samples,
            synops=sum(sums.synops for sums in self.sums.values()) / samples,
            firing_rate=_share(sum(s.spikes for s in neurons), sum(s.places for s in neurons)),
            operand_bytes=self.operand_bytes / samples,
            state_bytes=None if self.unknown else self.state_bytes / samples,
            modules=modules,
        )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
