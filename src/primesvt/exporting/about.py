"""What an exported file says of itself, for whoever has nothing but the file."""

from __future__ import annotations

from torch import Tensor, nn

from primesvt.checkpoint.load import provenance_of
from primesvt.models import DataConfig, SpikingViT

__all__ = ["about", "input_name", "input_shape", "preparation", "prepared"]


def input_name(model: nn.Module, example: Tensor) -> str:
    """``images``, ``frames`` of an event camera, or ``input`` of a module of the user's own."""
    if not isinstance(model, SpikingViT):
        return "input"
    return "images" if example.ndim == 4 else "frames"


def input_shape(example: Tensor, *, axis: int = 0) -> str:
    """Type and shape of an input in words.

    Example:
        >>> import torch
        >>> input_shape(torch.zeros(2, 3, 32, 32))
        'float32 [batch, 3, 32, 32]'
    """
    sizes = ["batch" if place == axis else str(size) for place, size in enumerate(example.shape)]
    return f"float32 [{', '.join(sizes)}]"


def about(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Family, time steps, and how images are prepared, as texts."""
    if not isinstance(model, SpikingViT):
        return {}
    steps = model.time_steps if example.ndim == 4 else example.shape[1]
    facts = {"family": model.config.family, "time_steps": str(steps)}
    told = prepared(model)
    return {**facts, "input": told} if told else facts


def preparation(data: DataConfig) -> str:
    """How an image becomes an input, in a sentence.

    Example:
        >>> from primesvt.models import model_entry
        >>> print(preparation(model_entry("sdt_v2_digits").data))
        1x8x8 pixels, values in 0..1, minus the mean 0.5, divided by 0.5
    """
    size = "x".join(map(str, data.input_size))
    if data.events:
        return f"frames of {size} values, as they are"
    crop = f", the central {data.crop_ratio:g} of the image" if data.crop_ratio != 1 else ""
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (data.mean, data.std))
    return f"{size} pixels{crop}, values in 0..1, minus the mean {mean}, divided by {std}"


def prepared(model: SpikingViT) -> str:
    """The same for a model; empty where nobody knows."""
    try:
        return preparation(provenance_of(model).data)
    except ValueError:
        return ""
