"""SDT-V1 by hand: which channels SPEC section 2 couples, and how a test silences their readers."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.sdt_v1 import SDTv1Config

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row

STEM = "blocks.stem"
STREAM = f"{STEM}.conv3:stream"


def block_names(config: SDTv1Config) -> list[str]:
    return [f"blocks.block{i}" for i in range(config.depth)]


def widens(config: SDTv1Config) -> bool:
    """Whether the MLPs have a width of their own."""
    return round(config.embed_dim * config.mlp_ratio) != config.embed_dim


def table(model: nn.Module, config: SDTv1Config) -> dict[str, Expected]:
    """Every group that may be cut."""
    rows = {STREAM: _stream(model, config)}
    for j, share in enumerate((8, 4, 2)):
        rows[f"{STEM}.conv{j}"] = row(
            model,
            "channel",
            config.embed_dim // share,
            (),
            producers=[f"{STEM}.conv{j}.conv"],
            readers=[f"{STEM}.conv{j + 1}.conv"],
            followers=[f"{STEM}.conv{j}.bn"],
        )
    for block in block_names(config):
        if not config.dvs_mode:
            rows[f"{block}.attn.q+k+v"] = _attention(model, config, f"{block}.attn")
        if widens(config):
            rows[f"{block}.mlp.fc1"] = row(
                model,
                "channel",
                round(config.embed_dim * config.mlp_ratio),
                (),
                producers=[f"{block}.mlp.fc1.conv"],
                readers=[f"{block}.mlp.fc2.conv"],
                followers=[f"{block}.mlp.fc1.bn"],
            )
    return rows


def _attention(model: nn.Module, config: SDTv1Config, attn: str) -> Expected:
    """One set of channels, whatever the heads: any count per head is exact."""
    return row(
        model,
        "channel",
        config.embed_dim,
        (),
        producers=[f"{attn}.{part}.conv" for part in ("q", "k", "v")],
        readers=[f"{attn}.proj.conv"],
        followers=[f"{attn}.{part}.bn" for part in ("q", "k", "v")],
    )


def _stream(model: nn.Module, config: SDTv1Config) -> Expected:
    producers = [f"{STEM}.conv3", f"{STEM}.rpe"]
    readers = [f"{STEM}.rpe.conv", "head.fc"]
    for block in block_names(config):
        producers += [f"{block}.attn.proj", f"{block}.mlp.fc2"]
        readers += [f"{block}.attn.{part}.conv" for part in ("q", "k", "v")]
        readers.append(f"{block}.mlp.fc1.conv")
        if not widens(config):
            producers.append(f"{block}.mlp.fc1")
            readers.append(f"{block}.mlp.fc2.conv")
    return row(
        model,
        "stream",
        config.embed_dim,
        (),
        producers=[f"{layer}.conv" for layer in producers],
        readers=readers,
        followers=[f"{layer}.bn" for layer in producers],
    )


def frozen(model: nn.Module, config: SDTv1Config) -> dict[str, str]:
    """Event pooling mixes neighbouring channels of a head: nothing can be removed exactly.

    The pooling of k * v parts q from k and v.
    """
    if not config.dvs_mode:
        return {}
    reason = "pooling mixes the axis (aten::max_pool3d_with_indices in module '{}.attn.mix.pool')"
    return {
        f"{block}.attn.{parts}": reason.format(block)
        for block in block_names(config)
        for parts in ("q", "k+v")
    }


def head_groups(config: SDTv1Config) -> int:
    """Event pooling stays inside a head, so whole heads are apart; else heads play no part."""
    return config.depth if config.dvs_mode and config.num_heads > 1 else 0


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    if name == STREAM:
        for neuron in stream_neurons(model):
            silence(model.get_submodule(neuron), removed)
    elif path == STEM:
        blind(model, f"{STEM}.conv{int(last[-1]) + 1}.conv", removed)
    else:
        blind(model, f"{path}.{'fc2' if last == 'fc1' else 'proj'}.conv", removed)


def stream_neurons(model: nn.Module) -> list[str]:
    """The neurons that read the stream."""
    found = [f"{STEM}.lif3", "head.lif"]
    for name, block in model.blocks.named_children():
        if name != "stem":
            inside = ["attn.lif", "mlp.lif1"] + ["mlp.lif2"] * block.mlp.inner_shortcut
            found += [f"blocks.{name}.{neuron}" for neuron in inside]
    return found


def entering(model: nn.Module, neuron: str) -> tuple[str, int]:
    """The group whose channels enter a neuron, always along axis 2 of ``[T, B, C, ...]``."""
    path, _, last = neuron.rpartition(".")
    if neuron in stream_neurons(model):
        return STREAM, 2
    if path == STEM:
        return f"{STEM}.conv{last[-1]}", 2
    return f"{path}.fc1" if last == "lif2" else f"{path}.q+k+v", 2


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 2) -> SDTv1Config:
    """Small networks with odd widths, any pooling, both kinds of neurons and of attention."""
    heads = draw(st.integers(1, 4))
    return SDTv1Config(
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 3)),
        embed_dim=heads * draw(st.integers(-(-8 // heads), 24 // heads)),
        depth=draw(st.integers(1, depth)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((1, 1.5, 2, 3))),
        pooling_stat=draw(st.sampled_from(("0000", "1000", "0101", "0011", "1110"))),
        spike_mode=draw(st.sampled_from(("lif", "plif"))),
        dvs_mode=draw(st.booleans()),
        tau=draw(st.sampled_from((1.5, 2.0))),
    )


def halvings(config: SDTv1Config) -> int:
    return 2 ** config.pooling_stat.count("1")


def sizes(config: SDTv1Config) -> st.SearchStrategy[tuple[int, int]]:
    side = st.integers(halvings(config) + 1, 3 * halvings(config))
    return st.tuples(side, side)


def attention(model: Any) -> Any:
    return model.blocks.block0.attn


def forget_gate_threshold(model: Any) -> None:
    if model.config.dvs_mode:
        raise LookupError("pooled sums are 0 or at least 2, and fire at either threshold")
    attention(model).gate_lif.v_threshold = 1.0


def pool_other_heads(model: Any) -> None:
    if not model.config.dvs_mode:
        raise LookupError("no pooling over tokens and channels")
    attention(model).mix.heads //= 2


def forget_spatial_pooling(model: Any) -> None:
    if not model.config.dvs_mode:
        raise LookupError("no pooling of k and v")
    attention(model).space = nn.Identity()


def forget_inner_shortcut(model: Any) -> None:
    mlp = model.blocks.block0.mlp
    if not mlp.inner_shortcut:
        raise LookupError("no MLP as wide as the stream")
    mlp.inner_shortcut = False


def pool_before_the_neuron(model: Any) -> None:
    """What only the last convolution of the patch splitting does."""
    stem = model.blocks.stem
    pool, stem.pool2 = stem.pool2, nn.Identity()
    stem.conv2.register_forward_hook(lambda _module, _args, out: pool(out))


CASE = FamilyCase(
    family="sdt_v1",
    goldens={
        "sdt1-cifar-tiny": {"pooling_stat": "0011", "time_steps": 3, "dvs_mode": False},
        "sdt1-dvs-tiny": {"pooling_stat": "0011", "time_steps": 5, "dvs_mode": True},
        "sdt1-imagenet-tiny": {"pooling_stat": "1111", "time_steps": 4, "dvs_mode": False},
        "sdt1-plif-mlp1-tiny": {"pooling_stat": "0111", "time_steps": 4, "dvs_mode": False},
    },
    manifests={
        "sdt1-imagenet-8-384": "sdt_v1_8_384",
        "sdt1-imagenet-6-512": "sdt_v1_6_512",
        "sdt1-imagenet-8-512": "sdt_v1_8_512",
        "sdt1-imagenet-10-512": "sdt_v1_10_512",
        "sdt1-imagenet-8-768": "sdt_v1_8_768",
        "sdt1-cifar10-2-256": "sdt_v1_cifar10_2_256",
        "sdt1-cifar10-2-512": "sdt_v1_cifar10_2_512",
        "sdt1-cifar100-2-256": "sdt_v1_cifar100_2_256",
        "sdt1-cifar100-2-512": "sdt_v1_cifar100_2_512",
        "sdt1-cifar10dvs-2-256": "sdt_v1_cifar10dvs",
        "sdt1-gesture-2-256": "sdt_v1_gesture",
    },
    configs=configs,
    table=table,
    heads=head_groups,
    ignore=ignore,
    entering=entering,
    frozen=frozen,
    size=lambda config: (2 * halvings(config), 3 * halvings(config)),
    sizes=sizes,
    spoilers={
        "gate threshold": forget_gate_threshold,
        "heads of the pooling": pool_other_heads,
        "spatial pooling": forget_spatial_pooling,
        "inner shortcut": forget_inner_shortcut,
        "pooling before the neuron": pool_before_the_neuron,
    },
    shares={
        "sdt_v1_8_384": 0.89,
        "sdt_v1_6_512": 0.87,
        "sdt_v1_8_512": 0.90,
        "sdt_v1_10_512": 0.91,
        "sdt_v1_8_768": 0.90,
        "sdt_v1_cifar10_2_256": 0.7,
        "sdt_v1_gesture": 0.7,
        "sdt_v1_cifar10dvs": 0.5,  # the attention widths are frozen
        "sdt_v1_small": 0.7,
        "sdt_v1_digits": 0.7,
    },
)
