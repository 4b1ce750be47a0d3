"""Remove what changes no prediction, to get the network that pruning starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from primesvt.calibration import CalibrationSet, Consumer, ModuleGraph, evaluating, trace_modules
from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels
from primesvt.channels.plan import PlanStep
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup
from primesvt.models.forward import batch_of, copy_of
from primesvt.models.state import tensors_in
from primesvt.models.strip import merge_chain, merge_head, mergeable_chains, strip_unused
from primesvt.profiling.memory import parameter_bytes, parameter_count
from primesvt.pruning.lossless.constant_channels import (
    ConstantChannels,
    ValueRange,
    all_readers,
    find_constant_channels,
    fold_constants,
    levels_of,
)
from primesvt.pruning.lossless.record import LosslessRecord, Removed

__all__ = [
    "PredictionCheck",
    "StartNetwork",
    "Stripped",
    "remove_constant_channels",
    "remove_unused",
]


TOLERANCE = 1e-5  # relative, of outputs that are no logits


class PredictionCheck:
    """The predictions of a network on some inputs, to compare those of other networks with.

    Of logits ``[batch, classes]`` it is the class; other outputs are the answer themselves, and the
    same up to 1e-5 of their largest value.

    Args:
        model: the network.
        inputs: what it is asked.

    Example:
        >>> from primesvt.calibration import calibration_of
        >>> answers = PredictionCheck(nn.Identity(), calibration_of(torch.eye(3)))
        >>> answers.inputs, answers.same(nn.ReLU()), answers.same(nn.Flatten(0))
        (3, True, False)
    """

    def __init__(self, model: nn.Module, inputs: CalibrationSet) -> None:
        self._source = inputs
        with evaluating(model):
            self._expected = [_answer(result) for result in inputs.run(model)]
        self.inputs = sum(batch_of(tuple(expected)) for expected in self._expected)

    def same(self, model: nn.Module) -> bool:
        """Whether another network predicts the same for every input."""
        with evaluating(model):
            pairs = zip(self._expected, self._source.run(model), strict=True)
            return all(_alike(expected, _answer(result)) for expected, result in pairs)


def _answer(result: Any) -> list[Tensor]:
    """The prediction in a network's output: the class of logits, else the tensors themselves."""
    if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] > 1:
        return [result.argmax(1).cpu()]
    return [tensor.detach().cpu() for tensor in tensors_in(result)]


def _alike(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether two answers are the same: classes exactly, other outputs up to rounding."""
    if [x.shape for x in expected] != [x.shape for x in found]:
        return False
    for one, other in zip(expected, found, strict=True):
        if not one.is_floating_point():
            same = torch.equal(one, other)
        else:
            scale = float(one.abs().max()) if one.numel() else 0.0
            same = torch.allclose(other, one, rtol=0.0, atol=TOLERANCE * scale)
        if not same:
            return False
    return True


Change = TypeVar("Change")


@dataclass(frozen=True, kw_only=True)
class Stripped:
    """A copy without parameters that no forward reads, merged where predictions stay.

    Attributes:
        model: the copy.
        dead_parameters: how many no forward read.
        merged_head: a distillation head was merged into the head.
        merged_chains: pairs of linear layers that are one layer now.
        kept_chains: pairs that stayed, as a prediction changed without them.
        chain_parameters: what went with the merged pairs.
        answers: those of the network given, where there are inputs.
    """

    model: nn.Module
    dead_parameters: int
    merged_head: bool
    merged_chains: tuple[str, ...] = ()
    kept_chains: tuple[str, ...] = ()
    chain_parameters: int = 0
    answers: PredictionCheck | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class StartNetwork:
    """The network that pruning starts from, with its channel graph and the groups to prune.

    Attributes:
        model: the network without what changes no prediction.
        graph: its channel graph, which knows the original indices.
        groups: the groups to prune, as wide as they are now.
        sizes: channels at each position that they had before.
        account: what went; ``None`` where the step was not asked for.
    """

    model: nn.Module
    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    sizes: dict[str, int]
    account: LosslessRecord | None = None

    @classmethod
    def whole(
        cls, model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup]
    ) -> StartNetwork:
        """A start network from which nothing was removed."""
        sizes = {group.name: group.size for group in groups}
        return cls(model=model, graph=graph, groups=tuple(groups), sizes=sizes)

    def kept(self, group: str) -> tuple[tuple[int, ...], ...]:
        """Original indices of the channels that a group still has, per front position."""
        return tuple(tuple(map(int, row)) for row in self.graph.original(group))

    @property
    def removed(self) -> dict[str, int] | None:
        """Channels that each group lost at each position; ``None`` without the lossless step."""
        if self.account is None:
            return None
        return {each.group: each.channels for each in self.account.channels}

    def steps(self, steps: Sequence[PlanStep]) -> tuple[PlanStep, ...]:
        """The steps of a plan, counted from the network given, those of this step first.

        A group that a policy has narrowed too has one step, from its original width on. Rates and
        savings stay those of the policy: a step of this one alone has the share of the channels
        that went as its rate, and a saving of 0.
        """
        account = self.account or LosslessRecord()
        policy = {step.group for step in steps}
        found = []
        for removed in account.channels:
            if removed.group in policy:
                continue
            size = self.sizes[removed.group]
            found.append(
                PlanStep(
                    group=removed.group,
                    rate=removed.channels / size,
                    before=(removed.positions, size),
                    after=(removed.positions, size - removed.channels),
                    accuracy=None,
                    drop=None,
                    bound=None,
                    saving=0.0,
                    parameter_bytes=parameter_bytes(self.model),
                    recovery=f"lossless: {removed.seen(account.inputs)}",
                )
            )
        for step in steps:
            lost = account.of(step.group)
            if lost is None:
                found.append(step)
                continue
            before = (step.before[0], self.sizes[step.group])
            note = f"{lost.channels} lossless: {lost.seen(account.inputs)}"
            found.append(replace(step, before=before, recovery=f"{step.recovery}; {note}"))
        return tuple(found)


def remove_unused(
    model: nn.Module, check: Sequence[CalibrationSet] = (), processes: ProcessGroup = SINGLE_PROCESS
) -> Stripped:
    """Copy a network without unused parameters, and merge layers where no prediction changes.

    Args:
        model: the network; not changed.
        check: inputs on which no prediction may change, one source at most; without any, the
            arithmetic of what is merged is trusted.
        processes: those that strip the same network; what the main one finds counts.

    Example:
        >>> from primesvt.models import create_model
        >>> remove_unused(create_model("sdt_v2_digits", distillation=True)).merged_head
        True
    """
    bare = copy_of(model)
    dead = strip_unused(bare)
    answers = PredictionCheck(model, check[0]) if check else None
    merged = copy_of(bare)
    one_head = processes.broadcast(merge_head(merged) and (answers is None or answers.same(merged)))
    bare = merged if one_head else bare
    chains = list(mergeable_chains(bare))
    taken = _agreeing(chains, [], lambda one: answers is None or answers.same(_merged(bare, one)))
    taken = processes.broadcast(taken)
    short = _merged(bare, taken)
    return Stripped(
        model=short,
        dead_parameters=dead,
        merged_head=one_head,
        merged_chains=tuple(taken),
        kept_chains=tuple(path for path in chains if path not in taken),
        chain_parameters=parameter_count(bare) - parameter_count(short),
        answers=answers,
    )


def _merged(model: nn.Module, chains: Sequence[str]) -> nn.Module:
    """A copy in which each of these pairs of linear layers is one; without any, the model."""
    if not chains:
        return model
    merged = copy_of(model)
    for path in chains:
        merge_chain(merged, path)
    return merged


def remove_constant_channels(
    original: nn.Module,
    stripped: Stripped,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    sources: Sequence[CalibrationSet],
    multiple: int = 1,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> StartNetwork:
    """Remove channels that are silent or constant on all inputs, as long as predictions stay.

    Groups without which a prediction changes stay whole; they are found by halves.

    Args:
        original: the network given, to count from.
        stripped: a copy of it without unused parameters.
        graph: the graph of that copy.
        groups: those that may be cut, in forward order.
        sources: the inputs to watch; without any, no channel goes.
        multiple: of which the channels left must be one, at every position.
        processes: those that do the same; what the main one finds counts.
    """
    answers = stripped.answers
    start = StartNetwork.whole(stripped.model, graph, groups)
    account = LosslessRecord(
        checked=answers.inputs if answers else 0,
        dead_parameters=stripped.dead_parameters,
        merged_head=stripped.merged_head,
        merged_chains=stripped.merged_chains,
        kept_chains=stripped.kept_chains,
        chain_parameters=stripped.chain_parameters,
    )
    if not sources or answers is None:
        return replace(start, account=_with_savings(account, original, start.model))
    watch = _Watch.of(stripped.model, graph, groups, sources)
    found = [cut for cut in watch.removable(groups) if cut.kept.shape[1] % multiple == 0]
    taken = _agreeing(found, [], lambda cuts: answers.same(watch.cut(cuts)[0])) if found else []
    found, taken = processes.broadcast((found, taken))
    if taken:
        model, graph = watch.cut(taken)
        groups = [graph[group.name] for group in groups]
        start = replace(start, model=model, graph=graph, groups=tuple(groups))
    account = replace(
        _with_savings(account, original, start.model),
        inputs=watch.levels.inputs,
        channels=tuple(_removed(cut, graph) for cut in taken),
        returned=tuple(cut.group for cut in found if all(cut is not each for each in taken)),
    )
    return replace(start, account=account)


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """A network, the layers that read its channel groups, and the range of their inputs."""

    model: nn.Module
    graph: ChannelGraph
    readers: dict[str, tuple[Consumer, ...]]
    levels: ValueRange
    wiring: ModuleGraph

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        groups: Sequence[ChannelGroup],
        sources: Sequence[CalibrationSet],
    ) -> _Watch:
        readers = all_readers(model, graph, groups)
        names = [reader.module for own in readers.values() for reader in own]
        return cls(
            model=model,
            graph=graph,
            readers=readers,
            levels=levels_of(model, names, sources),
            wiring=trace_modules(model, next(iter(sources[0]))),
        )

    def removable(self, groups: Sequence[ChannelGroup]) -> list[ConstantChannels]:
        """Channels whose removal should change no prediction, group by group."""
        watched = [group for group in groups if group.name in self.readers]
        cuts = [
            find_constant_channels(
                self.model, group, self.readers[group.name], self.levels, self.wiring
            )
            for group in watched
        ]
        return [cut for cut in cuts if cut is not None]

    def cut(self, cuts: Sequence[ConstantChannels]) -> tuple[nn.Module, ChannelGraph]:
        """A copy without these channels, and its graph."""
        smaller = copy_of(self.model)
        fold_constants(
            smaller,
            self.graph,
            cuts,
            readers=self.readers,
            levels=self.levels,
            wiring=self.wiring,
        )
        kept = {cut.group: cut.kept for cut in cuts}
        return smaller, remove_channels(smaller, self.graph, kept)


def _agreeing(
    changes: Sequence[Change], known: list[Change], same: Callable[[Sequence[Change]], bool]
) -> list[Change]:
    """The changes ``known``, and those of ``changes`` that change no prediction beside them.

    By halves, as nearly always none changes one, and then a single check of all is enough.
    """
    united = [*known, *changes]
    if not changes or same(united):
        return united
    if len(changes) == 1:
        return known
    middle = len(changes) // 2
    return _agreeing(changes[middle:], _agreeing(changes[:middle], known, same), same)


def _with_savings(account: LosslessRecord, original: nn.Module, model: nn.Module) -> LosslessRecord:
    """The record with the parameters and bytes that the whole step saved."""
    before, after = parameter_bytes(original), parameter_bytes(model)
    return replace(
        account,
        parameters=parameter_count(original) - parameter_count(model),
        parameter_bytes=before - after,
        share=1 - after / before,
    )


def _removed(cut: ConstantChannels, graph: ChannelGraph) -> Removed:
    """A cut in figures, for the record."""
    positions = graph[cut.group].positions
    return Removed(
        group=cut.group,
        positions=positions,
        channels=(cut.silent + cut.constant) // positions,
        silent=cut.silent,
        constant=cut.constant,
    )
