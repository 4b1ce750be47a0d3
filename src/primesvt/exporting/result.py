"""The result of an export, and the texts that describe an exported file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from primesvt.exporting.agreement import Agreement
from primesvt.models import DataConfig, SpikingViT
from primesvt.models.registry import provenance_of

__all__ = [
    "ExportResult",
    "Rounded",
    "Size",
    "about",
    "input_name",
    "input_shape",
    "preparation",
    "prepared",
]


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
    """Metadata of an exported file: family, time steps, and how images are prepared."""
    if not isinstance(model, SpikingViT):
        return {}
    steps = model.time_steps if example.ndim == 4 else example.shape[1]
    facts = {"family": model.config.family, "time_steps": str(steps)}
    text = prepared(model)
    return {**facts, "input": text} if text else facts


def preparation(data: DataConfig) -> str:
    """How an image is prepared as input, in a sentence.

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
    """How images are prepared for a model, in a sentence; empty where that is unknown."""
    try:
        return preparation(provenance_of(model).data)
    except ValueError:
        return ""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of the network at one step of the export: its weights, and the file if there is one.

    Attributes:
        step: what it is, in words.
        weights: bytes of all weights: parameters in a network, stored tensors in a file.
        file: bytes on disk, where this step was written or could be.
    """

    step: str
    weights: int
    file: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """How many layers have weights in few bits: ``layers`` out of ``total``.

    ``front``: so many at the input stay in float32 for the sake of the predictions; others are too
    small to make the file smaller.
    """

    bits: int
    layers: int
    total: int
    front: int


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The result of an export: the file, how well it agrees with the network, and its size.

    Attributes:
        path: the file, or the folder of the Hub layout.
        format: ``onnx``, ``torch-export`` or ``hub``.
        opset: of ONNX.
        input, output: shape and type, in words.
        agreement: how it compares with the network.
        level: the share of equal predictions that was asked for.
        sizes: from the unpruned network to the file.
        rounded: which weights are in eight bits; ``None`` where all are in float32.
        notes: what a user of the file must know.
        url: where it was pushed to.
    """

    path: Path
    format: str
    opset: int | None = None
    input: str
    output: str
    agreement: Agreement
    level: float
    sizes: tuple[Size, ...] = ()
    rounded: Rounded | None = None
    notes: tuple[str, ...] = field(default=(), repr=False)
    url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"path": str(self.path), "agreement": self.agreement.to_dict()}
