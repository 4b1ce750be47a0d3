"""Least squares on covariances, safe for singular and tiny ones."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DAMPING", "damped", "regression"]

DAMPING = 0.01
_TINY = 1e-12


def damped(covariance: Tensor, groups: int = 1) -> Tensor:
    """Make a covariance invertible by adding ``DAMPING`` x the mean variance to each variance.

    A constant channel (variance 0) then neither explains others nor is explained. With ``groups``
    the channels of different groups of a grouped convolution are taken as uncorrelated, since none
    can stand in for another's.

    Example:
        >>> damped(torch.ones(2, 2, dtype=torch.float64)).round(decimals=4).tolist()
        [[1.01, 1.0], [1.0, 1.01]]
    """
    matrix = covariance.double().clone()
    if groups > 1:
        size = len(matrix) // groups
        block = torch.arange(len(matrix)) // size
        matrix = matrix * (block[:, None] == block[None])
    matrix.diagonal().add_(DAMPING * matrix.diagonal().mean() + _TINY)
    return matrix


def regression(moments: Tensor, kept: Tensor, gone: Tensor, groups: int = 1) -> Tensor:
    """Ridge regression of removed channels on kept ones: coefficients ``[gone, kept]``.

    Args:
        moments: covariance, or second moments for a regression without a constant, ``[C, C]``.
        kept: indices of the channels that stay.
        gone: indices of the channels that go.
        groups: of a grouped convolution.

    Example:
        >>> twin = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
        >>> regression(twin, torch.tensor([0]), torch.tensor([1])).round(decimals=2).tolist()
        [[0.99]]

    Source: CORP (arXiv 2602.05243) and GRAIL (arXiv 2602.23795) fold such regressions into the
    layer that reads.
    """
    # The damping follows all channels, not only those that stay: one rule for every rate.
    matrix = damped(moments, groups)
    system, right = matrix[kept][:, kept], matrix[kept][:, gone]
    mixing: Tensor = torch.linalg.solve(system, right).T
    return mixing
