"""The invariants of DESIGN section 3, on spike-driven transformers of random shapes and cuts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels, trace
from primesvt.models import build_model, create_model
from primesvt.models.families.sdt_v2 import SDTv2Config

from .firing import clone, excite, margin, neurons, record, same, state_bytes
from .sdt import configs, described, flat, gone, group_of, ignore, random_cuts, table

many = settings(
    deadline=None, derandomize=True, max_examples=25, print_blob=False, phases=[Phase.generate]
)
few = settings(many, max_examples=8)
seeds = st.integers(0, 2**16)


def build(config: SDTv2Config, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(config).eval()


def images(config: SDTv2Config, batch: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, config.in_channels, size, size)


@many
@given(configs(), seeds)
def test_the_groups_are_those_of_the_table(config: SDTv2Config, seed: int) -> None:
    model = build(config, seed)
    graph = trace(model, images(config))
    found = {g.name: described(graph, g) for g in graph if g.status == "free" and g.kind != "heads"}
    assert found == table(model, config)
    bound = {g.name.split(".")[0] for g in graph if g.status != "free"}
    assert bound == {"head"}, "only the classes may be bound"
    heads = {g.name: (g.size, g.kind) for g in graph if g.kind == "heads"}
    blocks = [n for n in table(model, config) if n.endswith(".attn.v")] * (config.num_heads > 1)
    assert set(heads.values()) <= {(config.num_heads, "heads")}
    assert len(heads) == len(blocks)


@many
@given(configs(), seeds, st.booleans())
def test_removal_equals_readers_that_ignore_the_channels(
    config: SDTv2Config, seed: int, streams: bool
) -> None:
    model, x = build(config, seed).double(), images(config).double()
    assume(excite(model, x, seed))
    graph = trace(model, x)
    cuts = random_cuts(graph, np.random.default_rng(seed), streams=streams)
    assume(cuts)
    masked, pruned = clone(model), clone(model)
    for name, kept in cuts.items():
        ignore(masked, name, gone(kept, graph[name].size))
    remove_channels(pruned, graph, cuts)
    currents, _, logits = record(masked, x)
    assume(margin(masked, currents) >= 1e-7)
    small, _, small_logits = record(pruned, x)
    for name, current in currents.items():
        group = group_of(model, name)
        if group in cuts:
            current = current[:, :, flat(cuts[group], graph[group].size)]
        assert same(small[name], current), f"{name} after {list(cuts)}"
    assert same(small_logits, logits)
    assert pruned.training is False
    assert set(small) == set(neurons(model))


@few
@given(configs(), seeds)
def test_a_cut_of_nothing_changes_nothing(config: SDTv2Config, seed: int) -> None:
    model, x = build(config, seed), images(config)
    before, logits = state_bytes(model), model(x)
    graph = trace(model, x)
    assert state_bytes(model) == before
    everything = {g.name: np.tile(np.arange(g.size), (g.positions, 1)) for g in graph.prunable()}
    for cuts in ({}, everything):
        assert graph.freed(cuts).parameters == graph.freed(cuts).buffer_bytes == 0
        assert remove_channels(model, graph, cuts).groups == graph.groups
        assert state_bytes(model) == before
        assert torch.equal(model(x), logits)


@many
@given(configs(), seeds)
def test_cutting_twice_is_cutting_the_union(config: SDTv2Config, seed: int) -> None:
    model, rng = build(config, seed), np.random.default_rng(seed)
    graph = trace(model, images(config))
    once, twice = clone(model), clone(model)
    first = random_cuts(graph, rng, streams=True)
    middle = remove_channels(twice, graph, first)
    second = random_cuts(middle, rng, streams=True)
    last = remove_channels(twice, middle, second)
    union = {}
    for name in {**first, **second}:
        rows = np.tile(np.arange(graph[name].size), (graph[name].positions, 1))
        for cuts in (first, second):
            if name in cuts:
                rows = np.take_along_axis(rows, np.sort(cuts[name], axis=1), axis=1)
        union[name] = rows
        assert last.original(name).tolist() == rows.tolist()
        if name in second:
            assert middle.to_original(name, second[name]) == rows.tolist()
    direct = remove_channels(once, graph, union)
    assert state_bytes(once) == state_bytes(twice)
    assert direct.groups == last.groups
    assert [direct.original(g.name).tolist() for g in direct] == [
        last.original(g.name).tolist() for g in last
    ]


@many
@given(configs(), seeds)
def test_bytes_fall_by_what_the_graph_foretells(config: SDTv2Config, seed: int) -> None:
    model = build(config, seed)
    graph = trace(model, images(config))
    cuts = random_cuts(graph, np.random.default_rng(seed), streams=True)
    freed, before = graph.freed(cuts), sizes(model)
    small = remove_channels(model, graph, cuts)
    after = sizes(model)
    assert (freed.parameters, freed.parameter_bytes, freed.buffer_bytes) == tuple(
        a - b for a, b in zip(before, after, strict=True)
    )
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == {
        n: small.shape(n) for n in model.state_dict()
    }
    for module in model.modules():
        check_attributes(module)


def sizes(model: nn.Module) -> tuple[int, int, int]:
    parameters, buffers = list(model.parameters()), list(model.buffers())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
        sum(b.numel() * b.element_size() for b in buffers),
    )


def check_attributes(module: nn.Module) -> None:
    """The integers that PyTorch's modules keep agree with their tensors."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        made, read = module.weight.shape[:2]
        assert (module.out_channels, module.in_channels) == (made, read * module.groups)
        assert made % module.groups == 0
    elif isinstance(module, nn.Linear):
        assert (module.out_features, module.in_features) == tuple(module.weight.shape)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        assert module.num_features == len(module.weight) == len(module.running_mean)


@many
@given(configs(), seeds, st.data())
def test_groups_do_not_depend_on_coincidences(
    config: SDTv2Config, seed: int, data: st.DataObject
) -> None:
    model = build(config, seed)
    graph = trace(model, images(config))
    heads = {
        g.name: np.tile(data.draw(st.integers(0, g.size - 1)), (g.positions, 1))
        for g in graph.prunable()
        if g.name.endswith((".q+k", ".v"))
    }
    small = remove_channels(model, graph, heads)
    for _ in range(3):
        batch, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        # Token grids of at least 2 x 2: see the next test for one channel on a grid of height 1.
        height, width = data.draw(st.integers(5, 9)), data.draw(st.integers(5, 9))
        frame = (config.in_channels, height, width)
        events = data.draw(st.booleans())
        x = torch.randn(batch, steps, *frame) if events else torch.randn(batch, *frame)
        model.time_steps = steps
        found, wanted = summary(trace(model, x)), summary(small)
        if config.num_heads == 1:  # one head of one channel: nothing is left to cut or to tell
            found, wanted = several(found), several(wanted)
        assert found == wanted, tuple(x.shape)


def several(groups: dict[str, Any]) -> dict[str, Any]:
    """Groups of at least two channels."""
    return {name: entry for name, entry in groups.items() if entry[0].size > 1}


def test_one_channel_per_head_on_tokens_of_height_one_is_refused_not_mistaken() -> None:
    """Shapes cannot tell ``[3, 2] -> [3, 1, 2]`` apart: the trace may then err, the check not."""
    config = SDTv2Config(
        in_channels=1,
        num_classes=2,
        time_steps=2,
        embed_dims=(4, 6, 12, 6),
        num_heads=3,
        conv_depths=(0, 0, 0),
        depths=(1, 1),
        stem_kernel=3,
        strides=(1, 1, 1, 1, 1),
    )
    model = build(config, 0)
    graph = trace(model, torch.randn(2, 1, 4, 6))
    heads = {g.name: [[0]] * 3 for g in graph if g.name.endswith((".q+k", ".v"))}
    known = {g.name for g in remove_channels(model, graph, heads)}
    flat = trace(model, torch.randn(2, 1, 1, 6))
    mistaken = {g.name for g in flat.prunable() if g.size > 1} - known
    assert {refusal.group for refusal in flat.check(model)} == mistaken


def summary(graph: ChannelGraph) -> dict[str, Any]:
    return {g.name: (described(graph, g), g.status, g.reason) for g in graph}


@pytest.mark.parametrize("size", [(1, 1), (2, 4), (4, 4), (2, 8), (8, 16), (1, 8)])
def test_token_counts_that_equal_widths_tie_nothing(size: tuple[int, int]) -> None:
    """Four heads of four channels, sixteen wide, on 1 to 128 tokens, one time step or many."""
    config = SDTv2Config(
        in_channels=1,
        num_classes=4,
        time_steps=4,
        embed_dims=(8, 16, 16, 16),
        num_heads=4,
        mlp_ratio=1,
        conv_depths=(1, 1, 1),
        depths=(1, 1),
        stem_kernel=3,
        strides=(1, 1, 1, 1, 1),
    )
    model = build(config, 0)
    for batch in (1, 4, 16):
        graph = trace(model, torch.randn(batch, 1, *size))
        found = {
            g.name: described(graph, g) for g in graph if g.status == "free" and g.kind != "heads"
        }
        assert found == table(model, config)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("sdt_v2_15m", 0.85),
        ("sdt_v2_15m_kd", 0.85),
        ("sdt_v2_31m", 0.85),
        ("sdt_v2_digits", 0.8),  # its downsampling convolutions weigh more
    ],
)
def test_most_parameters_are_in_reach_without_streams(name: str, least: float) -> None:
    model = create_model(name, time_steps=1)
    channels, size = (1, 8) if name.endswith("digits") else (3, 32)
    graph = trace(model, torch.randn(1, channels, size, size))
    share = graph.touched() / sum(p.numel() for p in model.parameters())
    assert least <= share <= 1
    assert graph.notes == ()
    found = {g.name: described(graph, g) for g in graph if g.status == "free" and g.kind != "heads"}
    assert found == table(model, model.config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_a_tensor_is_stays(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = create_model("sdt_v2_digits").to(dtype=dtype, memory_format=layout)
    for i, (parameter, module) in enumerate(zip(model.parameters(), model.modules(), strict=False)):
        parameter.requires_grad_(i % 3 != 0)
        module.training = i % 2 == 0
    flags = {n: m.training for n, m in model.named_modules()}
    wants = {n: p.requires_grad for n, p in model.named_parameters()}
    graph = trace(model, torch.randn(1, 1, 8, 8))
    cuts = {
        g.name: np.tile(np.arange(1, g.size, 2), (g.positions, 1)) for g in graph if cuttable(g)
    }
    remove_channels(model, graph, cuts)
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wants
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, nn.Parameter) and parameter.is_leaf
        assert parameter.dtype == dtype
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=layout), name
    for name, buffer in model.named_buffers():
        assert buffer.dtype == (torch.long if name.endswith("num_batches_tracked") else dtype)
    assert all(getattr(m, "v", 0.0) == 0.0 for m in neurons(model).values())


def cuttable(group: ChannelGroup) -> bool:
    return group.status == "free" and group.kind != "heads"


def test_a_meta_model_is_traced_and_cut_without_memory() -> None:
    with torch.device("meta"):
        model = create_model("sdt_v2_digits")
    graph = trace(model, torch.randn(1, 1, 8, 8))
    real = trace(create_model("sdt_v2_digits"), torch.randn(1, 1, 8, 8))
    assert summary(graph) == summary(real)
    remove_channels(model, graph, {"blocks.block3_0.mlp.fc1": [0, 1]})
    weight = model.get_submodule("blocks.block3_0.mlp.fc2.conv").weight
    assert (weight.is_meta, weight.shape[1]) == (True, 2)


def test_the_pruned_model_trains() -> None:
    model = create_model("sdt_v2_digits", pretrained=True)
    graph = trace(model, torch.rand(1, 1, 8, 8))
    remove_channels(model, graph, random_cuts(graph, np.random.default_rng(0), streams=True))
    model.train()
    model(torch.rand(2, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


BAD = {
    "blocks.block3_0.mlp.fc": ([0], r"no channel group named .*nearest: .*blocks.block3_0.mlp.fc1"),
    "blocks.block3_0.mlp.fc1": ([], r"rows of equal length >= 1"),
    "blocks.conv1a.conv1": ([0, 0], r"distinct and in 0\.\.31"),
    "blocks.conv1b.conv1": ([64], r"distinct and in 0\.\.63"),
    "blocks.conv2a.conv1": ([-1], r"distinct and in"),
    "blocks.block3_0.attn.v": ([[0], [1, 2], [3], [4]], r"4 rows of equal length"),
    "blocks.block3_0.attn.q+k": ([0, 1], r"4 rows of equal length"),
    "blocks.block4_0.attn.v": ([[0]] * 3, r"4 rows of equal length"),
    "blocks.block4_0.mlp.fc1": ([0.5], r"must be integers, got float64"),
    "blocks.conv1a.sep.pw1": ([True, False], r"must be integers, got bool"),
    "blocks.block3_0.attn:heads": ([0, 1], r"holds whole heads"),
    "head": ([0, 1], r"'head' is protected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_cuts_are_refused_before_anything_happens(name: str) -> None:
    model = create_model("sdt_v2_digits")
    graph, before = trace(model, torch.randn(1, 1, 8, 8)), state_bytes(model)
    kept, message = BAD[name]
    good = {"blocks.block3_0.attn.proj:inner": [0, 1]}
    with pytest.raises(ValueError, match=message):
        remove_channels(model, graph, {**good, name: kept})
    assert state_bytes(model) == before


def test_a_graph_refuses_a_model_of_other_widths() -> None:
    model = create_model("sdt_v2_digits")
    graph = trace(model, torch.randn(1, 1, 8, 8))
    cuts = {"blocks.block3_0.mlp.fc1": [0, 1]}
    small = remove_channels(model, graph, cuts)
    before = state_bytes(model)
    with pytest.raises(ValueError, match="use the graph that remove_channels returned"):
        remove_channels(model, graph, cuts)
    with pytest.raises(ValueError, match=r"the graph knows .* and the model does not"):
        remove_channels(nn.Linear(2, 2), graph, cuts)
    assert state_bytes(model) == before
    assert remove_channels(model, small, {"blocks.block3_0.mlp.fc1": [1]}).original(
        "blocks.block3_0.mlp.fc1"
    ).tolist() == [[1]]


def test_a_graph_of_a_transformer_reads_like_sentences() -> None:
    config = SDTv2Config(
        in_channels=1,
        num_classes=3,
        time_steps=1,
        embed_dims=(4, 6, 8, 8),
        num_heads=2,
        conv_depths=(0, 0, 1),
        depths=(0, 1),
        stem_kernel=3,
    )
    graph = trace(build(config, 0), torch.randn(1, 1, 16, 16))
    block, attn = "blocks.block4_0", "blocks.block4_0.attn"
    inner = [
        f"{attn}.{p}:inner: 8 channels, made by {attn}.{p}.inner, read by {attn}.{p}.outer"
        for p in ("q", "k", "v", "proj")
    ]
    assert sorted(str(graph).splitlines()) == sorted(
        [
            "blocks.down1a: 2 channels, made by blocks.down1a.conv, read by blocks.down1b.conv",
            "blocks.down1b: 4 channels, made by blocks.down1b.conv, read by blocks.down2.conv",
            "blocks.down2:stream: 6 stream channels, made by blocks.down2.conv and "
            "blocks.conv2a.sep.pw2.conv and blocks.conv2a.conv2.conv, read by "
            "blocks.conv2a.sep.pw1.conv and blocks.conv2a.conv1.conv and blocks.down3.conv",
            "blocks.conv2a.sep.pw1: 12 channels, made by blocks.conv2a.sep.pw1.conv, "
            "read by blocks.conv2a.sep.pw2.conv",
            "blocks.conv2a.conv1: 24 channels, made by blocks.conv2a.conv1.conv, "
            "read by blocks.conv2a.conv2.conv",
            "blocks.down3: 8 channels, made by blocks.down3.conv, read by blocks.down4.conv",
            "blocks.down4:stream: 8 stream channels, made by blocks.down4.conv and "
            f"{attn}.proj.outer and {block}.mlp.fc2.conv, read by {attn}.q.inner, "
            f"{attn}.k.inner, {attn}.v.inner and 2 more",
            *inner,
            f"{attn}.q+k: 2 x 4 channels, made by {attn}.q.outer and {attn}.k.outer, "
            "read by a product or sum inside the forward",
            f"{attn}:heads: 2 heads, made by {attn}.q.outer and {attn}.k.outer and "
            f"{attn}.v.outer, read by {attn}.proj.inner",
            f"{attn}.v: 2 x 4 channels, made by {attn}.v.outer, read by {attn}.proj.inner",
            f"{block}.mlp.fc1: 32 channels, made by {block}.mlp.fc1.conv, "
            f"read by {block}.mlp.fc2.conv",
            "head: 3 channels, made by head.fc, read by nothing; protected: reaches the model's "
            "output",
        ]
    )
