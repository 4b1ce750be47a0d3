"""SDT-V3 large by hand: which channels SPEC section 4b couples, and what the tests draw."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.sdt_v3_large import SDTv3LargeConfig

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row
from .sdt_v2 import STAGES, stage_blocks
from .sdt_v3 import divide_the_last_levels, hidden_row, round_the_other_way, scale_by


def table(model: nn.Module, config: SDTv3LargeConfig) -> dict[str, Expected]:
    """Every group that may be cut."""
    rows: dict[str, Expected] = {}
    stages = stage_blocks(model)
    widths = (config.embed_dims[0] // 2, *config.embed_dims)
    for stage, (blocks, width) in enumerate(zip(stages, widths, strict=True)):
        for block in blocks:
            if stage < 3:
                rows |= hidden_row(model, block, "conv1", "conv2", int(width * config.conv_ratio))
            else:
                rows |= _attention_rows(model, config, block, width)
        name = f"blocks.{STAGES[stage]}"
        rows[f"{name}:stream" if blocks else name] = _stream(model, stages, stage, width)
    return rows


def _inner_row(model: nn.Module, path: str, size: int) -> dict[str, Expected]:
    """The width between the two layers of a RepConv, without a neuron between them."""
    return {
        f"{path}:inner": row(
            model,
            "channel",
            size,
            (),
            producers=[f"{path}.inner.conv"],
            readers=[f"{path}.outer.conv"],
            followers=[f"{path}.inner.bn"],
        )
    }


def _attention_rows(
    model: nn.Module, config: SDTv3LargeConfig, block: str, width: int
) -> dict[str, Expected]:
    heads, attn, v_width = config.num_heads, f"{block}.attn", int(width * config.v_ratio)
    fronts = (heads,) if heads > 1 else ()
    rows = {
        f"{attn}.q+k": row(
            model,
            "channel",
            width // heads,
            fronts,
            producers=[f"{attn}.q.outer.conv", f"{attn}.k.outer.conv"],
            readers=[],
            followers=[f"{attn}.{p}.{bn}" for p in ("q", "k") for bn in ("outer.bn", "bn")],
        ),
        f"{attn}.v": row(
            model,
            "channel",
            v_width // heads,
            fronts,
            producers=[f"{attn}.v.outer.conv"],
            readers=[f"{attn}.proj.inner.conv"],
            followers=[f"{attn}.v.outer.bn", f"{attn}.v.bn"],
        ),
        **hidden_row(model, f"{block}.mlp", "fc1", "fc2", int(width * config.mlp_ratio)),
    }
    for part, inputs in (("q", width), ("k", width), ("v", width), ("proj", v_width)):
        rows |= _inner_row(model, f"{attn}.{part}", int(inputs * config.inner_ratio))
    if has_rep(model, block):
        rows |= _inner_row(model, f"{block}.rep", int(width * config.rep_ratio))
    return rows


def has_rep(model: nn.Module, block: str) -> bool:
    return model.get_submodule(block).rep is not None


def _stream(model: nn.Module, stages: list[list[str]], stage: int, width: int) -> Expected:
    """The scales per channel stand right inside the transformer blocks."""
    writers, scales, readers = [f"blocks.{STAGES[stage]}"], [], []
    for block in stages[stage]:
        if stage < 3:
            writers.append(f"{block}.conv2")
            readers.append(f"{block}.conv1.conv")
        else:
            writers += [f"{block}.attn.proj.outer", f"{block}.mlp.fc2"]
            scales += [block, f"{block}.attn.proj.bn"]
            readers += [f"{block}.attn.{part}.inner.conv" for part in ("q", "k", "v")]
            readers.append(f"{block}.mlp.fc1.conv")
            if has_rep(model, block):
                writers.append(f"{block}.rep.outer")
                readers.append(f"{block}.rep.inner.conv")
    if stage < 3:
        readers.append(f"blocks.{STAGES[stage + 1]}.conv")
    else:
        readers += classifiers(model)
    return row(
        model,
        "stream" if stages[stage] else "channel",
        width,
        (),
        producers=[f"{writer}.conv" for writer in writers],
        readers=readers,
        followers=[*(f"{writer}.bn" for writer in writers), *scales],
    )


def classifiers(model: nn.Module) -> list[str]:
    return ["head.fc"] + (["head.fc_kd"] if model.head.fc_kd is not None else [])


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    readers = {"v": "proj.inner.conv", "fc1": "fc2.conv", "conv1": "conv2.conv"}
    if last.endswith(":inner"):
        blind(model, f"{path}.{last.removesuffix(':inner')}.outer.conv", removed)
    elif last == "q+k":
        silence(model.get_submodule(f"{path}.q_lif"), removed)
    elif last in readers:
        blind(model, f"{path}.{readers[last]}", removed)
    else:
        down = last.removesuffix(":stream")
        for neuron in stream_neurons(model, down):
            silence(model.get_submodule(neuron), removed)
        # The classifier reads the stream without a neuron.
        for reader in classifiers(model) if down == STAGES[3] else ():
            blind(model, reader, removed)


def stream_neurons(model: nn.Module, down: str) -> list[str]:
    """The neurons that read a stage's stream."""
    stage = STAGES.index(down)
    found = []
    for block in stage_blocks(model)[stage]:
        if stage < 3:
            found.append(f"{block}.lif1")
        else:
            found += [f"{block}.attn.lif", f"{block}.mlp.lif1"]
            found += [f"{block}.rep_lif"] if has_rep(model, block) else []
    return [*found, f"blocks.{STAGES[stage + 1]}.lif" if stage < 3 else "head.lif"]


def entering(model: nn.Module, neuron: str) -> tuple[str, int]:
    """The group whose channels enter a neuron, always along axis 2 of ``[T, B, C, H, W]``."""
    path, _, last = neuron.rpartition(".")
    for stage, down in enumerate(STAGES[:4]):
        if neuron in stream_neurons(model, down):
            name = f"blocks.{down}"
            return f"{name}:stream" if stage_blocks(model)[stage] else name, 2
    if path.endswith(".attn"):
        return f"{path}.q+k" if last in ("q_lif", "k_lif") else f"{path}.v", 2
    return f"{path}.fc1" if path.endswith(".mlp") else f"{path}.conv1", 2


def head_groups(config: SDTv3LargeConfig) -> int:
    return config.depths[0] if config.num_heads > 1 else 0


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 1) -> SDTv3LargeConfig:
    """Small networks with odd widths, with and without the branch in front of the attention."""
    heads = draw(st.integers(1, 3))
    rep_ratio, rep_norm_ratio = draw(
        st.sampled_from(((None, None), (1, None), (1.5, None), (1, 1.5)))
    )
    return SDTv3LargeConfig(
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 2)),
        embed_dims=(
            2 * draw(st.integers(2, 3)),
            draw(st.integers(2, 7)),
            heads * draw(st.integers(2, 5)),
        ),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((1, 1.5, 2, 3))),
        conv_ratio=draw(st.sampled_from((1, 2, 3))),
        v_ratio=draw(st.sampled_from((1, 2))),
        inner_ratio=draw(st.sampled_from((1, 1.5))),
        rep_ratio=rep_ratio,
        rep_norm_ratio=rep_norm_ratio,
        conv_depths=tuple(draw(st.integers(0, depth)) for _ in range(3)),
        depths=(draw(st.integers(1, 1 + depth)),),
        stem_kernel=3,
        strides=(draw(st.integers(1, 2)), 1, draw(st.integers(1, 2)), 1),
        spike_levels=draw(st.sampled_from((1, 4, 8))),
        distillation=draw(st.booleans()),
        drop_path=draw(st.sampled_from((0.0, 0.2))),
    )


CASE = FamilyCase(
    family="sdt_v3_large",
    goldens={
        "sdt3-large-tiny": {"num_heads": 4},
        "sdt3-large-1x8-tiny": {"num_heads": 2, "spike_levels": 8},
        "sdt3-large-base-tiny": {"num_heads": 4},
    },
    manifests={
        "sdt3-imagenet-large-12-768-171M-kd": "sdt_v3_large_171m_kd",
        "sdt3-imagenet-large-12-768-171M": "sdt_v3_large_171m",
        "sdt3-imagenet-large-12-512-83M-kd": "sdt_v3_large_83m_kd",
        "sdt3-imagenet-large-12-512-83M": "sdt_v3_large_83m",
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
    shares={
        "sdt_v3_large_171m_kd": 0.85,
        "sdt_v3_large_83m": 0.85,
        "sdt_v3_large_small": 0.8,
    },
)
