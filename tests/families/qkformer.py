"""QKFormer by hand: which channels SPEC section 7 couples; how a test silences their readers."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

from primesvt.models.families.qkformer import QKFormerConfig

from ..channels.firing import silence
from .case import Expected, FamilyCase, blind, row

# Convolutions of the first patch embedding: the stage's width over theirs, and how many of them
# stand in front of the shortcut's fork.
FIRST_STEM = {"imagenet": ((2, 1, 1), 1), "cifar": ((2, 1), 1), "dvs": ((8, 4, 2, 1), 2)}


def stages(model: nn.Module) -> list[list[str]]:
    """Block names after every patch embedding, read off the names alone."""
    found: list[list[str]] = []
    for name, _ in model.blocks.named_children():
        if name.startswith("stem"):
            found.append([])
        else:
            found[-1].append(f"blocks.{name}")
    return found


def stem_layers(config: QKFormerConfig, stage: int) -> tuple[list[str], list[int], str]:
    """The convolutions of a patch embedding in order, their widths, and what the fork follows."""
    stem, width = f"blocks.stem{stage + 1}", config.embed_dims[stage]
    if stage:
        before = f"blocks.stem{stage}.body:stream"
        return [f"{stem}.body.0", f"{stem}.body.1"], [width, width], before
    divisors, fork = FIRST_STEM[config.layout]
    layers = [
        f"{stem}.entry.{i}" if i < fork else f"{stem}.body.{i - fork}" for i in range(len(divisors))
    ]
    return layers, [width // divisor for divisor in divisors], layers[fork - 1]


def table(model: nn.Module, config: QKFormerConfig) -> dict[str, Expected]:
    """Every group that may be cut."""
    rows: dict[str, Expected] = {}
    blocks = stages(model)
    for stage, names in enumerate(blocks):
        rows |= _stem_rows(model, config, stage)
        full = stage == len(blocks) - 1
        for block in names:
            rows |= (_full_rows if full else _token_rows)(model, config, block, stage)
            rows[f"{block}.mlp.fc1"] = row(
                model,
                "channel",
                config.hidden(stage),
                (),
                producers=[f"{block}.mlp.fc1.conv"],
                readers=[f"{block}.mlp.fc2.conv"],
                followers=[f"{block}.mlp.fc1.bn"],
            )
        rows[f"blocks.stem{stage + 1}.body:stream"] = _stream(model, config, blocks, stage)
    return rows


def _stem_rows(model: nn.Module, config: QKFormerConfig, stage: int) -> dict[str, Expected]:
    """All convolutions but the last; the layer in front of the fork has two readers."""
    layers, widths, forked = stem_layers(config, stage)
    stem, rows = f"blocks.stem{stage + 1}", {}
    for layer, width, reader in zip(layers, widths, layers[1:], strict=False):
        at_fork = layer == forked
        rows[f"{stem}.entry" if at_fork else layer] = row(
            model,
            "channel",
            width,
            (),
            producers=[f"{layer}.conv"],
            readers=[f"{reader}.conv"] + [f"{stem}.shortcut.conv"] * at_fork,
            followers=[f"{layer}.bn"],
        )
    return rows


def _inner(
    model: nn.Module, config: QKFormerConfig, block: str, stage: int, parts: str
) -> Expected:
    """Channels inside the attention; q, and the k it is multiplied with, have no reading layer."""
    attn, heads = f"{block}.attn", config.num_heads
    return row(
        model,
        "channel",
        config.embed_dims[stage] // heads,
        (heads,) if heads > 1 else (),
        producers=[f"{attn}.{part}.conv" for part in parts],
        readers=[] if "q" in parts else [f"{attn}.proj.conv"],
        followers=[f"{attn}.{part}.bn" for part in parts],
    )


def _token_rows(
    model: nn.Module, config: QKFormerConfig, block: str, stage: int
) -> dict[str, Expected]:
    return {f"{block}.attn.{part}": _inner(model, config, block, stage, part) for part in "qk"}


def _full_rows(
    model: nn.Module, config: QKFormerConfig, block: str, stage: int
) -> dict[str, Expected]:
    return {
        f"{block}.attn.q+k": _inner(model, config, block, stage, "qk"),
        f"{block}.attn.v": _inner(model, config, block, stage, "v"),
    }


def stream_readers(config: QKFormerConfig, blocks: list[list[str]], stage: int) -> list[str]:
    """Layers that read the sum of spikes of a stage."""
    full = stage == len(blocks) - 1
    readers = [f"{b}.attn.{p}.conv" for b in blocks[stage] for p in ("qkv" if full else "qk")]
    readers += [f"{block}.mlp.fc1.conv" for block in blocks[stage]]
    following = f"blocks.stem{stage + 2}"
    ends = ["head.fc"] if full else [f"{following}.body.0.conv", f"{following}.shortcut.conv"]
    return readers + ends


def _stream(
    model: nn.Module, config: QKFormerConfig, blocks: list[list[str]], stage: int
) -> Expected:
    last = stem_layers(config, stage)[0][-1]
    writers = [last, f"blocks.stem{stage + 1}.shortcut"]
    writers += [f"{block}.{layer}" for block in blocks[stage] for layer in ("attn.proj", "mlp.fc2")]
    return row(
        model,
        "stream",
        config.embed_dims[stage],
        (),
        producers=[f"{writer}.conv" for writer in writers],
        readers=stream_readers(config, blocks, stage),
        followers=[f"{writer}.bn" for writer in writers],
    )


def ignore(model: nn.Module, name: str, removed: list[int]) -> None:
    """Make every reader of a group blind to some channels."""
    path, _, last = name.rpartition(".")
    readers = {"k": ["proj"], "v": ["proj"], "fc1": ["fc2"]}
    if last in ("q", "q+k"):
        silence(model.get_submodule(f"{path}.q_lif"), removed)
    elif last in readers:
        for reader in readers[last]:
            blind(model, f"{path}.{reader}.conv", removed)
    elif last == "body:stream":
        stage = int(path.removeprefix("blocks.stem")) - 1
        for reader in stream_readers(model.config, stages(model), stage):
            blind(model, reader, removed)
    else:
        for reader in _stem_readers(model, name):
            blind(model, f"{reader}.conv", removed)


def _stem_readers(model: nn.Module, name: str) -> list[str]:
    if name.endswith(".entry"):
        stem = name.removesuffix(".entry")
        return [f"{stem}.body.0", f"{stem}.shortcut"]
    path, _, number = name.rpartition(".")
    return [f"{path}.{int(number) + 1}"]


def entering(model: nn.Module, neuron: str) -> tuple[str, int] | None:
    """The group whose channels enter a neuron: along axis 2 of ``[T, B, C, H, W]``."""
    path, _, last = neuron.rpartition(".")
    if path.endswith(".proj_lif"):  # the neuron across images sees [T * B, C, H, W]
        return stream_of(path), 1
    if last in ("lif2", "proj_lif") or path.endswith(".shortcut"):
        return stream_of(path), 2
    if last == "lif1":
        return f"{path}.fc1", 2
    if path.endswith(".attn"):
        return _entering_attention(model, path, last.removesuffix("_lif"))
    return _entering_stem(model, path), 2


def _entering_attention(model: nn.Module, attn: str, part: str) -> tuple[str, int] | None:
    full = hasattr(model.get_submodule(attn), "v")
    if part == "attn":  # the sum over a head has no channel left
        return (f"{attn}.v", 2) if full else None
    return f"{attn}.{'q+k' if full and part in 'qk' else part}", 2


def _entering_stem(model: nn.Module, layer: str) -> str:
    path, _, number = layer.rpartition(".")
    last = int(number) == len(model.get_submodule(path)) - 1
    if not last:
        return layer
    return path if path.endswith(".entry") else f"{path}:stream"


def stream_of(path: str) -> str:
    """The stream of the stage that a module lies in."""
    number = path.split(".")[1].removeprefix("stem").removeprefix("block").split("_")[0]
    return f"blocks.stem{number}.body:stream"


def head_groups(config: QKFormerConfig) -> int:
    return sum(config.depths) if config.num_heads > 1 else 0


@st.composite
def configs(draw: st.DrawFn, *, depth: int = 1) -> QKFormerConfig:
    """Small networks of one to three stages, with odd widths, one head or several."""
    layout = draw(st.sampled_from(tuple(FIRST_STEM)))
    heads = draw(st.integers(1, 3))
    count = draw(st.integers(1, 2 if layout == "dvs" else 3))
    least = -(-8 // heads) if layout == "dvs" else 2
    sizes = [draw(st.integers(least if stage == 0 else 2, least + 3)) for stage in range(count)]
    return QKFormerConfig(
        layout=layout,
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 5)),
        time_steps=draw(st.integers(1, 3)),
        embed_dims=tuple(heads * size for size in sizes),
        depths=(*(draw(st.integers(0, depth)) for _ in sizes[1:]), draw(st.integers(1, depth))),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((1, 1.5, 2, 3))),
        proj_neuron=draw(st.sampled_from(("mixed", "per_image"))),
    )


def input_size(config: QKFormerConfig) -> tuple[int, int]:
    """Two by two tokens in the last stage."""
    stem = {"imagenet": 4, "cifar": 1, "dvs": 8}[config.layout]
    side = 2 * stem * 2 ** (len(config.depths) - 1)
    return side, side


def input_sizes(config: QKFormerConfig) -> st.SearchStrategy[tuple[int, int]]:
    """The smallest image and larger ones, square or not."""
    side, _ = input_size(config)
    sides = st.integers(side, side + max(2, side // 2))
    return st.tuples(sides, sides)


def modules(model: nn.Module, kind: str) -> list[nn.Module]:
    found = [module for module in model.modules() if type(module).__name__ == kind]
    if not found:
        raise LookupError(kind)
    return found


def keep_images_apart(model: nn.Module) -> None:
    for module in modules(model, "AcrossImages"):
        module.forward = lambda x, neuron=module.lif: neuron(x)


def mix_time_last(model: nn.Module) -> None:
    """All time steps of the first image, then those of the second."""

    def forward(x: torch.Tensor, neuron: nn.Module) -> torch.Tensor:
        swapped = x.transpose(0, 1)
        spikes = neuron(swapped.flatten(0, 1))
        return torch.unflatten(spikes, 0, swapped.shape[:2]).transpose(0, 1)

    for module in modules(model, "AcrossImages"):
        module.forward = lambda x, neuron=module.lif: forward(x, neuron)


def forget_token_threshold(model: nn.Module) -> None:
    for module in modules(model, "TokenQKAttention"):
        module.attn_lif.v_threshold = 1.0


def scale_attention_by_width(model: nn.Module) -> None:
    for module in modules(model, "SpikingSelfAttention"):
        module.scale = (module.q.conv.out_channels // module.heads) ** -0.5


CASE = FamilyCase(
    family="qkformer",
    goldens={
        "qkformer-imagenet-tiny": {"num_heads": 2, "time_steps": 4},
        "qkformer-cifar-tiny": {"num_heads": 8, "time_steps": 3},
        "qkformer-dvs-tiny": {"num_heads": 16, "time_steps": 2},
    },
    manifests={
        "qkformer-imagenet-10-384": "qkformer_10_384",
        "qkformer-imagenet-10-512": "qkformer_10_512",
        "qkformer-imagenet-10-768": "qkformer_10_768",
        "qkformer-cifar10-4-384": "qkformer_cifar10_4_384",
        "qkformer-cifar100-4-384": "qkformer_cifar100_4_384",
        "qkformer-cifar10dvs-2-256": "qkformer_cifar10dvs",
        "qkformer-dvs128gesture-2-256": "qkformer_gesture",
    },
    configs=configs,
    table=table,
    heads=head_groups,
    ignore=ignore,
    entering=entering,
    size=input_size,
    sizes=input_sizes,
    shares={
        "qkformer_10_384": 0.96,
        "qkformer_10_768": 0.97,
        "qkformer_cifar10_4_384": 0.97,
        "qkformer_cifar10dvs": 0.96,
        "qkformer_digits": 0.95,
    },
    spoilers={
        "images apart": keep_images_apart,
        "image by image": mix_time_last,
        "token threshold": forget_token_threshold,
        "attention scale": scale_attention_by_width,
    },
)
