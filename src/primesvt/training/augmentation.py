"""Random changes of training images, drawn from one seeded generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

__all__ = ["Augmentation"]


class Augmentation(BaseModel):
    """How far training images are moved; every amount is drawn uniformly for each image.

    Example:
        >>> images = torch.rand(4, 1, 8, 8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> torch.equal(Augmentation()(images, torch.zeros(1), generator), images)
        True
        >>> Augmentation(shift=1, rotate=10)(images, torch.zeros(1), generator).shape
        torch.Size([4, 1, 8, 8])
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shift: int = Field(0, ge=0)
    """Largest move along each side, in whole pixels."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Largest rotation to either side, in degrees."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Largest change of size, as a fraction."""
    flip: bool = False
    """Mirror half of the images left to right."""

    def __call__(
        self, images: Tensor, fill: Tensor, generator: Generator, *, rank: int = 0, size: int = 1
    ) -> Tensor:
        """Change images ``[B, C, H, W]`` or ``[B, T, C, H, W]``, all time steps of one alike.

        ``fill`` ``[C]`` is the normalised black that moves in from outside. Of a batch that
        ``size`` processes share, ``images`` are those of process ``rank``: each is changed as if
        one process had them all, and all generators stay alike.
        """
        if self == Augmentation():
            return images
        frames = images.reshape(len(images), -1, *images.shape[-2:])
        black = fill.repeat(frames.shape[1] // len(fill)).reshape(1, -1, 1, 1)
        count, height, width = len(images), images.shape[-2], images.shape[-1]
        theta = self._transforms(count * size, height, width, generator)
        theta = theta[count * rank : count * (rank + 1)]
        grid = F.affine_grid(theta.to(images), list(frames.shape), align_corners=False)
        moved = F.grid_sample(frames - black, grid, align_corners=False) + black
        return moved.reshape(images.shape)

    def _transforms(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        """Affine matrices ``[B, 2, 3]`` from output to input, in units of half an image side."""

        def uniform(limit: float) -> Tensor:
            return (2 * torch.rand(count, generator=generator) - 1) * limit

        def pixels(side: int) -> Tensor:
            limit = self.shift
            moves = torch.randint(-limit, limit + 1, (count,), generator=generator)
            return 2 * moves / side

        angle, zoom = uniform(math.radians(self.rotate)), 1 + uniform(self.scale)
        mirror = torch.ones(count)
        if self.flip:
            mirror = 1 - 2 * torch.randint(0, 2, (count,), generator=generator)
        ratio = height / width
        first = (zoom * mirror * angle.cos(), -zoom * mirror * angle.sin() * ratio, pixels(width))
        second = (zoom * angle.sin() / ratio, zoom * angle.cos(), pixels(height))
        return torch.stack([torch.stack(first, dim=1), torch.stack(second, dim=1)], dim=1)
