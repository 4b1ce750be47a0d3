"""Sums of products, which layers and attention are made of: how much they compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from primesvt.profiling.spikes import origin_of, spikes_in

__all__ = ["Contraction", "contracts"]

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
    """One call of such an operator.

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
        """Multiply-accumulates of dense factors; those of an image that is repeated, once."""
        flops = flop_registry[self.func.overloadpacket](*self.args, **self.kwargs, out_val=self.out)
        origins = [origin_of(x) for x in self.args if isinstance(x, Tensor)]
        repeats = min((origin.repeats for origin in origins if origin), default=1)
        return int(flops) // 2 // repeats

    def spikes(self) -> tuple[Tensor | None, Tensor | None]:
        """Spikes of both factors, where they are spikes."""
        if self.func not in _FACTORS:
            return None, None
        x, y = self._factors()
        return spikes_in(x), None if self.weighted else spikes_in(y)

    def accumulates(self, left: Tensor | None, right: Tensor | None, rule: Any) -> int:
        """What spikes of one factor cause, or pairs of them where both factors are spikes.

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
