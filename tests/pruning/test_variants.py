"""Sharing what networks have in common changes what it takes, and not one bit of the result."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from primesvt import prune
from primesvt.evaluation.divergence import OutputDivergence
from primesvt.evaluation.evaluator import DataEvaluator, Measurement
from primesvt.importance import find_importance
from primesvt.models import SpikingViT
from primesvt.models.shared_prefix import VariantBatch, block_of
from primesvt.profiling.memory import buffer_bytes, parameter_bytes, peak_activation_bytes
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.prober import Prober
from primesvt.pruning.variants import NETWORKS, VariantBuilder, memory_for_networks
from primesvt.recovery import find_recovery

from ..channels.firing import state_bytes
from ..conftest import OwnNet
from ..lively import FAMILIES, Lively, free, lively


def prober(one: Lively, kind: str) -> Prober:
    table = ProbeTable(
        Reference(
            context={},
            measurement=Measurement(value=1.0),
            parameter_bytes=parameter_bytes(one.model),
        )
    )
    return Prober(
        model=one.model,
        graph=one.graph,
        evaluate=lambda _: Measurement(value=1.0),
        table=table,
        importance=find_importance("activity"),
        evidence=one.evidence,
        recovery=find_recovery(kind)(activity=one.activity),
        distance=OutputDivergence(one.model, one.activity.calibration),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_and_answers_are_bit_by_bit_those_alone(family: str) -> None:
    one = lively(family)
    at = prober(one, "refit")
    groups = [g for g in free(one.graph) if g.size > 2]
    groups = [groups[n] for n in sorted({round(n) for n in np.linspace(0, len(groups) - 1, 8)})]
    around = {g.name: g.size - 1 for g in groups[1::2]}
    wanted = [{**around, g.name: g.size // 2} for g in groups]
    wanted += [{k: v for k, v in around.items() if k != g.name} for g in groups[1:4:2]]
    seen = last = 0
    for cuts, together in at.builder.build_batches(wanted, around):
        with together.evaluating():
            answers = together(one.x)
        for each, network, found in zip(cuts, together.networks, answers, strict=True):
            alone = at.cut(each)
            assert state_bytes(network) == state_bytes(alone)
            with torch.no_grad():
                assert torch.equal(found, alone(one.x))
            seen += 1
        last = max(last, *together.starts)
    assert last > 0
    assert seen == len(wanted)


def test_what_is_kept_may_be_forgotten_at_any_time() -> None:
    one = lively("sdt_v2")
    groups = [g for g in free(one.graph) if g.size > 2][:5]
    wanted = [{g.name: g.size // 2} for g in groups]
    around = {groups[-1].name: 1}

    def made(forget: bool) -> dict[frozenset[tuple[str, int]], bytes]:
        at, found = prober(one, "refit"), {}
        for chosen in ({}, around, wanted[0], around):
            asked = [{**chosen, **each} for each in wanted]
            for cuts, batch in at.builder.build_batches(asked, chosen):
                with batch.evaluating():
                    answers = batch(one.x, data="x", batch=0)
                for each, network, answer in zip(cuts, batch.networks, answers, strict=True):
                    key = frozenset(each.items())
                    found[key] = (state_bytes(network), answer.tolist())
                if forget:
                    at.builder.forget()
        return found

    assert made(forget=True) == made(forget=False)


def test_distances_are_those_measured_one_by_one() -> None:
    one = lively("sdt_v2")
    groups = free(one.graph)[:6]
    wanted = [{}] + [{g.name: g.size // 2} for g in groups]
    found = prober(one, "refit").distances(wanted)
    assert found == [prober(one, "refit").distance(cuts) for cuts in wanted]
    assert found[0] == 0 and any(found)


def test_probes_are_those_measured_one_by_one(model, graph, digits) -> None:
    def fresh() -> Prober:
        evaluate = DataEvaluator(splits=digits, batch_size=32, device=torch.device("cpu"))
        size = parameter_bytes(model)
        table = ProbeTable(Reference(context={}, measurement=evaluate(model), parameter_bytes=size))
        return Prober(
            model=model,
            graph=graph,
            evaluate=evaluate,
            table=table,
            importance=find_importance("l2"),
        )

    groups = graph.prunable()
    wanted = [{g.name: g.size // 2} for g in groups] + [{groups[0].name: groups[0].size // 2}]
    together, alone = fresh(), fresh()
    found = together.probes(wanted)
    assert [p.cuts for p in found] == wanted
    for probe, cuts in zip(found, wanted, strict=True):
        one = alone.probe(cuts)
        assert (probe.accuracy, probe.lost, probe.gained) == (one.accuracy, one.lost, one.gained)
        assert probe.parameter_bytes == one.parameter_bytes
    assert len(together.table) == len(groups)


def test_the_common_network_is_left_alone() -> None:
    one = lively("sdt_v2")
    before = state_bytes(one.model)
    prober(one, "refit").distances([{g.name: 1} for g in free(one.graph)[:4]])
    assert state_bytes(one.model) == before


def test_networks_without_blocks_run_alone() -> None:
    torch.manual_seed(0)
    nets = [OwnNet().eval(), OwnNet().eval()]
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        found = VariantBatch(networks=nets)(x)
        again = VariantBatch(networks=nets)(x)  # neurons start afresh
    assert all(map(torch.equal, found, again))
    assert not torch.equal(*found)
    assert block_of(nets[0])("conv") == 0


def test_only_differing_blocks_are_run() -> None:
    one = lively("sdt_v2")
    calls: list[str] = []
    handles = [
        block.register_forward_hook(lambda *_, n=name: calls.append(n))
        for name, block in one.model.blocks.named_children()
    ]
    names = [name for name, _ in one.model.blocks.named_children()]
    pair = VariantBatch(networks=[one.model] * 3, common=one.model, starts=[2, 2, len(names)])
    with torch.no_grad():
        answers = pair(one.x)
    for handle in handles:
        handle.remove()
    assert calls == [*names[:2], *names[2:] * 2, *names[2:]]
    assert all(torch.equal(a, answers[0]) for a in answers)


def test_flags_come_back() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    pair = VariantBatch(networks=[net])
    with pair.evaluating():
        assert not net.training and not torch.is_grad_enabled()
        pair(torch.ones(2, 2))
    assert net.training and net[1].training and torch.is_grad_enabled()
    assert net[0].running_mean.tolist() == [0.0, 0.0]  # in training mode it would have moved


def test_a_memory_limit_says_how_many_networks_are_held(model, graph) -> None:
    each = parameter_bytes(model) + buffer_bytes(model)
    groups = graph.prunable()
    wanted = [{g.name: g.size - 1} for g in groups]
    for spare in (1, 4):
        builder = VariantBuilder(
            model=model,
            graph=graph,
            importance=find_importance("l2"),
            memory=(4 + spare) * each + each // 2,
        )
        parts = [len(part) for part, _ in builder.build_batches(wanted)]
        assert parts[0] == 1 and max(parts) == spare and sum(parts) == len(wanted)
    with pytest.raises(ValueError, match="raise the memory limit, or lower the batch size"):
        VariantBuilder(
            model=model, graph=graph, importance=find_importance("l2"), memory=5 * each - 1
        )


def test_a_memory_limit_counts_one_batch(model, digits, tmp_path) -> None:
    evaluate = DataEvaluator(splits=digits, batch_size=20, device=torch.device("cpu"))
    example = (torch.rand(2, 1, 8, 8),)
    batch = 64 * peak_activation_bytes(model, example) // 2  # recovery takes 64 at least
    five = 5 * (parameter_bytes(model) + buffer_bytes(model))
    assert memory_for_networks(model, example, evaluate, limit=batch + five) == five
    with pytest.raises(ValueError, match="5 of"):
        memory_for_networks(model, example, evaluate, limit=batch + five - 1)
    assert memory_for_networks(model, example, evaluate, limit=None) == NETWORKS
    with pytest.raises(
        ValueError, match=f"one batch of 64 takes {batch:,} bytes .* raise the limit"
    ):
        memory_for_networks(model, example, evaluate, limit=batch)
    for wrong, told in (("much", "no size"), (0, "above 0"), ("-1MB", "no size")):
        with pytest.raises(ValueError, match=told):
            prune(model, data=digits, memory_limit=wrong)
    options = {"verify": False, "lossless": False, "out": tmp_path / "run"}
    with pytest.raises(ValueError, match="lower batch_size"):
        prune(model, data=digits, memory_limit="10kB", batch_size=65, **options)
    assert not (tmp_path / "run").exists()


def test_no_more_networks_live_than_the_limit_says(model, graph, digits) -> None:
    each = parameter_bytes(model) + buffer_bytes(model)
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most = 0

    def evaluate(network: nn.Module) -> Measurement:
        nonlocal most
        alive.add(network)
        most = max(most, len(alive))
        return Measurement(value=1.0)

    size = parameter_bytes(model)
    table = ProbeTable(
        Reference(context={}, measurement=Measurement(value=1.0), parameter_bytes=size)
    )
    prober = Prober(
        model=model,
        graph=graph,
        evaluate=evaluate,
        table=table,
        importance=find_importance("l2"),
        memory=7 * each,
    )
    prober.probes([{g.name: g.size // 2} for g in graph.prunable()])
    assert 2 <= most <= 4  # three at a time, and the last one made before them


@pytest.mark.parametrize("listening", ["model", "blocks", "forward", "own forward"])
def test_a_model_that_does_more_than_its_blocks_runs_alone(listening: str, model, graph) -> None:
    """Whatever somebody added to its forward would be left out."""
    if listening == "forward":
        model.__class__ = type(
            "Doubled", (SpikingViT,), {"forward": lambda s, x: s.resume(s.enter(2 * x), 0)}
        )
    else:
        part = model if listening == "model" else model.blocks
        part.register_forward_pre_hook(lambda _m, args: (2 * args[0], *args[1:]))
    builder = VariantBuilder(model=model, graph=graph, importance=find_importance("l2"))
    wanted = [{g.name: g.size // 2} for g in graph.prunable()[:3]]
    assert all(pair.common is None for _, pair in builder.build_batches(wanted))
