"""Batch-norm re-estimation: running statistics follow the change that a cut made to the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from primesvt.calibration import CalibrationSet
from primesvt.calibration.norm_inputs import NormInput, before_each, norm_input
from primesvt.models.norms import Norm, norms_of
from primesvt.models.shared_prefix import VariantBatch, block_of

__all__ = ["reestimate"]

Expected = Sequence[Mapping[str, list[NormInput]]]
Kept = Mapping[str, Tensor]


def reestimate(
    variants: VariantBatch,
    calibration: CalibrationSet,
    expected: Expected,
    kept: Sequence[Kept],
    common: Kept | None = None,
) -> None:
    """Move the running statistics of networks by what their cuts changed, in place and in one pass.

    A norm whose channel had mean ``m0`` and variance ``v0`` on a batch in the unpruned network, and
    has ``m`` and ``v`` in the pruned one, gets statistics with which it gives the mean and variance
    that it gave in the unpruned network:

        r = (v + eps) / (v0 + eps),    m - (m0 - running_mean) sqrt(r),    running_var x r

    It normalises the batch by them, so that later norms see what it will give, and in the end takes
    their average over all batches. So only what the cut did moves the statistics: neither the few
    images nor their difference from the augmented ones of the training do, and a cut that changes
    nothing leaves the network bit by bit as it was.

    Args:
        variants: the pruned networks; blocks that they share with their common network stay.
            A common network that is cut itself must not be re-estimated yet, and is not here.
        calibration: the inputs.
        expected: what norms of the unpruned network saw of every batch (``seen_by``).
        kept: for every network: norm -> which of its channels are left.
        common: the same for the common network, where that is cut.

    Source: re-estimation as in Li et al., "EagleEye" (arXiv 2007.02491), paired here with the
    unpruned network's statistics on the same inputs.
    """
    starts = variants.starts if variants.common is not None else [0] * len(kept)
    followers = [
        _NormTracker(network, start, channels, expected, _unchanged(variants, network, calibration))
        for network, start, channels in zip(variants.networks, starts, kept, strict=True)
    ]
    ahead = []
    if variants.common is not None and common is not None:
        ahead = [_NormTracker(variants.common, 0, common, expected, frozenset())]
    with ExitStack() as listening:
        listening.enter_context(variants.evaluating())
        for follower in (*followers, *ahead):
            listening.enter_context(before_each(follower.norms, follower.see))
        for number, batch in enumerate(calibration):
            for follower in (*followers, *ahead):
                follower.begin(number)
            variants(*batch, data="calibration", batch=number)
    for follower in followers:
        follower.finish()
    for follower in ahead:
        follower.restore()


def _unchanged(variants: VariantBatch, network: nn.Module, calibration: CalibrationSet) -> Set[str]:
    """Modules of somebody's own network that see what they see in the unpruned one."""
    if variants.stored is None:
        return frozenset()
    first = next(iter(calibration.fitting(network)))
    return variants.stored.unchanged(network, first)


class _NormTracker:
    """Moves the running statistics of one network's norms, from one block on, batch by batch."""

    def __init__(
        self,
        network: nn.Module,
        start: int,
        kept: Kept,
        expected: Expected,
        unchanged: Set[str],
    ) -> None:
        find = block_of(network)
        self.norms = {
            name: norm
            for name, norm in norms_of(network).items()
            if find(name) >= start and name not in unchanged
        }
        self.before: dict[str, tuple[Tensor, Tensor]] = {}
        for name, norm in self.norms.items():
            self.before[name] = norm.running_mean.double(), norm.running_var.double()
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        self.calls: dict[str, int] = {}
        self.kept, self.expected, self.batch = kept, expected, 0

    def begin(self, batch: int) -> None:
        """Get ready for the next batch."""
        self.batch = batch
        self.calls.clear()

    def see(self, name: str, norm: Norm, x: Tensor) -> None:
        """Normalise a call's input by statistics moved for it."""
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        was, now = self.expected[self.batch][name][call], norm_input(norm, x)
        kept = self.kept.get(name, slice(None))
        mean, variance = self.before[name]
        m, m0, v, v0 = now.mean, was.mean[kept], now.variance, was.variance[kept]
        ratio = (v.double() + norm.eps) / (v0.double() + norm.eps)
        moved = mean + (m - m0) + (m0 - mean) * (1 - ratio.sqrt())  # m - (m0 - mean) sqrt(ratio)
        scaled = variance * ratio
        known = self.sums.get(name, (torch.zeros_like(mean), torch.zeros_like(mean), 0))
        self.sums[name] = (
            known[0] + moved * now.count,
            known[1] + scaled * now.count,
            known[2] + now.count,
        )
        _set(norm, moved, scaled)

    def finish(self) -> None:
        """Set every norm to its average over all batches; one without inputs keeps its own."""
        for name, norm in self.norms.items():
            if name in self.sums:
                mean, variance, count = self.sums[name]
                _set(norm, mean / count, variance / count)
            else:
                _set(norm, *self.before[name])

    def restore(self) -> None:
        """Give every norm its own statistics back."""
        for name, norm in self.norms.items():
            _set(norm, *self.before[name])


def _set(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Write running statistics to a norm."""
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
