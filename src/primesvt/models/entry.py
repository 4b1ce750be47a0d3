"""What is known of a model by name: its config, its data, what was published."""

from __future__ import annotations

from dataclasses import dataclass

from primesvt.models.config import ModelConfig
from primesvt.models.provenance import DataConfig

__all__ = ["CIFAR", "DIGITS", "IMAGENET", "ModelEntry", "Published", "events"]

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
    """How frames of an event camera are prepared: counts as they are.

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


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published top-1 accuracy in percent (ImageNet-1K by default), and where it was read.

    Official evaluation runs under ``autocast`` precision, so spikes may differ from float32.

    Example:
        >>> Published(top1=80.0, time_steps=4, source="README").autocast
        'float16'
    """

    top1: float
    time_steps: int
    source: str
    autocast: str = "float16"
    dataset: str = "ImageNet-1K"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One registered model; ``weights`` is a file in the package, or ``None``.

    Example:
        >>> from primesvt.models import model_entry
        >>> model_entry("sdt_v2_55m").aliases
        ('metaspikformer_8_512',)
    """

    name: str
    config: ModelConfig
    data: DataConfig
    published: Published | None = None
    aliases: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def official(self) -> bool:
        """Whether the authors have this size; ours are called ``*_small`` and ``*_digits``."""
        return not self.name.endswith(("_small", "_digits"))

    @property
    def family(self) -> str:
        """The family's name."""
        return self.config.family
