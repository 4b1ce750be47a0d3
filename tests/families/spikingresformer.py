"""SpikingResformer by hand: which channels SPEC section 8 couples, and how to silence readers."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.spikingresformer import SpikingResformerConfig

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row

LAYERS = [(), ("DSSA",), ("GWFFN",), ("DSSA", "GWFFN"), ("GWFFN", "DSSA")]


def parts(model: nn.Module, stage: int) -> list[str]:
    """Attentions and feed-forward networks of a stage (from one), read off the names alone."""
    names = [n for n, _ in model.blocks.named_children() if n.startswith(f"block{stage}_")]
    return [
        f"blocks.{block}.{part}"
        for block in names
        for part, _ in model.get_submodule(f"blocks.{block}").named_children()
    ]


def entry(stage: int) -> str:
    return f"blocks.down{stage}" if stage > 1 else "blocks.stem"


def table(model: nn.Module, config: SpikingResformerConfig) -> dict[str, Expected]:
    """Every group that may be cut."""
    rows: dict[str, Expected] = {}
    for stage, width in enumerate(config.embed_dims, start=1):
        found = parts(model, stage)
        attentive = any(part.endswith("attn") for part in found)
        heads = config.num_heads[stage - 1] if attentive else 1
        for part in found:
            if part.endswith("attn"):
                rows[f"{part}.w"] = _second_half(model, part, width, heads)
            else:
                rows |= _hidden(model, config, part, width)
        name = entry(stage)
        rows[f"{name}:stream" if found else name] = _stream(model, config, stage, width, heads)
    return rows


def _second_half(model: nn.Module, part: str, width: int, heads: int) -> Expected:
    return row(
        model,
        "channel",
        width // heads,
        (heads,) if heads > 1 else (),
        producers=[f"{part}.w.conv"],
        readers=[f"{part}.proj.conv"],
        followers=[f"{part}.w.bn"],
    )


def _hidden(
    model: nn.Module, config: SpikingResformerConfig, part: str, width: int
) -> dict[str, Expected]:
    hidden = round(width * config.mlp_ratio)
    groups = max(1, hidden // config.group_size)
    if groups == hidden > 1:
        return {
            f"{part}.fc1": row(
                model,
                "channel",
                hidden,
                (),
                producers=[f"{part}.fc1.conv"],
                readers=[f"{part}.fc2.conv"],
                followers=[f"{part}.fc1.bn", f"{part}.conv.conv", f"{part}.conv.bn"],
            )
        }
    return {
        f"{part}.fc1+conv": row(
            model,
            "channel",
            hidden // groups,
            (groups,) if groups > 1 else (),
            producers=[f"{part}.fc1.conv", f"{part}.conv.conv"],
            readers=[f"{part}.conv.conv", f"{part}.fc2.conv"],
            followers=[f"{part}.fc1.bn", f"{part}.conv.bn"],
        )
    }


def _stream(
    model: nn.Module, config: SpikingResformerConfig, stage: int, width: int, heads: int
) -> Expected:
    """The first half of every ``w`` meets the stream's spikes in a product, so it is tied."""
    producers, readers, norms = [f"{entry(stage)}.conv"], [], [f"{entry(stage)}.bn"]
    for part in parts(model, stage):
        if part.endswith("attn"):
            producers += [f"{part}.w.conv", f"{part}.proj.conv"]
            norms += [f"{part}.w.bn", f"{part}.proj.bn"]
            readers.append(f"{part}.w.conv")
        else:
            producers.append(f"{part}.fc2.conv")
            norms.append(f"{part}.fc2.bn")
            readers.append(f"{part}.fc1.conv")
    last = stage == len(config.embed_dims)
    readers.append("head.fc" if last else f"{entry(stage + 1)}.conv")
    kind = "stream" if parts(model, stage) else "channel"
    fronts = (heads,) if heads > 1 else ()
    return row(
        model,
        kind,
        width // heads,
        fronts,
        producers=producers,
        readers=readers,
        followers=norms,
    )


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    if last == "w":
        blind(model, f"{path}.proj.conv", removed)
    elif last.startswith("fc1"):
        for neuron in ("lif2", "lif3"):
            silence(model.get_submodule(f"{path}.{neuron}"), removed)
    else:
        stage = stage_of(last.removesuffix(":stream"))
        for neuron in stream_neurons(model, stage):
            silence(model.get_submodule(neuron), removed)
        if stage == len(model.config.embed_dims):
            blind(model, "head.fc", removed)


def stage_of(name: str) -> int:
    return 1 if name == "stem" else int(name.removeprefix("down"))


def stream_neurons(model: nn.Module, stage: int) -> list[str]:
    """The neurons that read a stage's stream."""
    inside = {"attn": "lif", "mlp": "lif1"}
    found = [f"{part}.{inside[part.rpartition('.')[2]]}" for part in parts(model, stage)]
    last = stage == len(model.config.embed_dims)
    return found if last else [*found, f"{entry(stage + 1)}.lif"]


def entering(model: nn.Module, neuron: str) -> tuple[str, int] | None:
    """The group whose channels enter a neuron; the attention map has none."""
    path, _, last = neuron.rpartition(".")
    if last == "attn_lif":
        return None
    if last == "out_lif":
        return f"{path}.w", 2
    if last in ("lif2", "lif3"):
        depthwise = model.get_submodule(f"{path}.conv.conv").weight.shape[1] == 1
        depthwise &= model.get_submodule(f"{path}.conv.conv").groups > 1
        return f"{path}.fc1" if depthwise else f"{path}.fc1+conv", 2
    for stage in range(1, len(model.config.embed_dims) + 1):
        if neuron in stream_neurons(model, stage):
            name = entry(stage)
            return f"{name}:stream" if parts(model, stage) else name, 2
    raise AssertionError(neuron)


def head_groups(config: SpikingResformerConfig) -> int:
    stages = zip(config.layers, config.num_heads, strict=True)
    return sum("DSSA" in layers and heads > 1 for layers, heads in stages)


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 1) -> SpikingResformerConfig:
    """Small networks with odd widths, one head or several, any order of layers, or none."""
    layout = draw(st.sampled_from(("imagenet", "cifar")))
    heads = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    widths = tuple(h * draw(st.integers(2, 4)) for h in heads)
    ratio = draw(st.sampled_from((1, 1.5, 2, 3)))
    hidden = [round(width * ratio) for width in widths]
    fitting = [g for g in range(1, 13) if all(h % max(1, h // g) == 0 for h in hidden)]
    side = st.sampled_from((8, 12) if layout == "imagenet" else (6, 8))
    largest = (2, 1) if layout == "imagenet" else (3, 2)
    return SpikingResformerConfig(
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 3)),
        layers=tuple(depth * draw(st.sampled_from(LAYERS[stage:])) for stage in range(2)),
        embed_dims=widths,
        num_heads=heads,
        patch_sizes=tuple(draw(st.integers(1, most)) for most in largest),
        mlp_ratio=ratio,
        group_size=draw(st.sampled_from(fitting)),
        img_size=(draw(side), draw(side)),
        layout=layout,
        spike_mode=draw(st.sampled_from(("lif", "plif"))),
    )


def image_size(config: SpikingResformerConfig) -> tuple[int, int]:
    assert isinstance(config.img_size, tuple)
    return config.img_size


def image_sizes(config: SpikingResformerConfig) -> st.SearchStrategy[tuple[int, int]]:
    """At least two patches along every side of every stage."""
    side = st.integers(13, 16) if config.layout == "imagenet" else st.integers(7, 9)
    return st.tuples(side, side)


def other_image_size(model: nn.Module) -> None:
    model.set_img_size(2 * model.config.img_size)


def one_rate_for_all_heads(model: nn.Module) -> None:
    attention = model.blocks.block2_0.attn
    attention.firing_rate_x.fill_(attention.firing_rate_x.mean())


CASE = FamilyCase(
    family="spikingresformer",
    goldens={
        "spikingresformer-imagenet-tiny": {"img_size": 32, "time_steps": 4},
        "spikingresformer-cifar-tiny": {"img_size": 16, "time_steps": 3},
        "spikingresformer-dvsg-tiny": {"img_size": 16, "time_steps": 4},
    },
    manifests={
        "spikingresformer-imagenet-l": "spikingresformer_l",
        "spikingresformer-imagenet-m": "spikingresformer_m",
        "spikingresformer-imagenet-s": "spikingresformer_s",
        "spikingresformer-imagenet-ti": "spikingresformer_ti",
        "spikingresformer-cifar10": "spikingresformer_cifar10",
        "spikingresformer-cifar100": "spikingresformer_cifar100",
        "spikingresformer-cifar10dvs": "spikingresformer_cifar10dvs",
        "spikingresformer-dvs128gesture": "spikingresformer_gesture",
    },
    configs=configs,
    table=table,
    heads=head_groups,
    ignore=ignore,
    entering=entering,
    size=image_size,
    sizes=image_sizes,
    spoilers={"image size": other_image_size, "one rate": one_rate_for_all_heads},
    shares={"spikingresformer_ti": 0.7, "spikingresformer_digits": 0.7},
)
