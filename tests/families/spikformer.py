"""Spikformer by hand: which channels SPEC section 5 couples; how a test silences their readers."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.spikformer import SpikformerConfig

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row

STREAM = "blocks.stem.conv3:stream"


def layer(config: SpikformerConfig) -> str:
    """What a block's layers call the part that holds the weights."""
    return "linear" if config.layout == "cifar" else "conv"


def blocks(config: SpikformerConfig) -> list[str]:
    return [f"blocks.block{index}" for index in range(config.depth)]


def table(model: nn.Module, config: SpikformerConfig) -> dict[str, Expected]:
    """Every group that may be cut."""
    dim = config.embed_dim
    rows: dict[str, Expected] = {}
    for stage, width in enumerate((dim // 8, dim // 4, dim // 2)):
        rows[f"blocks.stem.conv{stage}"] = row(
            model,
            "channel",
            width,
            (),
            producers=[f"blocks.stem.conv{stage}.conv"],
            readers=[f"blocks.stem.conv{stage + 1}.conv"],
            followers=[f"blocks.stem.conv{stage}.bn"],
        )
    for block in blocks(config):
        rows |= _block_rows(model, config, block)
    return rows | {STREAM: _stream(model, config)}


def _block_rows(model: nn.Module, config: SpikformerConfig, block: str) -> dict[str, Expected]:
    attn, mlp, kind, heads = f"{block}.attn", f"{block}.mlp", layer(config), config.num_heads
    fronts = (heads,) if heads > 1 else ()
    per_head = config.embed_dim // heads
    return {
        f"{attn}.q+k": row(
            model,
            "channel",
            per_head,
            fronts,
            producers=[f"{attn}.q.{kind}", f"{attn}.k.{kind}"],
            readers=[],
            followers=[f"{attn}.q.bn", f"{attn}.k.bn"],
        ),
        f"{attn}.v": row(
            model,
            "channel",
            per_head,
            fronts,
            producers=[f"{attn}.v.{kind}"],
            readers=[f"{attn}.proj.{kind}"],
            followers=[f"{attn}.v.bn"],
        ),
        f"{mlp}.fc1": row(
            model,
            "channel",
            round(config.embed_dim * config.mlp_ratio),
            (),
            producers=[f"{mlp}.fc1.{kind}"],
            readers=[f"{mlp}.fc2.{kind}"],
            followers=[f"{mlp}.fc1.bn"],
        ),
    }


def stream_readers(config: SpikformerConfig) -> list[str]:
    """Layers that read the sum of spikes."""
    inside = ("attn.q", "attn.k", "attn.v", "mlp.fc1")
    readers = [f"{b}.{part}.{layer(config)}" for b in blocks(config) for part in inside]
    return ["blocks.stem.rpe.conv", *readers, "head.fc"]


def _stream(model: nn.Module, config: SpikformerConfig) -> Expected:
    """All that is added up: the patches, their position, and both branches of every block."""
    writers = [f"{b}.{part}" for b in blocks(config) for part in ("attn.proj", "mlp.fc2")]
    stem = ["blocks.stem.conv3", "blocks.stem.rpe"]
    return row(
        model,
        "stream",
        config.embed_dim,
        (),
        producers=[f"{w}.conv" for w in stem] + [f"{w}.{layer(config)}" for w in writers],
        readers=stream_readers(config),
        followers=[f"{w}.bn" for w in stem + writers],
    )


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    kind = layer(model.config)
    if name == STREAM:
        for reader in stream_readers(model.config):
            blind(model, reader, removed)
    elif last == "q+k":
        silence(model.get_submodule(f"{path}.q_lif"), removed)
    elif last in ("v", "fc1"):
        blind(model, f"{path}.{'proj' if last == 'v' else 'fc2'}.{kind}", removed)
    else:
        blind(model, f"{path}.conv{int(last[-1]) + 1}.conv", removed)


def entering(_model: nn.Module, neuron: str) -> tuple[str, int]:
    """The group whose channels enter a neuron, always along axis 2 of ``[T, B, C, H, W]``."""
    path, _, last = neuron.rpartition(".")
    if path == "blocks.stem" and last != "lif3":
        return f"blocks.stem.conv{last[-1]}", 2
    if last == "lif1":
        return f"{path}.fc1", 2
    if last in ("q_lif", "k_lif"):
        return f"{path}.q+k", 2
    if last in ("v_lif", "attn_lif"):
        return f"{path}.v", 2
    return STREAM, 2


def head_groups(config: SpikformerConfig) -> int:
    return config.depth if config.num_heads > 1 else 0


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 1) -> SpikformerConfig:
    """Small networks of every layout with odd widths, one head or several."""
    heads = draw(st.integers(1, 4))
    least = -(-8 // heads)
    return SpikformerConfig(
        layout=draw(st.sampled_from(("imagenet", "cifar", "dvs"))),
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 3)),
        embed_dim=heads * draw(st.integers(least, least + 3)),
        depth=draw(st.integers(1, depth)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((1, 1.5, 2, 3))),
        pooling_stat=draw(st.sampled_from(("0000", "0001", "0011", "1010"))),
        attn_scale=draw(st.sampled_from((0.125, 0.25))),
        pos_tokens=draw(st.integers(1, 5)),
    )


def double_attention(model: nn.Module) -> None:
    model.blocks.block0.attn.scale *= 2


def forget_attention_threshold(model: nn.Module) -> None:
    model.blocks.block0.attn.attn_lif.v_threshold = 1.0


def forget_tokens_of_the_position(model: nn.Module) -> None:
    model.blocks.stem.rpe.lif.register_forward_hook(lambda _module, _inputs, out: out * 0)


CASE = FamilyCase(
    family="spikformer",
    goldens={
        "spikformer-imagenet-tiny": {"num_heads": 4, "time_steps": 4},
        "spikformer-cifar-tiny": {"num_heads": 4, "time_steps": 3},
        "spikformer-dvs-tiny": {"num_heads": 4, "time_steps": 2},
    },
    manifests={
        "spikformer-imagenet-8-384": "spikformer_8_384",
        "spikformer-imagenet-6-512": "spikformer_6_512",
        "spikformer-imagenet-8-512": "spikformer_8_512",
        "spikformer-imagenet-10-512": "spikformer_10_512",
        "spikformer-imagenet-8-768": "spikformer_8_768",
        "spikformer-cifar10-2-384": "spikformer_cifar10_2_384",
        "spikformer-cifar10-4-256": "spikformer_cifar10_4_256",
        "spikformer-cifar10-4-384": "spikformer_cifar10_4_384",
        "spikformer-cifar100-2-384": "spikformer_cifar100_2_384",
        "spikformer-cifar100-4-256": "spikformer_cifar100_4_256",
        "spikformer-cifar100-4-384": "spikformer_cifar100_4_384",
        "spikformer-cifar10dvs-2-256": "spikformer_cifar10dvs",
    },
    configs=configs,
    table=table,
    heads=head_groups,
    ignore=ignore,
    entering=entering,
    shares={
        "spikformer_8_512": 0.8,
        "spikformer_cifar10_4_384": 0.8,
        "spikformer_cifar10dvs": 0.76,  # 22.8 % are rpe_conv's, which the stream alone touches
        "spikformer_digits": 0.7,
    },
    spoilers={
        "attention scale": double_attention,
        "attention threshold": forget_attention_threshold,
        "no position": forget_tokens_of_the_position,
    },
)
