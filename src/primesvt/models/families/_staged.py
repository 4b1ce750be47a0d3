"""Networks of convolutional, then transformer stages: the parts that SDT-V2 and SDT-V3 share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar, Protocol

from torch import Tensor, nn

from primesvt.models.blocks import Downsample
from primesvt.models.config import ModelConfig, check_positive
from primesvt.models.neurons import Spike

__all__ = [
    "StagedConfig",
    "StagedSizes",
    "check_depths",
    "ratio_of",
    "scaled",
    "stage_names",
    "stages",
]


_DOWN = ("down1a", "down1b", "down2", "down3", "down4")


class StagedSizes(Protocol):
    """The sizes of a network of stages, as its config states them."""

    @property
    def in_channels(self) -> int: ...
    @property
    def embed_dims(self) -> tuple[int, ...]: ...
    @property
    def conv_depths(self) -> tuple[int, ...]: ...
    @property
    def depths(self) -> tuple[int, ...]: ...
    @property
    def stem_kernel(self) -> int: ...
    @property
    def strides(self) -> tuple[int, ...]: ...


def check_depths(conv_depths: tuple[int, ...]) -> None:
    """Raise ``ValueError`` for more convolutional blocks than letters name them.

    Example:
        >>> check_depths((1, 1, 2))
    """
    if max(conv_depths) > len(ascii_lowercase):
        raise ValueError(f"conv_depths is {conv_depths}, but 26 blocks are the most")


@dataclass(frozen=True, kw_only=True)
class StagedConfig(ModelConfig):
    """Sizes of an SDT-V3 network.

    ``embed_dims`` are the widths after the second and every later downsampling (the first has half
    of ``embed_dims[0]``), ``strides`` belong to the downsamplings, ``conv_depths`` to the widths
    ``embed_dims[0] / 2``, ``embed_dims[0]`` and ``embed_dims[1]``, ``depths`` to the transformer
    stages. ``conv_ratio``, ``mlp_ratio`` and ``v_ratio`` give the hidden widths of convolutional
    blocks and MLPs and the width of v. Neurons have ``spike_levels`` integer levels, which stand
    for as many virtual time steps; there is no real time axis, so ``time_steps`` is one.

    Example:
        >>> StagedConfig(embed_dims=(8, 16, 32, 48), num_heads=2).spike_levels
        4
    """

    transformer_stages: ClassVar[int] = 2

    time_steps: int = 1
    embed_dims: tuple[int, ...] = (64, 128, 256, 360)
    num_heads: int = 8
    mlp_ratio: float = 4
    conv_ratio: float = 4
    v_ratio: float = 4
    conv_depths: tuple[int, ...] = (1, 1, 2)
    depths: tuple[int, ...] = (6, 2)
    stem_kernel: int = 7
    strides: tuple[int, ...] = (2, 2, 2, 2, 1)
    spike_levels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        late = self.transformer_stages
        lengths = {"embed_dims": 2 + late, "conv_depths": 3, "depths": late, "strides": 3 + late}
        for name, length in lengths.items():
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != length:
                raise ValueError(f"{name} is {value!r}, but needs {length} integers")
        check_positive(self, "embed_dims", "num_heads", "depths", "stem_kernel", "strides")
        check_positive(self, "spike_levels")
        check_positive(self, "conv_depths", minimum=0)
        check_depths(self.conv_depths)
        self.check_ratios("mlp_ratio", "conv_ratio", "v_ratio")
        if self.embed_dims[0] % 2:
            raise ValueError(
                f"embed_dims[0] is {self.embed_dims[0]}, but must be even: the first stage has half"
            )
        for width in self.embed_dims[2:]:
            for channels, what in ((width, "channels"), (scaled(width, self.v_ratio), "of v")):
                if channels % self.num_heads:
                    raise ValueError(
                        f"embed_dims {self.embed_dims} with v_ratio {self.v_ratio} have {channels}"
                        f" {what} in a transformer stage, which {self.num_heads} heads do not"
                        " divide; change num_heads or the width"
                    )

    def check_ratios(self, *names: str) -> None:
        """Raise ``ValueError`` where a width ratio leaves the narrowest stage without a channel."""
        narrowest = min(self.embed_dims[0] // 2, *self.embed_dims)
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not scaled(max(narrowest, 1), value) >= 1:
                raise ValueError(
                    f"{name} is {value!r}, but must leave a channel of {narrowest}: raise it"
                )


def stages(
    config: StagedSizes, spike: Spike, block: Callable[[int, int], nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """The named downsamplings and blocks of all stages; ``block(stage, width)`` makes a block.

    Example:
        >>> from primesvt.models.neurons import integer
        >>> config = StagedConfig(depths=(1, 1))
        >>> [name for name, _ in stages(config, integer, lambda stage, width: nn.Identity())][:4]
        ['down1a', 'conv1a', 'down1b', 'conv1b']
    """
    widths = (config.in_channels, config.embed_dims[0] // 2, *config.embed_dims)
    for stage, (names, stride) in enumerate(zip(stage_names(config), config.strides, strict=True)):
        first = stage == 0
        yield (
            _DOWN[stage],
            Downsample(
                widths[stage],
                widths[stage + 1],
                config.stem_kernel if first else 3,
                stride=stride,
                spiking=not first,
                spike=spike,
            ),
        )
        for name in names:
            yield name, block(stage, widths[stage + 1])


def stage_names(config: StagedSizes) -> tuple[dict[str, str], ...]:
    """Per stage: our name of each block, and the official one.

    Example:
        >>> stage_names(StagedConfig())[2]
        {'conv2a': 'ConvBlock2_1.0', 'conv2b': 'ConvBlock2_2.0'}
    """
    first, second, third = config.conv_depths
    return (
        {f"conv1a{f'_{i}' if i else ''}": f"ConvBlock1_1.{i}" for i in range(first)},
        {f"conv1b{f'_{i}' if i else ''}": f"ConvBlock1_2.{i}" for i in range(second)},
        {f"conv2{ascii_lowercase[i]}": f"ConvBlock2_{i + 1}.0" for i in range(third)},
        *(
            {f"block{stage}_{i}": f"block{stage}.{i}" for i in range(depth)}
            for stage, depth in enumerate(config.depths, start=3)
        ),
    )


def scaled(width: int, ratio: float) -> int:
    """A width times a ratio, rounded down.

    Example:
        >>> scaled(9, 1.5), scaled(49, 29 / 49)
        (13, 29)
    """
    # A ratio of two widths, multiplied again, may fall short of a whole number.
    return int(width * ratio + 1e-9)


def ratio_of(state: Mapping[str, Tensor], layer: str, *, usual: float) -> float | None:
    """The ratio of output to input channels of all layers with an ending; ``None`` without any.

    ``usual`` where it gives the same widths, else the first ratio that does.

    Example:
        >>> import torch
        >>> ratio_of({"a.fc1.weight": torch.zeros(13, 9, 1)}, "fc1.weight", usual=1.5)
        1.5
    """
    shapes = [tensor.shape[:2] for key, tensor in state.items() if key.endswith(layer)]
    if not shapes:
        return None
    candidates = [usual, *(outputs / inputs for outputs, inputs in shapes)]
    fitting = (
        ratio
        for ratio in candidates
        if all(scaled(inputs, ratio) == outputs for outputs, inputs in shapes)
    )
    return next(fitting, candidates[1])
