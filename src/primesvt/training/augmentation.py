"""Random augmentation of training images, drawn from one seeded generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

__all__ = ["Augmentation"]


class Augmentation(BaseModel):
    """Random augmentation of training images; every amount is drawn uniformly for each image.

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
    mixup: float = Field(0.0, ge=0)
    """Blend each image and label with another's of the batch, by shares from Beta(a, a); 0 never
    does. Zhang et al., "mixup" (arXiv 1710.09412)."""
    cutmix: float = Field(0.0, ge=0)
    """Paste a rectangle of another image of the batch, of an area from Beta(a, a), and blend the
    labels alike; 0 never does. Where mixup is on too, each batch gets one of the two by a coin.
    Yun et al., "CutMix" (arXiv 1905.04899)."""

    @property
    def mixes(self) -> bool:
        """Whether images are blended with each other, and labels with them."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self, images: Tensor, fill: Tensor, generator: Generator, *, rank: int = 0, size: int = 1
    ) -> Tensor:
        """Augment images ``[B, C, H, W]`` or ``[B, T, C, H, W]``, all time steps of one alike.

        ``fill`` ``[C]`` is the normalised black that moves in from outside. Of a batch that
        ``size`` processes share, ``images`` are those of process ``rank``: each is changed as if
        one process had them all, and all generators stay alike.
        """
        if self.model_copy(update={"mixup": 0.0, "cutmix": 0.0}) == Augmentation():
            return images
        frames = images.reshape(len(images), -1, *images.shape[-2:])
        black = fill.repeat(frames.shape[1] // len(fill)).reshape(1, -1, 1, 1)
        count, height, width = len(images), images.shape[-2], images.shape[-1]
        theta = self._transforms(count * size, height, width, generator)
        theta = theta[count * rank : count * (rank + 1)]
        grid = F.affine_grid(theta.to(images), list(frames.shape), align_corners=False)
        moved = F.grid_sample(frames - black, grid, align_corners=False) + black
        return moved.reshape(images.shape)

    def mix(
        self, images: Tensor, labels: Tensor, classes: int, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch in pairs; also returns the classes' shares ``[B, classes]``.

        Image ``i`` is mixed with image ``B - 1 - i``. All processes that share a batch draw alike.

        Example:
            >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
            >>> generator = torch.Generator().manual_seed(0)
            >>> _, targets = Augmentation(mixup=0.2).mix(images, labels, 3, generator)
            >>> targets.sum(1).tolist()
            [1.0, 1.0]
        """
        seed = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
        draw = np.random.default_rng(int(seed))
        pastes = self.cutmix > 0 and (self.mixup == 0 or draw.random() < 0.5)
        concentration = self.cutmix if pastes else self.mixup
        kept = draw.beta(concentration, concentration)
        if pastes:
            top, bottom, left, right = _box(1 - kept, images.shape[-2:], draw)
            images, others = images.clone(), images.flip(0)
            images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
            kept = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        else:
            images = kept * images + (1 - kept) * images.flip(0)
        targets = F.one_hot(labels, classes).to(images.dtype)
        return images, kept * targets + (1 - kept) * targets.flip(0)

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


def _box(area: float, sides: Sequence[int], draw: np.random.Generator) -> tuple[int, ...]:
    """Top, bottom, left, right of a rectangle, cut off where it leaves the image.

    It has this share of the image's area and the image's shape around a centre drawn uniformly.
    """
    bounds: list[int] = []
    for side in sides:
        centre, half = int(draw.integers(side)), round(side * area**0.5) / 2
        bounds += [max(0, round(centre - half)), min(side, round(centre + half))]
    return tuple(bounds)
