"""What an export has written, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from primesvt.exporting.agreement import Agreement

__all__ = ["ExportResult", "Rounded", "Size"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """One step on the way to the file.

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
    """Weights in few bits: those of ``layers`` layers out of ``total``.

    ``front``: so many at the input stay in float32 for the sake of the predictions; others are too
    small to make the file smaller.
    """

    bits: int
    layers: int
    total: int
    front: int


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """An export that agrees with its network.

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
