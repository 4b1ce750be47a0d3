"""SDT-V2 by hand: which channels SPEC's table couples, and how a test silences their readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.models.families.sdt_v2 import SDTv2Config

from .firing import silence

STAGES = ("down1a", "down1b", "down2", "down3", "down4")


@dataclass(frozen=True)
class Expected:
    """One row of the table: who writes, who reads, who follows (module paths), and the sizes."""

    kind: str
    size: int
    fronts: tuple[int, ...]
    producers: frozenset[str]
    readers: frozenset[str]
    members: frozenset[tuple[str, int]]


def widths(config: SDTv2Config) -> tuple[int, ...]:
    e0, e1, e2, e3 = config.embed_dims
    return e0 // 2, e0, e1, e2, e3


def stage_blocks(model: nn.Module) -> list[list[str]]:
    """Block names after every downsampling, read off the names alone."""
    found: list[list[str]] = []
    for name, _ in model.blocks.named_children():
        if name.startswith("down"):
            found.append([])
        else:
            found[-1].append(f"blocks.{name}")
    return found


def _tensors(model: nn.Module, module: str, axis: int = 0) -> set[tuple[str, int]]:
    """Every parameter and buffer right inside a module, along an axis (scalars left out)."""
    owner = model.get_submodule(module)
    own = {**owner._parameters, **owner._buffers}
    return {(f"{module}.{n}", axis) for n, t in own.items() if t is not None and t.dim() > axis}


def _row(
    model: nn.Module,
    kind: str,
    size: int,
    fronts: tuple[int, ...],
    producers: list[str],
    readers: list[str],
    followers: list[str],
) -> Expected:
    members: set[tuple[str, int]] = set()
    for module in (*producers, *followers):
        members |= _tensors(model, module)
    members |= {(f"{module}.weight", 1) for module in readers}
    return Expected(
        kind, size, fronts, frozenset(producers), frozenset(readers), frozenset(members)
    )


def table(model: nn.Module, config: SDTv2Config) -> dict[str, Expected]:
    """Every group that may be cut, as SPEC section 3 says."""
    rows: dict[str, Expected] = {}
    stages, sizes = stage_blocks(model), widths(config)
    for stage, (blocks, width) in enumerate(zip(stages, sizes, strict=True)):
        for block in blocks:
            rows |= _conv_rows(model, config, block, width) if stage < 3 else {}
            rows |= _attention_rows(model, config, block, width) if stage >= 3 else {}
        name = f"blocks.{STAGES[stage]}"
        rows[f"{name}:stream" if blocks else name] = _stream(model, stages, stage, width)
    return rows


def _conv_rows(
    model: nn.Module, config: SDTv2Config, block: str, width: int
) -> dict[str, Expected]:
    return {
        f"{block}.sep.pw1": _row(
            model,
            "channel",
            round(width * config.sep_ratio),
            (),
            [f"{block}.sep.pw1.conv"],
            [f"{block}.sep.pw2.conv"],
            [f"{block}.sep.pw1.bn", f"{block}.sep.dw"],
        ),
        f"{block}.conv1": _row(
            model,
            "channel",
            round(width * config.conv_ratio),
            (),
            [f"{block}.conv1.conv"],
            [f"{block}.conv2.conv"],
            [f"{block}.conv1.bn"],
        ),
    }


def _attention_rows(
    model: nn.Module, config: SDTv2Config, block: str, width: int
) -> dict[str, Expected]:
    heads, attn = config.num_heads, f"{block}.attn"
    fronts = (heads,) if heads > 1 else ()
    rows = {
        f"{attn}.{part}:inner": _row(
            model,
            "channel",
            width,
            (),
            [f"{attn}.{part}.inner"],
            [f"{attn}.{part}.outer"],
            [f"{attn}.{part}.pad.bn", f"{attn}.{part}.depthwise"],
        )
        for part in ("q", "k", "v", "proj")
    }
    rows[f"{attn}.q+k"] = _row(
        model,
        "channel",
        width // heads,
        fronts,
        [f"{attn}.q.outer", f"{attn}.k.outer"],
        [],
        [f"{attn}.{p}.{bn}" for p in ("q", "k") for bn in ("outer_bn", "bn")],
    )
    rows[f"{attn}.v"] = _row(
        model,
        "channel",
        width // heads,
        fronts,
        [f"{attn}.v.outer"],
        [f"{attn}.proj.inner"],
        [f"{attn}.v.outer_bn", f"{attn}.v.bn"],
    )
    rows[f"{block}.mlp.fc1"] = _row(
        model,
        "channel",
        round(width * config.mlp_ratio),
        (),
        [f"{block}.mlp.fc1.conv"],
        [f"{block}.mlp.fc2.conv"],
        [f"{block}.mlp.fc1.bn"],
    )
    return rows


def _stream(model: nn.Module, stages: list[list[str]], stage: int, width: int) -> Expected:
    down = f"blocks.{STAGES[stage]}"
    producers, readers, norms = [f"{down}.conv"], [], [f"{down}.bn"]
    for block in stages[stage]:
        if stage < 3:
            producers += [f"{block}.sep.pw2.conv", f"{block}.conv2.conv"]
            norms += [f"{block}.sep.pw2.bn", f"{block}.conv2.bn"]
            readers += [f"{block}.sep.pw1.conv", f"{block}.conv1.conv"]
        else:
            producers += [f"{block}.attn.proj.outer", f"{block}.mlp.fc2.conv"]
            norms += [f"{block}.attn.proj.outer_bn", f"{block}.attn.proj.bn", f"{block}.mlp.fc2.bn"]
            readers += [f"{block}.attn.{p}.inner" for p in ("q", "k", "v")]
            readers += [f"{block}.mlp.fc1.conv"]
    if stage < 4:
        readers.append(f"blocks.{STAGES[stage + 1]}.conv")
    else:
        readers += ["head.fc"] + (["head.fc_kd"] if model.head.fc_kd is not None else [])
    kind = "stream" if stages[stage] else "channel"
    return _row(model, kind, width, (), producers, readers, norms)


def described(graph: ChannelGraph, group: ChannelGroup) -> Expected:
    """A traced group in the table's terms."""
    return Expected(
        group.kind,
        group.size,
        group.fronts,
        frozenset(m.module for m in group.producers),
        frozenset(m.module for m in group.readers),
        frozenset((m.tensor, m.axis) for m in group.members),
    )


def flat(kept: Any, size: int) -> np.ndarray:
    """Kept indices ``[positions][k]`` as indices of the whole axis, head by head."""
    rows = np.atleast_2d(np.asarray(kept))
    return np.concatenate([np.sort(row) + i * size for i, row in enumerate(rows)])


def gone(kept: Any, size: int) -> list[int]:
    rows = np.atleast_2d(np.asarray(kept))
    return sorted(set(range(rows.shape[0] * size)) - set(flat(kept, size).tolist()))


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels (masks by hand, not from the graph)."""
    path, _, last = name.rpartition(".")
    if last.endswith(":inner"):
        _blind(model, f"{path}.{last.removesuffix(':inner')}.outer", removed)
    elif last == "q+k":
        silence(model.get_submodule(f"{path}.q_lif"), removed)
    elif last == "v":
        _blind(model, f"{path}.proj.inner", removed)
    elif last == "fc1":
        _blind(model, f"{path}.fc2.conv", removed)
    elif last == "pw1":
        _blind(model, f"{path}.pw2.conv", removed)
    elif last == "conv1":
        _blind(model, f"{path}.conv2.conv", removed)
    else:
        for neuron in stream_neurons(model, last.removesuffix(":stream")):
            silence(model.get_submodule(neuron), removed)


def _blind(model: nn.Module, reader: str, removed: list[int]) -> None:
    with torch.no_grad():
        model.get_submodule(reader).weight[:, removed] = 0.0


def stream_neurons(model: nn.Module, down: str) -> list[str]:
    """The neurons that read a stage's stream."""
    stage = STAGES.index(down)
    found = []
    for block in stage_blocks(model)[stage]:
        inside = ("sep.lif1", "lif1") if stage < 3 else ("attn.lif", "mlp.lif1")
        found += [f"{block}.{neuron}" for neuron in inside]
    return [*found, f"blocks.{STAGES[stage + 1]}.lif" if stage < 4 else "head.lif"]


def group_of(model: nn.Module, neuron: str) -> str:
    """The group whose channels enter a neuron."""
    path, _, last = neuron.rpartition(".")
    if path.endswith(".sep") and last == "lif2":
        return f"{path}.pw1"
    if path.endswith(".mlp") and last == "lif2":
        return f"{path}.fc1"
    if path.endswith(".attn") and last != "lif":
        return f"{path}.q+k" if last in ("q_lif", "k_lif") else f"{path}.v"
    if last == "lif2":
        return f"{path}.conv1"
    for stage, down in enumerate(STAGES):
        if neuron in stream_neurons(model, down):
            name = f"blocks.{down}"
            return f"{name}:stream" if stage_blocks(model)[stage] else name
    raise AssertionError(neuron)


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 1) -> SDTv2Config:
    """Small networks with odd widths, one head or several, blocks or none."""
    heads = draw(st.integers(1, 4))
    ratios = st.sampled_from((1, 1.5, 2, 3))
    return SDTv2Config(
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 3)),
        embed_dims=(
            2 * draw(st.integers(2, 3)),
            draw(st.integers(2, 7)),
            heads * draw(st.integers(2, 4)),
            heads * draw(st.integers(2, 5)),
        ),
        num_heads=heads,
        mlp_ratio=draw(ratios),
        conv_ratio=draw(st.sampled_from((1, 2, 3))),
        sep_ratio=draw(st.sampled_from((1, 2, 3))),
        conv_depths=tuple(draw(st.integers(0, depth)) for _ in range(3)),
        depths=(draw(st.integers(0, depth)), draw(st.integers(1, depth))),
        stem_kernel=3,
        strides=(draw(st.integers(1, 2)), 1, draw(st.integers(1, 2)), 1, 1),
        distillation=draw(st.booleans()),
    )


def random_cuts(
    graph: ChannelGraph, rng: np.random.Generator, *, streams: bool = False
) -> Mapping[str, np.ndarray]:
    """Several groups at once; other channels, in any order, at every front position."""
    cuts = {}
    for group in graph:
        wanted = group.prunable or (streams and group.kind == "stream" and group.status == "free")
        if not wanted or rng.random() < 0.3:
            continue
        count = int(rng.integers(1, group.size + 1))
        cuts[group.name] = np.stack(
            [rng.permutation(group.size)[:count] for _ in range(group.positions)]
        )
    return cuts
