"""What a trace and a cut promise beside the invariants of every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels, trace, verify
from primesvt.models import build_model, create_model
from primesvt.models.families.sdt_v2 import SDTv2Config

from ..families.case import described
from ..families.cuts import random_cuts
from ..families.sdt_v2 import table
from .firing import neurons, state_bytes

pytestmark = pytest.mark.quick


def build(config: SDTv2Config, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(config).eval()


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
    assert {refusal.group for refusal in verify(model, flat)} == mistaken


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
