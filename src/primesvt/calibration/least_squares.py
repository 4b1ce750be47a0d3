"""Least squares on covariances, safe for singular and tiny ones."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["DAMPING", "Pairs", "damped", "fitted", "regression"]

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


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sums over pairs of inputs ``x`` and outputs ``y`` of a layer, in double precision."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def none(cls) -> Pairs:
        """No pairs yet."""
        nothing = torch.zeros((), dtype=torch.float64)
        return cls(count=0, x=nothing, y=nothing, xx=nothing, xy=nothing, yy=nothing)

    def add(self, x: Tensor, y: Tensor) -> Pairs:
        """Add pairs ``[..., in]`` and ``[..., out]``."""
        x, y = (rows.detach().flatten(0, -2).double() for rows in (x, y))
        return self.with_(
            Pairs(
                count=len(x), x=x.sum(0), y=y.sum(0), xx=x.T @ x, xy=x.T @ y, yy=y.square().sum(0)
            )
        )

    def with_(self, other: Pairs) -> Pairs:
        """The pairs of both."""
        facts = [f.name for f in fields(self)]
        return Pairs(**{name: getattr(self, name) + getattr(other, name) for name in facts})

    @property
    def mean_x(self) -> Tensor:
        """Mean inputs ``[in]``."""
        return self.x / self.count

    @property
    def mean_y(self) -> Tensor:
        """Mean outputs ``[out]``."""
        return self.y / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance of the inputs, ``[in, in]``."""
        return self.xx / self.count - torch.outer(self.mean_x, self.mean_x)

    @property
    def variance_y(self) -> Tensor:
        """Variance of every output, ``[out]``."""
        return (self.yy / self.count - self.mean_y.square()).clamp(min=0.0)

    def about(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean products of inputs with inputs, and with outputs, about two points."""
        mean_x, mean_y = self.mean_x, self.mean_y
        xx = self.covariance + torch.outer(mean_x - x, mean_x - x)
        cross = self.xy / self.count - torch.outer(mean_x, mean_y)
        return xx, cross + torch.outer(mean_x - x, mean_y - y)


ROUNDING = 1e-5  # of the mean square of the outputs: a smaller gain is chance
DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean variance


def fitted(fit: Pairs, held: Pairs, old: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Fit ``y = W x + b`` to pairs, drawn towards old weights as far as that helps on other pairs.

    Args:
        fit: pairs to fit.
        held: other pairs, which choose the damping; the weights are then fitted to all.
        old: weights ``[out, in]``.
        centred: whether there is a constant; else ``b`` is only returned.

    Returns:
        Weights ``[out, in]``, and what is left of the mean output ``[out]``.

    Example:
        >>> x = torch.eye(3).repeat(4, 1)
        >>> pairs = Pairs.none().add(x, 2 * x)
        >>> weight, _ = fitted(pairs, pairs, torch.zeros(3, 3), centred=True)
        >>> (weight - weight.mean()).diagonal().round(decimals=1).tolist()
        [1.3, 1.3, 1.3]
    """
    old = old.double()
    if held.count:
        origin = _origin(fit, centred)
        xx, xy = held.about(*origin)
        tried = {}
        for damping in DAMPINGS:
            weight = _solution(fit, old, damping, centred)
            tried[damping] = float(((weight @ xx) * weight).sum() - 2 * (weight.T * xy).sum())
        damping = min(tried, key=lambda d: tried[d])
        was = float(((old @ xx) * old).sum() - 2 * (old.T * xy).sum())
        if was - tried[damping] <= ROUNDING * float((held.yy / held.count).sum()):
            weight = old
        else:
            weight = _solution(fit.with_(held), old, damping, centred)
    else:
        weight = _solution(fit, old, DAMPINGS[-3], centred)
    both = fit.with_(held)
    return weight, both.mean_y - weight @ both.mean_x


def _origin(pairs: Pairs, centred: bool) -> tuple[Tensor, Tensor]:
    x, y = pairs.mean_x, pairs.mean_y
    return (x, y) if centred else (torch.zeros_like(x), torch.zeros_like(y))


def _solution(pairs: Pairs, old: Tensor, damping: float, centred: bool) -> Tensor:
    xx, xy = pairs.about(*_origin(pairs, centred))
    extra = damping * xx.diagonal().mean() + _TINY
    system = xx + extra * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    solved: Tensor = torch.linalg.solve(system, xy + extra * old.T)
    return solved.T
