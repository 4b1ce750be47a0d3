"""Build pruned variants of one network, several at once where they share blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import nn

from primesvt.calibration import CALIBRATION_BATCH
from primesvt.channels import ChannelGraph, remove_channels
from primesvt.channels.graph import Ids
from primesvt.channels.widths import Widths
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup
from primesvt.evaluation.evaluator import DataEvaluator, Evaluator
from primesvt.importance import Criterion, CriterionContext, Scores, keep, score_channels
from primesvt.models import SpikingViT
from primesvt.models.forward import batch_of, copy_of
from primesvt.models.shared_prefix import VariantBatch, block_of
from primesvt.models.stored_outputs import ActivationCache, StoredOutputs
from primesvt.profiling.memory import buffer_bytes, parameter_bytes, peak_activation_bytes
from primesvt.recovery import Recovery

__all__ = ["AT_RISK", "NETWORKS", "TOGETHER", "VariantBuilder", "memory_for_networks", "room_for"]

NETWORKS = 2 * 10**9  # bytes for networks made together and what they share, without a limit

TOGETHER = 16  # networks that are made together, at most
AT_RISK = 60.0  # seconds of work that a kill may cost, where single networks are quick enough
OTHERS = 4  # networks beside them: the unpruned one, the common one twice, and the last one made


@dataclass(frozen=True, kw_only=True)
class _Common:
    """A network that others share blocks with: recovered, and as it was before (``raw``)."""

    cuts: Widths
    network: SpikingViT
    raw: SpikingViT
    kept: dict[str, Ids]


Made = tuple[Widths, nn.Module]


class VariantBuilder:
    """Builds pruned and recovered copies of one network, just as the final one is built.

    Channels are ranked once, on the unpruned network, so a cut is known by how many channels each
    group keeps, and the order of cuts does not matter.

    Args:
        model: the unpruned network; never changed.
        graph: its channel graph.
        importance: ranks the channels of a group by the evidence.
        evidence: what it may look at; the model and the graph alone, when not given.
        recovery: what is done around every cut; nothing, when not given.
        memory: bytes that networks made together may take, those that they are made from included;
            what they leave of it, activations may take that several have in common.
        processes: those that cut the same networks, or deal them out; they agree on the channels.

    Raises:
        ValueError: not even one network fits into the memory.

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> from primesvt.importance import find_importance
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> graph = trace(net, torch.zeros(1, 4))
        >>> builder = VariantBuilder(model=net, graph=graph, importance=find_importance("l2"))
        >>> builder.build({"0": 2})[2]
        Linear(in_features=2, out_features=2, bias=True)
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: ChannelGraph,
        importance: Criterion,
        evidence: CriterionContext | None = None,
        recovery: Recovery | None = None,
        memory: int = NETWORKS,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.model, self.graph, self.processes = model, graph, processes
        self._fitting = min(TOGETHER, room_for(model, memory))
        self.recovery = recovery or Recovery()
        self._importance = importance
        self._evidence = evidence or CriterionContext(model=model, graph=graph)
        self._find_block = block_of(model)
        self._ceiling = memory - (OTHERS + self._fitting) * _bytes(model)
        self.forget()

    def forget(self) -> None:
        """Forget everything that was kept only to save work; no result changes.

        Of several processes all have to.
        """
        self._scores: dict[str, Scores] = {}
        self._known_places: dict[str, tuple[int, int]] = {}
        self._prefixes = ActivationCache(ceiling=self._ceiling)
        own = not isinstance(self.model, SpikingViT)
        self._stored = StoredOutputs(cache=self._prefixes, base=self.model) if own else None
        self._last: _Common | None = None
        self._made_last: Made | None = None
        self._pace: dict[str, float] = {}  # seconds per network, by what is measured

    def kept(self, group: str, count: int) -> Ids:
        """The channels that a group keeps, ``[positions, count]``."""
        self._rank([group])
        return keep(self._scores[group], count)

    def _rank(self, groups: Iterable[str]) -> None:
        """Score the channels of groups, each group once and by one of the processes."""
        missing = [group for group in dict.fromkeys(groups) if group not in self._scores]
        if missing:
            found = self.processes.map_sharded(
                missing,
                lambda name: score_channels(self._importance, self._evidence, self.graph[name]),
            )
            self._scores.update(zip(missing, found, strict=True))

    def build(self, cuts: Widths) -> nn.Module:
        """A pruned and recovered copy of the network."""
        smaller = self._pruned(cuts)
        if cuts:
            alone = VariantBatch(networks=[smaller], stored=self._stored)
            self.recovery.after(alone, [self._kept(cuts)])
            if self._stored is not None:
                self._stored.forget(smaller)
        return smaller

    def build_batches(
        self,
        wanted: Sequence[Widths],
        around: Widths | None = None,
        purpose: str = "",
        *,
        deal: bool = False,
    ) -> Iterator[tuple[list[Widths], VariantBatch]]:
        """Yield pruned networks in batches, each to be run before the next is asked for.

        ``around`` are cuts from which all of them differ in few groups: they share the blocks in
        front of the first difference with the network of those, and the work that these take.
        ``purpose`` tells measurements of different length apart. With ``deal`` the networks are
        dealt out among the processes in turn: each gets all cuts and its own networks.
        """
        shares = _plain(self.model) and self.recovery.shares_blocks
        alone = not shares or (around is None and len(wanted) < 2)
        around = around or {}
        order = sorted(wanted, key=lambda cuts: self._start(cuts, around))
        hands = self.processes.size if deal else 1
        if hands > 1:  # agreed upon by all, before each is busy with its own
            self._rank(group for cuts in (around, *order) for group in cuts)
        while order:
            begin, size = time.monotonic(), hands * (1 if alone else self._at_once(purpose))
            part, order = order[:size], order[size:]
            mine = self.processes.shard(part) if deal else part
            batch = self._batch(mine, None if alone else self._common(around))
            yield part, batch
            self._made_last = (dict(mine[0]), batch.networks[0]) if len(mine) == 1 else None
            self._pace[purpose] = (time.monotonic() - begin) / max(1, len(mine))

    def _batch(self, part: Sequence[Widths], common: _Common | None) -> VariantBatch:
        """Pruned and recovered networks that share what they have in common with one network."""
        if common is None or not part:
            networks = [self.build(cuts) for cuts in part]
            return VariantBatch(networks=networks, stored=self._stored)
        starts = [self._start(cuts, common.cuts) for cuts in part]
        networks = [
            self._with_shared_prefix(c, common.network, s)
            for c, s in zip(part, starts, strict=True)
        ]

        around = tuple(common.cuts.items())

        def before(block: int) -> frozenset[tuple[str, int]]:  # the cuts in front of a block
            return frozenset(cut for cut in around if self._places(cut[0])[0] < block)

        # Recovery runs the common network before its norms followed; measuring runs it after.
        batch = VariantBatch(
            networks=networks,
            common=common.raw,
            starts=starts,
            prefixes=self._prefixes,
            before=lru_cache(before),
        )
        self.recovery.after(batch, [self._kept(cuts) for cuts in part], common.kept)
        return replace(batch, common=common.network)

    def _pruned(self, cuts: Widths) -> nn.Module:
        """A pruned copy without recovery: its batch norms keep their statistics."""
        return self._smaller(copy_of(self.model), self._kept(cuts))

    def _with_shared_prefix(self, cuts: Widths, common: SpikingViT, start: int) -> nn.Module:
        """A pruned copy that shares the blocks before ``start`` with an equal network."""
        assert isinstance(self.model, SpikingViT)
        places = {group: self._places(group) for group in cuts}
        if any(low < start <= high for low, high in places.values()):
            smaller = self._pruned(cuts)  # a group in both parts: surgery must see all its members
        else:
            first = list(self.model.blocks)[:start]
            shared = copy_of(self.model, shared=first)
            rows = self._kept({g: count for g, count in cuts.items() if places[g][0] >= start})
            smaller = self._smaller(shared, rows)
        assert isinstance(smaller, SpikingViT)
        for block in range(min(start, len(common.blocks))):
            smaller.blocks[block] = common.blocks[block]
        return smaller

    def _smaller(self, model: nn.Module, kept: dict[str, Ids]) -> nn.Module:
        """Cut a copy in place, prepared by the recovery before it loses channels."""
        self.recovery.before(model, kept)
        remove_channels(model, self.graph, kept)
        return model

    def _kept(self, cuts: Widths) -> dict[str, Ids]:
        """The indices of the channels that the cuts keep, per group."""
        return {group: self.kept(group, count) for group, count in cuts.items()}

    def _common(self, cuts: Widths) -> _Common:
        """The network with which others share blocks; the last one is remembered."""
        if self._last is None or self._last.cuts != cuts:
            raw = network = self.model
            if cuts:
                made = self._made_last  # often just this one was measured
                network = made[1] if made is not None and made[0] == cuts else self.build(cuts)
                raw = self._pruned(cuts) if self.recovery.adapts else network
            assert isinstance(raw, SpikingViT) and isinstance(network, SpikingViT)
            kept = self._kept(cuts)
            self._last = _Common(cuts=dict(cuts), network=network, raw=raw, kept=kept)
        return self._last

    def _start(self, cuts: Widths, around: Widths) -> int:
        """The first block in which two cut networks differ."""
        differing = {group for group, _ in set(cuts.items()) ^ set(around.items())}
        return min((self._places(group)[0] for group in differing), default=0)

    def _places(self, group: str) -> tuple[int, int]:
        """The first and the last block that hold members of a group."""
        if group not in self._known_places:
            blocks = [self._find_block(member.module) for member in self.graph[group].members]
            self._known_places[group] = min(blocks), max(blocks)
        return self._known_places[group]

    def _at_once(self, purpose: str) -> int:
        """How many networks to build at once: as many as memory allows and a kill may cost."""
        if purpose not in self._pace:
            return 1
        quick = int(AT_RISK / max(self._pace[purpose], 1e-9))
        return self.processes.broadcast(max(1, min(self._fitting, quick)))


def room_for(model: nn.Module, memory: int) -> int:
    """How many networks of a model's size fit into memory at once, beside those they are made from.

    Raises ``ValueError`` where not even one can.
    """
    each = _bytes(model)
    room = memory // each - OTHERS
    if room < 1:
        raise ValueError(
            f"{memory:,} bytes are left for networks, but {OTHERS + 1} of {each:,} bytes each are"
            " held at a time; raise the memory limit, or lower the batch size"
        )
    return room


def memory_for_networks(
    model: nn.Module, example: tuple[Any, ...], evaluate: Evaluator, *, limit: int | None
) -> int:
    """Bytes left for networks measured together, of a limit and beside one batch of activations.

    The batch is the larger one of measuring and recovering. Statistics are not counted.

    Raises ``ValueError`` where a batch alone takes more, or the networks do not fit beside it.
    """
    if limit is None or not isinstance(evaluate, DataEvaluator):
        return NETWORKS if limit is None else limit
    size = max(evaluate.batch_size, CALIBRATION_BATCH)
    batch = size * peak_activation_bytes(model, example) // batch_of(example)
    if batch >= limit:
        fix = "lower batch_size, or raise" if size > CALIBRATION_BATCH else "raise"
        raise ValueError(
            f"one batch of {size} takes {batch:,} bytes of activations, but memory_limit is"
            f" {limit:,}; {fix} the limit"
        )
    room_for(model, limit - batch)
    return limit - batch


def _bytes(model: nn.Module) -> int:
    return max(1, parameter_bytes(model) + buffer_bytes(model))


def _plain(model: nn.Module) -> bool:
    """Whether a model runs its blocks in a row and has no hooks, so that blocks may be shared."""
    if not isinstance(model, SpikingViT) or "forward" in vars(model):
        return False
    if type(model).forward is not SpikingViT.forward:
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks for part in (model, model.blocks))
