"""Entries of the model registry: config, data config and published accuracy of a named model."""

from __future__ import annotations

from dataclasses import dataclass

from primesvt.data.config import DataConfig
from primesvt.models.config import ModelConfig

__all__ = ["ModelEntry", "Published"]


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
