"""Spikingformer by hand: which channels SPEC section 6 couples; how a test silences readers."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.spikingformer import SpikingformerConfig

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row

STREAM = "blocks.stem:stream"


def blocks(config: SpikingformerConfig) -> list[str]:
    return [f"blocks.block{index}" for index in range(config.depth)]


def table(model: nn.Module, config: SpikingformerConfig) -> dict[str, Expected]:
    """Every group that may be cut."""
    dim = config.embed_dim
    rows: dict[str, Expected] = {}
    for stage, width in enumerate((dim // 8, dim // 4, dim // 2, dim)):
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


def _block_rows(model: nn.Module, config: SpikingformerConfig, block: str) -> dict[str, Expected]:
    attn, mlp, heads = f"{block}.attn", f"{block}.mlp", config.num_heads
    fronts = (heads,) if heads > 1 else ()
    per_head = config.embed_dim // heads
    return {
        f"{attn}.q+k": row(
            model,
            "channel",
            per_head,
            fronts,
            producers=[f"{attn}.q.conv", f"{attn}.k.conv"],
            readers=[],
            followers=[f"{attn}.q.bn", f"{attn}.k.bn"],
        ),
        f"{attn}.v": row(
            model,
            "channel",
            per_head,
            fronts,
            producers=[f"{attn}.v.conv"],
            readers=[f"{attn}.proj.conv"],
            followers=[f"{attn}.v.bn"],
        ),
        f"{mlp}.fc1": row(
            model,
            "channel",
            round(config.embed_dim * config.mlp_ratio),
            (),
            producers=[f"{mlp}.fc1.conv"],
            readers=[f"{mlp}.fc2.conv"],
            followers=[f"{mlp}.fc1.bn"],
        ),
    }


def _stream(model: nn.Module, config: SpikingformerConfig) -> Expected:
    """The membrane potentials that both branches of every block add to."""
    writers = [f"{b}.{part}" for b in blocks(config) for part in ("attn.proj", "mlp.fc2")]
    writers = ["blocks.stem.conv4", *writers]
    inside = ("attn.q", "attn.k", "attn.v", "mlp.fc1")
    return row(
        model,
        "stream",
        config.embed_dim,
        (),
        producers=[f"{writer}.conv" for writer in writers],
        readers=[f"{b}.{part}.conv" for b in blocks(config) for part in inside] + ["head.fc"],
        followers=[f"{writer}.bn" for writer in writers],
    )


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    if name == STREAM:
        for block in blocks(model.config):
            for neuron in ("attn.lif", "mlp.lif1"):
                silence(model.get_submodule(f"{block}.{neuron}"), removed)
        blind(model, "head.fc", removed)
    elif last == "q+k":
        silence(model.get_submodule(f"{path}.q_lif"), removed)
    elif last in ("v", "fc1"):
        blind(model, f"{path}.{'proj' if last == 'v' else 'fc2'}.conv", removed)
    else:
        blind(model, f"{path}.conv{int(last[-1]) + 1}.conv", removed)


def entering(_model: nn.Module, neuron: str) -> tuple[str, int]:
    """The group whose channels enter a neuron, always along axis 2 of ``[T, B, C, H, W]``."""
    path, _, last = neuron.rpartition(".")
    if path == "blocks.stem":
        return f"blocks.stem.conv{int(last[-1]) - 1}", 2
    if last == "lif2":
        return f"{path}.fc1", 2
    if last in ("q_lif", "k_lif"):
        return f"{path}.q+k", 2
    if last in ("v_lif", "attn_lif"):
        return f"{path}.v", 2
    return STREAM, 2


def head_groups(config: SpikingformerConfig) -> int:
    return config.depth if config.num_heads > 1 else 0


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 1) -> SpikingformerConfig:
    """Small networks of both layouts with odd widths, one head or several."""
    heads = draw(st.integers(1, 4))
    least = -(-8 // heads)
    return SpikingformerConfig(
        layout=draw(st.sampled_from(("imagenet", "cifar"))),
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 3)),
        embed_dim=heads * draw(st.integers(least, least + 3)),
        depth=draw(st.integers(1, depth)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((1, 1.5, 2, 3))),
        pooling_stat=draw(st.sampled_from(("0000", "0001", "0011", "1010"))),
        tau=draw(st.sampled_from((1.5, 2.0))),
    )


def forget_attention_threshold(model: nn.Module) -> None:
    model.blocks.block0.attn.attn_lif.v_threshold = 1.0


def leak_as_for_images(model: nn.Module) -> None:
    """The time constant of the other classes, in a single neuron."""
    neuron = model.blocks.block1.attn.attn_lif
    if neuron.tau == 2:
        raise LookupError("no event-camera model")
    neuron.tau = 2.0


def add_position_as_spikformer_does(model: nn.Module) -> None:
    model.blocks.stem.conv4.register_forward_hook(lambda _module, args, out: args[0] + out)


CASE = FamilyCase(
    family="spikingformer",
    goldens={
        "spikingformer-imagenet-tiny": {"num_heads": 4, "time_steps": 4},
        "spikingformer-cifar-tiny": {"num_heads": 4, "time_steps": 3},
        "spikingformer-dvs-tiny": {"num_heads": 4, "time_steps": 2},
    },
    manifests={
        "spikingformer-imagenet-8-384": "spikingformer_8_384",
        "spikingformer-imagenet-8-512": "spikingformer_8_512",
        "spikingformer-imagenet-8-768": "spikingformer_8_768",
        "spikingformer-cifar10-2-384": "spikingformer_cifar10_2_384",
        "spikingformer-cifar10-4-256": "spikingformer_cifar10_4_256",
        "spikingformer-cifar10-4-384": "spikingformer_cifar10_4_384",
        "spikingformer-cifar100-2-384": "spikingformer_cifar100_2_384",
        "spikingformer-cifar100-4-256": "spikingformer_cifar100_4_256",
        "spikingformer-cifar100-4-384": "spikingformer_cifar100_4_384",
        "spikingformer-cifar10dvs-2-256": "spikingformer_cifar10dvs",
        "spikingformer-dvs128gesture-2-256": "spikingformer_gesture",
    },
    configs=configs,
    table=table,
    heads=head_groups,
    ignore=ignore,
    entering=entering,
    shares={
        "spikingformer_8_512": 0.8,
        "spikingformer_cifar10_4_384": 0.8,
        "spikingformer_gesture": 0.8,
        "spikingformer_digits": 0.7,
    },
    spoilers={
        "attention threshold": forget_attention_threshold,
        "other leak": leak_as_for_images,
        "position added": add_position_as_spikformer_does,
    },
)
