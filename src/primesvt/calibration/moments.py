"""First and second moments of a layer's input channels, summed batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Moments"]


@dataclass(kw_only=True)
class Moments:
    """Mean and covariance of channels over samples, time steps and positions, from running sums.

    Sums are kept in float64. Products of binary spikes are counted exactly: a batch of them is
    multiplied in float32, where whole numbers below 2**24 have no rounding error.

    Example:
        >>> moments = Moments(channels=2)
        >>> moments.add(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> moments.mean.tolist(), moments.covariance.tolist()
        ([1.0, 0.5], [[0.0, 0.0], [0.0, 0.25]])
    """

    channels: int
    count: int = 0
    total: Tensor = field(init=False, repr=False)
    products: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.channels, dtype=torch.float64)
        self.products = torch.zeros(self.channels, self.channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add observations ``[n, C]``."""
        binary = rows.dtype == torch.float32 and bool(((rows == 0) | (rows == 1)).all())
        rows = rows if binary and len(rows) < 2**24 else rows.double()
        self.count += len(rows)
        self.total += rows.sum(0, dtype=torch.float64).cpu()
        self.products += (rows.T @ rows).double().cpu()

    @property
    def mean(self) -> Tensor:
        """Mean of every channel, ``[C]``."""
        return self.total / max(1, self.count)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the channels, ``[C, C]``."""
        mean = self.mean
        return self.products / max(1, self.count) - torch.outer(mean, mean)
