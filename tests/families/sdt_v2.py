"""SDT-V2 by hand: which channels SPEC section 3 couples, and how a test silences their readers."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.sdt_v2 import SDTv2Config

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row

STAGES = ("down1a", "down1b", "down2", "down3", "down4")


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


def table(model: nn.Module, config: SDTv2Config) -> dict[str, Expected]:
    """Every group that may be cut."""
    rows: dict[str, Expected] = {}
    stages, sizes = stage_blocks(model), widths(config)
    for stage, (blocks, width) in enumerate(zip(stages, sizes, strict=True)):
        for block in blocks:
            rows |= (_conv_rows if stage < 3 else _attention_rows)(model, config, block, width)
        name = f"blocks.{STAGES[stage]}"
        rows[f"{name}:stream" if blocks else name] = _stream(model, stages, stage, width)
    return rows


def _conv_rows(
    model: nn.Module, config: SDTv2Config, block: str, width: int
) -> dict[str, Expected]:
    return {
        f"{block}.sep.pw1": row(
            model,
            "channel",
            round(width * config.sep_ratio),
            (),
            producers=[f"{block}.sep.pw1.conv"],
            readers=[f"{block}.sep.pw2.conv"],
            followers=[f"{block}.sep.pw1.bn", f"{block}.sep.dw"],
        ),
        f"{block}.conv1": row(
            model,
            "channel",
            round(width * config.conv_ratio),
            (),
            producers=[f"{block}.conv1.conv"],
            readers=[f"{block}.conv2.conv"],
            followers=[f"{block}.conv1.bn"],
        ),
    }


def _attention_rows(
    model: nn.Module, config: SDTv2Config, block: str, width: int
) -> dict[str, Expected]:
    heads, attn = config.num_heads, f"{block}.attn"
    fronts = (heads,) if heads > 1 else ()
    rows = {
        f"{attn}.{part}:inner": row(
            model,
            "channel",
            width,
            (),
            producers=[f"{attn}.{part}.inner"],
            readers=[f"{attn}.{part}.outer"],
            followers=[f"{attn}.{part}.pad.bn", f"{attn}.{part}.depthwise"],
        )
        for part in ("q", "k", "v", "proj")
    }
    rows[f"{attn}.q+k"] = row(
        model,
        "channel",
        width // heads,
        fronts,
        producers=[f"{attn}.q.outer", f"{attn}.k.outer"],
        readers=[],
        followers=[f"{attn}.{p}.{bn}" for p in ("q", "k") for bn in ("outer_bn", "bn")],
    )
    rows[f"{attn}.v"] = row(
        model,
        "channel",
        width // heads,
        fronts,
        producers=[f"{attn}.v.outer"],
        readers=[f"{attn}.proj.inner"],
        followers=[f"{attn}.v.outer_bn", f"{attn}.v.bn"],
    )
    rows[f"{block}.mlp.fc1"] = row(
        model,
        "channel",
        round(width * config.mlp_ratio),
        (),
        producers=[f"{block}.mlp.fc1.conv"],
        readers=[f"{block}.mlp.fc2.conv"],
        followers=[f"{block}.mlp.fc1.bn"],
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
    return row(model, kind, width, (), producers=producers, readers=readers, followers=norms)


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    readers = {"v": "proj.inner", "fc1": "fc2.conv", "pw1": "pw2.conv", "conv1": "conv2.conv"}
    if last.endswith(":inner"):
        blind(model, f"{path}.{last.removesuffix(':inner')}.outer", removed)
    elif last == "q+k":
        silence(model.get_submodule(f"{path}.q_lif"), removed)
    elif last in readers:
        blind(model, f"{path}.{readers[last]}", removed)
    else:
        for neuron in stream_neurons(model, last.removesuffix(":stream")):
            silence(model.get_submodule(neuron), removed)


def stream_neurons(model: nn.Module, down: str) -> list[str]:
    """The neurons that read a stage's stream."""
    stage = STAGES.index(down)
    found = []
    for block in stage_blocks(model)[stage]:
        inside = ("sep.lif1", "lif1") if stage < 3 else ("attn.lif", "mlp.lif1")
        found += [f"{block}.{neuron}" for neuron in inside]
    return [*found, f"blocks.{STAGES[stage + 1]}.lif" if stage < 4 else "head.lif"]


def entering(model: nn.Module, neuron: str) -> tuple[str, int]:
    """The group whose channels enter a neuron, always along axis 2 of ``[T, B, C, H, W]``."""
    path, _, last = neuron.rpartition(".")
    if path.endswith(".sep") and last == "lif2":
        return f"{path}.pw1", 2
    if path.endswith(".mlp") and last == "lif2":
        return f"{path}.fc1", 2
    if path.endswith(".attn") and last != "lif":
        return f"{path}.q+k" if last in ("q_lif", "k_lif") else f"{path}.v", 2
    if last == "lif2":
        return f"{path}.conv1", 2
    for stage, down in enumerate(STAGES):
        if neuron in stream_neurons(model, down):
            name = f"blocks.{down}"
            return f"{name}:stream" if stage_blocks(model)[stage] else name, 2
    raise AssertionError(neuron)


def head_groups(config: SDTv2Config) -> int:
    return sum(config.depths) if config.num_heads > 1 else 0


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


def pad_with_zeros(model: nn.Module) -> None:
    for module in model.modules():
        if type(module).__name__ == "PaddedBN":
            module._of_zero = lambda: torch.zeros(1, 1, 1, 1)


def forget_attention_threshold(model: nn.Module) -> None:
    model.blocks.block3_0.attn.attn_lif.v_threshold = 1.0


CASE = FamilyCase(
    family="sdt_v2",
    goldens={
        "sdt2-tiny": {"num_heads": 4, "time_steps": 4},
        "sdt2-kd-tiny": {"num_heads": 2, "time_steps": 1},
    },
    manifests={
        "sdt2-imagenet-8-256-15M": "sdt_v2_15m",
        "sdt2-imagenet-8-256-15M-kd": "sdt_v2_15m_kd",
        "sdt2-imagenet-8-384-31M": "sdt_v2_31m",
        "sdt2-imagenet-8-384-31M-kd": "sdt_v2_31m_kd",
        "sdt2-imagenet-8-512-55M": "sdt_v2_55m",
        "sdt2-imagenet-8-512-55M-kd": "sdt_v2_55m_kd",
        "sdt2-imagenet-8-768": "sdt_v2_124m",
        "sdt2-imagenet-8-768-kd": "sdt_v2_124m_kd",
    },
    configs=configs,
    table=table,
    heads=head_groups,
    ignore=ignore,
    entering=entering,
    spoilers={
        "zero padding": pad_with_zeros,
        "attention threshold": forget_attention_threshold,
    },
    shares={
        "sdt_v2_15m": 0.85,
        "sdt_v2_15m_kd": 0.85,
        "sdt_v2_31m": 0.85,
        "sdt_v2_digits": 0.8,  # its downsampling convolutions weigh more
    },
)
