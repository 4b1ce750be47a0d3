"""How inputs of a network are prepared: size, normalisation, crop; one config per data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CIFAR", "DIGITS", "IMAGENET", "DataConfig", "events", "with_channels"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images must be prepared: size ``(channels, height, width)``, then normalisation.

    ``crop_ratio`` is the part of the resized image that the centre crop keeps; ``events``: the
    samples are frames of an event camera, ``[time steps, channels, height, width]``.

    Example:
        >>> DataConfig(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,)).crop_ratio
        1.0
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float = 1.0
    interpolation: str = "bicubic"
    events: bool = False


IMAGENET = DataConfig(
    input_size=(3, 224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_ratio=0.875,
)


CIFAR = DataConfig(
    input_size=(3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)
)


DIGITS = DataConfig(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))


def events(channels: int, size: int) -> DataConfig:
    """The data config of square event frames, whose counts are not normalised.

    Example:
        >>> events(2, 128).input_size
        (2, 128, 128)
    """
    return DataConfig(
        input_size=(channels, size, size),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        events=True,
    )


def with_channels(config: DataConfig, channels: int) -> DataConfig:
    """A data config for another number of channels, such as that of a model made otherwise.

    Grey and coloured images take the mean of the normalisation; any other number of channels means
    event frames, which are not normalised.

    Example:
        >>> with_channels(DIGITS, 2).events, with_channels(CIFAR, 1).input_size
        (True, (1, 32, 32))
    """
    own, height, width = config.input_size
    if own == channels:
        return config
    changed = replace(config, input_size=(channels, height, width))
    if config.events or channels not in (1, 3):
        scale = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "crop_ratio": 1.0}
        return replace(changed, events=True, **scale)  # type: ignore[arg-type]
    mean, std = (sum(values) / own for values in (config.mean, config.std))
    return replace(changed, mean=(mean,) * channels, std=(std,) * channels)
