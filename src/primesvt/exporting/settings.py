"""What can be asked of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["ExportSettings", "Format"]

Format = Literal["onnx", "torch-export", "hub"]
NAMES = {"onnx": "model.onnx", "torch-export": "model.pt2", "hub": "hub"}


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Format, weights, and what must hold; a setting that cannot be is a ``ValueError``.

    Attributes:
        format: ``onnx``, ``torch-export`` or ``hub``.
        weight_bits: 8 for weights in eight bits; ONNX only.
        agreement: share of samples whose prediction must stay the same.
        images: samples to compare on, at most.
        batch_size: of the comparison.
        push: repository on the Hugging Face Hub to upload to; Hub layout only.

    Example:
        >>> ExportSettings(format="onnx", weight_bits=8).file_name
        'model-8bit.onnx'
    """

    format: Format = "onnx"
    weight_bits: int | None = None
    agreement: float = 0.99
    images: int = 256
    batch_size: int = 16
    push: str | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            allowed = ", ".join(get_args(Format))
            raise ValueError(f"format is {self.format!r}; allowed: {allowed}")
        if self.weight_bits not in (None, 8):
            raise ValueError(f"weight_bits is {self.weight_bits!r}; 8 is what can be had")
        if self.weight_bits is not None and self.format != "onnx":
            raise ValueError(
                f"8-bit weights are written in ONNX files alone, not in {self.format}; use the"
                " format onnx, or leave weight_bits out"
            )
        if not 0 <= self.agreement <= 1:
            raise ValueError(
                f"agreement is {self.agreement!r}, but is a share of predictions: 0 to 1"
            )
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be at least 1")
        if self.push is not None and self.format != "hub":
            raise ValueError("only the format hub can be pushed; leave push out, or ask for hub")

    @property
    def file_name(self) -> str:
        """What the result is called where no name is given."""
        return "model-8bit.onnx" if self.weight_bits else NAMES[self.format]
