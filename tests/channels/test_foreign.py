"""Spiking transformers that nobody here wrote: those of the SpikingJelly package."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based.model import maxformer, qkformer, spike_driven_transformer
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import Tensor, nn

from primesvt.channels import ChannelGraph, remove_channels, trace, verify

from .firing import clone, excite, margin, record, same, silence, state_bytes

DIM, HEADS, WIDTH, HIDDEN = 32, 4, 8, 128


def spikformer(seed: int = 0, **changes: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    settings = {"T": 2, "num_classes": 5, "embed_dims": DIM, "num_heads": HEADS, "depths": 2}
    sizes = {"img_size_h": 16, "img_size_w": 16, "patch_size": 4}
    model = Spikformer(**settings, **sizes, **changes).double()
    x = torch.randn(2, 3, 16, 16).double()
    assert excite(model, x, seed)
    return model, x


def attention(block: int) -> str:
    return f"blocks.{block}.attn.qkv_conv_bn"


def blind(model: nn.Module, reader: str, gone: Any) -> None:
    """Zero the columns of a layer that reads the channels."""
    with torch.no_grad():
        model.get_submodule(reader).weight[:, torch.as_tensor(gone)] = 0.0


def test_the_groups_of_spikformer() -> None:
    model, x = spikformer()
    graph = trace(model, x)
    found = {
        g.name: (g.kind, g.size, g.fronts, *({m.module for m in side} for side in sides(g)))
        for g in graph
        if g.status == "free" and g.kind != "heads"
    }
    stage, place = "patch_embed.stages.{}.conv_bn.block.0", "patch_embed.positional_encoding"
    wanted: dict[str, Any] = {
        f"patch_embed.stages.{i}": (
            "channel",
            DIM >> (3 - i),
            (),
            {stage.format(i)},
            {stage.format(i + 1)},
        )
        for i in range(3)
    }
    writers = {stage.format(3), f"{place}.conv_bn.block.0"}
    readers = {f"{place}.conv_bn.block.0", "head"}
    for i in range(2):
        inside, out = f"{attention(i)}.0", f"blocks.{i}.attn.proj_conv_bn.0"
        fc1, fc2 = f"blocks.{i}.mlp.fc1.0", f"blocks.{i}.mlp.fc2.0"
        wanted[attention(i)] = ("channel", WIDTH, (HEADS,), {inside}, {out})
        wanted[f"blocks.{i}.mlp.fc1"] = ("channel", HIDDEN, (), {fc1}, {fc2})
        writers |= {out, fc2}
        readers |= {inside, fc1}
    wanted["patch_embed.stages:stream"] = ("stream", DIM, (), writers, readers)
    assert found == wanted
    assert {g.name for g in graph if g.status != "free"} == {"head"}
    assert [g.size for g in graph if g.kind == "heads"] == [HEADS, HEADS]
    assert verify(model, graph, groups=list(wanted)) == []


def sides(group: Any) -> tuple[Any, Any]:
    return group.producers, group.readers


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_spikformer_is_cut_exactly(seed: int, stream: bool) -> None:
    model, x = spikformer(seed)
    graph, rng = trace(model, x), np.random.default_rng(seed)
    masked, pruned = clone(model), clone(model)
    cuts: dict[str, Any] = {}
    left: dict[str, Any] = {}  # neuron -> what remains of the currents that enter it

    def choose(name: str, size: int, positions: int = 1) -> np.ndarray:
        count = int(rng.integers(1, size))
        cuts[name] = np.sort([rng.permutation(size)[:count] for _ in range(positions)])
        return cuts[name]

    for i, size in enumerate((4, 8, 16)):
        (kept,) = choose(f"patch_embed.stages.{i}", size)
        left[f"patch_embed.stages.{i}.neuron"] = kept
        blind(masked, f"patch_embed.stages.{i + 1}.conv_bn.block.0", others(kept, size))
    for i in range(2):
        (kept,) = choose(f"blocks.{i}.mlp.fc1", HIDDEN)
        left[f"blocks.{i}.mlp.neuron1"] = kept
        blind(masked, f"blocks.{i}.mlp.fc2.0", others(kept, HIDDEN))
        rows = choose(attention(i), WIDTH, HEADS)
        kept = np.concatenate([row + h * WIDTH for h, row in enumerate(rows)])
        inside = np.concatenate([kept + j * DIM for j in range(3)])
        left[f"blocks.{i}.attn.qkv_lif"] = inside
        left[f"blocks.{i}.attn.attn_lif"] = kept
        silence(masked.get_submodule(f"blocks.{i}.attn.qkv_lif"), others(inside, 3 * DIM))
    if stream:
        (kept,) = choose("patch_embed.stages:stream", DIM)
        ends = [f"blocks.{i}.{end}" for i in range(2) for end in ("attn.proj_lif", "mlp.neuron2")]
        left |= dict.fromkeys(
            ["patch_embed.stages.3.neuron", "patch_embed.positional_encoding.neuron", *ends], kept
        )
        readers = [f"blocks.{i}.{r}.0" for i in range(2) for r in ("attn.qkv_conv_bn", "mlp.fc1")]
        for reader in ("patch_embed.positional_encoding.conv_bn.block.0", *readers, "head"):
            blind(masked, reader, others(kept, DIM))
    remove_channels(pruned, graph, cuts)
    currents, _, logits = record(masked, x)
    if margin(masked, currents) < 1e-7:
        pytest.skip("a membrane potential lies on its threshold")
    small, _, small_logits = record(pruned, x)
    for name, current in currents.items():
        if name.endswith("attn_lif"):  # [T, B, heads, width, tokens]
            current, small[name] = current.flatten(2, 3), small[name].flatten(2, 3)
        wanted = current[:, :, left[name]] if name in left else current
        assert same(small[name], wanted), name
    assert same(small_logits, logits)


def others(kept: np.ndarray, size: int) -> list[int]:
    return sorted(set(range(size)) - set(kept.tolist()))


def test_spikformer_pruned_to_one_channel_per_head_has_the_same_groups() -> None:
    model, x = spikformer()
    graph = trace(model, x)
    small = remove_channels(model, graph, {attention(i): [[1]] * HEADS for i in range(2)})
    assert str(trace(model, x)) == str(small)


def checked(model: nn.Module, x: Tensor) -> tuple[ChannelGraph, set[str]]:
    """The graph of a network that is cut in every group, and what fails if nothing is rewritten."""
    model, x = model.double(), x.double()
    assert excite(model, x, 0)
    before = state_bytes(model)
    graph = trace(model, x)
    assert verify(model, graph) == []
    found = verify(model, replace(graph, rewrites=()))
    assert state_bytes(model) == before
    assert all("shape" in r.reason or "view" in r.reason for r in found)
    return graph, {f"{r.group} in {r.module}" for r in found}


def test_spike_driven_transformer_writes_its_width_into_the_attention() -> None:
    model = spike_driven_transformer.SpikeDrivenTransformer(
        T=2, num_classes=5, embed_dims=DIM, num_heads=HEADS, depths=1, pooling_stat="0011"
    )
    graph, found = checked(model, torch.randn(2, 3, 16, 16))
    assert {g.name: (g.size, g.fronts) for g in graph.prunable()} == {
        "patch_embed.stages.0": (4, ()),
        "patch_embed.stages.1": (8, ()),
        "patch_embed.stages.2": (16, ()),
        "blocks.0.attn.q_conv+k_conv+v_conv": (WIDTH, (HEADS,)),
        "blocks.0.mlp.fc1": (HIDDEN, ()),
    }
    assert found == {
        "patch_embed.final_stage:stream in blocks.0.attn",
        "blocks.0.attn.q_conv+k_conv+v_conv in blocks.0.attn",
    }


def test_qkformer_writes_its_widths_into_the_token_attention() -> None:
    model = qkformer.QKFormer(
        T=2, num_classes=5, embed_dims=DIM, num_heads=(2, 4, 4), depths=(1, 1, 1)
    )
    graph, found = checked(model, torch.randn(2, 3, 32, 32))
    assert [g.name for g in graph.prunable()] == [
        "patch_embed1.conv1",
        "patch_embed1.conv2",
        "stage1.0.attn.qk_conv_bn",
        "stage1.0.mlp.fc1",
        "patch_embed2.conv1",
        "stage2.0.attn.qk_conv_bn",
        "stage2.0.mlp.fc1",
        "patch_embed3.conv1",
        "stage3.0.attn.qkv_conv_bn",
        "stage3.0.mlp.fc1",
    ]
    assert found == {
        "patch_embed1.conv3:stream in stage1.0.attn",
        "stage1.0.attn.qk_conv_bn in stage1.0.attn",
        "patch_embed2.conv2:stream in stage2.0.attn",
        "stage2.0.attn.qk_conv_bn in stage2.0.attn",
    }


def test_maxformer_writes_its_width_into_the_attention() -> None:
    model = maxformer.MaxFormer(T=2, num_classes=5, embed_dims=DIM, depths=(1, 1, 1), cifar=True)
    graph, found = checked(model, torch.randn(2, 3, 16, 16))
    assert graph.prunable()
    assert found == {
        "patch_embed3.shortcut:stream in stage3.0.attn",
        "stage3.0.attn.qkv in stage3.0.attn",
    }
