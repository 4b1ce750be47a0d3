"""SDT-V3 base by hand: which channels SPEC section 4a couples, and what the tests draw."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.sdt_v3 import SDTv3Config
from primesvt.models.neurons import IntegerNeuron

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row
from .sdt_v2 import STAGES, stage_blocks


def table(model: nn.Module, config: SDTv3Config) -> dict[str, Expected]:
    """Every group that may be cut."""
    rows: dict[str, Expected] = {}
    stages = stage_blocks(model)
    widths = (config.embed_dims[0] // 2, *config.embed_dims)
    for stage, (blocks, width) in enumerate(zip(stages, widths, strict=True)):
        for block in blocks:
            rows |= _sep_row(model, block, int(width * config.sep_ratio))
            if stage < 3:
                rows |= hidden_row(model, block, "conv1", "conv2", int(width * config.conv_ratio))
            else:
                rows |= _attention_rows(model, config, block, width)
        name = f"blocks.{STAGES[stage]}"
        rows[f"{name}:stream" if blocks else name] = _stream(model, stages, stage, width)
    return rows


def _sep_row(model: nn.Module, block: str, hidden: int) -> dict[str, Expected]:
    """The norm behind the depthwise convolution belongs to the group, unlike in SDT-V2."""
    sep = f"{block}.sep"
    return {
        f"{sep}.pw1": row(
            model,
            "channel",
            hidden,
            (),
            producers=[f"{sep}.pw1.conv"],
            readers=[f"{sep}.pw2.conv"],
            followers=[f"{sep}.pw1.bn", f"{sep}.dw.conv", f"{sep}.dw.bn"],
        )
    }


def hidden_row(
    model: nn.Module, path: str, first: str, second: str, size: int
) -> dict[str, Expected]:
    """A hidden width between two layers with norms behind them."""
    return {
        f"{path}.{first}": row(
            model,
            "channel",
            size,
            (),
            producers=[f"{path}.{first}.conv"],
            readers=[f"{path}.{second}.conv"],
            followers=[f"{path}.{first}.bn"],
        )
    }


def _attention_rows(
    model: nn.Module, config: SDTv3Config, block: str, width: int
) -> dict[str, Expected]:
    heads, attn = config.num_heads, f"{block}.attn"
    fronts = (heads,) if heads > 1 else ()
    return {
        f"{attn}.q+k": row(
            model,
            "channel",
            width // heads,
            fronts,
            producers=[f"{attn}.q.conv", f"{attn}.k.conv"],
            readers=[],
            followers=[f"{attn}.q.bn", f"{attn}.k.bn"],
        ),
        f"{attn}.v": row(
            model,
            "channel",
            int(width * config.v_ratio) // heads,
            fronts,
            producers=[f"{attn}.v.conv"],
            readers=[f"{attn}.proj.conv"],
            followers=[f"{attn}.v.bn"],
        ),
        **hidden_row(model, f"{block}.mlp", "fc1", "fc2", int(width * config.mlp_ratio)),
    }


def _stream(model: nn.Module, stages: list[list[str]], stage: int, width: int) -> Expected:
    writers, readers = [f"blocks.{STAGES[stage]}"], []
    for block in stages[stage]:
        if stage < 3:
            writers += [f"{block}.sep.pw2", f"{block}.conv2"]
            readers += [f"{block}.sep.pw1.conv", f"{block}.conv1.conv"]
        else:
            writers += [f"{block}.sep.pw2", f"{block}.attn.proj", f"{block}.mlp.fc2"]
            readers += [f"{block}.{layer}.conv" for layer in ("sep.pw1", "mlp.fc1")]
            readers += [f"{block}.attn.{part}.conv" for part in ("q", "k", "v")]
    readers.append(f"blocks.{STAGES[stage + 1]}.conv" if stage < 4 else "head.fc")
    return row(
        model,
        "stream" if stages[stage] else "channel",
        width,
        (),
        producers=[f"{writer}.conv" for writer in writers],
        readers=readers,
        followers=[f"{writer}.bn" for writer in writers],
    )


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    readers = {"v": "proj.conv", "fc1": "fc2.conv", "pw1": "pw2.conv", "conv1": "conv2.conv"}
    if last == "q+k":
        silence(model.get_submodule(f"{path}.q_lif"), removed)
    elif last in readers:
        blind(model, f"{path}.{readers[last]}", removed)
    else:
        for neuron in stream_neurons(model, last.removesuffix(":stream")):
            silence(model.get_submodule(neuron), removed)


def stream_neurons(model: nn.Module, down: str) -> list[str]:
    """The neurons that read a stage's stream."""
    stage = STAGES.index(down)
    inside = ("sep.lif1", "lif1") if stage < 3 else ("sep.lif1", "attn.lif", "mlp.lif1")
    found = [f"{block}.{neuron}" for block in stage_blocks(model)[stage] for neuron in inside]
    return [*found, f"blocks.{STAGES[stage + 1]}.lif" if stage < 4 else "head.lif"]


def entering(model: nn.Module, neuron: str) -> tuple[str, int]:
    """The group whose channels enter a neuron, always along axis 2 of ``[T, B, C, H, W]``."""
    path, _, last = neuron.rpartition(".")
    for stage, down in enumerate(STAGES):
        if neuron in stream_neurons(model, down):
            name = f"blocks.{down}"
            return f"{name}:stream" if stage_blocks(model)[stage] else name, 2
    if path.endswith(".sep"):
        return f"{path}.pw1", 2
    if path.endswith(".attn"):
        return f"{path}.q+k" if last in ("q_lif", "k_lif") else f"{path}.v", 2
    return f"{path}.fc1" if path.endswith(".mlp") else f"{path}.conv1", 2


def head_groups(config: SDTv3Config) -> int:
    return sum(config.depths) if config.num_heads > 1 else 0


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 1) -> SDTv3Config:
    """Small networks with odd widths, one head or several, convolutional blocks or none."""
    heads = draw(st.integers(1, 3))
    return SDTv3Config(
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 2)),
        embed_dims=(
            2 * draw(st.integers(2, 3)),
            draw(st.integers(2, 7)),
            heads * draw(st.integers(2, 4)),
            heads * draw(st.integers(2, 5)),
        ),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((1, 1.5, 2, 3))),
        conv_ratio=draw(st.sampled_from((1, 2, 3))),
        sep_ratio=draw(st.sampled_from((1, 2, 3))),
        v_ratio=draw(st.sampled_from((1, 2, 4))),
        conv_depths=tuple(draw(st.integers(0, depth)) for _ in range(3)),
        depths=(draw(st.integers(1, depth)), draw(st.integers(1, depth))),
        stem_kernel=3,
        strides=(draw(st.integers(1, 2)), 1, draw(st.integers(1, 2)), 1, 1),
        spike_levels=draw(st.sampled_from((1, 4, 8))),
    )


def round_the_other_way(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, IntegerNeuron):
            module.rounding = "up" if module.rounding == "even" else "even"


def scale_by(factor: float) -> Callable[[nn.Module], None]:
    def spoil(model: nn.Module) -> None:
        model.blocks.block3_0.attn.scale *= factor

    return spoil


def divide_the_last_levels(model: nn.Module) -> None:
    model.head.lif.norm = float(model.head.lif.levels)


CASE = FamilyCase(
    family="sdt_v3",
    goldens={"sdt3-base-tiny": {"num_heads": 2}},
    manifests={
        "sdt3-imagenet-base-l-19M": "sdt_v3_19m",
        "sdt3-imagenet-base-m-10M": "sdt_v3_10m",
        "sdt3-imagenet-base-s-5M": "sdt_v3_5m",
        "sdt3-imagenet-base-t": "sdt_v3_3m",
    },
    configs=configs,
    table=table,
    heads=head_groups,
    ignore=ignore,
    entering=entering,
    spoilers={
        "the other rounding": round_the_other_way,
        "half the attention scale": scale_by(0.5),
        "last levels divided": divide_the_last_levels,
    },
    shares={"sdt_v3_19m": 0.85, "sdt_v3_10m": 0.85, "sdt_v3_5m": 0.85, "sdt_v3_small": 0.8},
)
