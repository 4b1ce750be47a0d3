"""Classifiers at the end of a model."""

from __future__ import annotations

from torch import Tensor, nn

from primesvt.models.neurons import Spike, lif

__all__ = ["Head", "SpikingHead"]


class Head(nn.Module):
    """Classifier on the spatial mean as it is: ``[T, B, C, H, W]`` to ``[T, B, classes]``.

    Example:
        >>> import torch
        >>> Head(8, 10)(torch.zeros(2, 1, 8, 3, 3)).shape
        torch.Size([2, 1, 10])
    """

    def __init__(self, dim: int, classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(3).mean(-1))
        return logits


class SpikingHead(nn.Module):
    """Classifier on the spikes of the spatial mean: ``[T, B, C, H, W]`` to ``[T, B, classes]``.

    With ``distillation`` a second classifier reads the same spikes; evaluation averages the two,
    training returns both.

    Example:
        >>> import torch
        >>> SpikingHead(8, 10)(torch.zeros(2, 1, 8, 3, 3)).shape
        torch.Size([2, 1, 10])
    """

    def __init__(
        self, dim: int, classes: int, *, distillation: bool = False, spike: Spike = lif
    ) -> None:
        super().__init__()
        self.lif = spike()
        self.fc = nn.Linear(dim, classes)
        self.fc_kd = nn.Linear(dim, classes) if distillation else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        spikes = self.lif(x.flatten(3).mean(-1))
        logits: Tensor = self.fc(spikes)
        if self.fc_kd is None:
            return logits
        distilled: Tensor = self.fc_kd(spikes)
        return (logits, distilled) if self.training else (logits + distilled) / 2
