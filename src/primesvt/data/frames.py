"""Event frames: one sample as a tensor ``[T, C, H, W]``, of the size that a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import DataError

if TYPE_CHECKING:
    from primesvt.models import DataConfig

__all__ = ["FrameSize", "Frames", "as_tensor"]

Frames = npt.NDArray[np.generic]


class FrameSize:
    """Brings frames ``[T, C, H, W]`` to a model's height and width; values stay as they are.

    Shrinking takes the mean over the area of each new pixel, enlarging interpolates linearly.
    ``config`` None leaves every size as it is.

    Args:
        shape: ``(T, C, H, W)`` of every sample.
        config: what the model reads.
        time_steps: the model's own, named where the frames have another number.
        name: of the data, for errors.

    Raises:
        DataError: the frames have other channels than the model reads.

    Example:
        >>> from primesvt.models.entry import events
        >>> fit = FrameSize((10, 2, 128, 128), events(2, 64), time_steps=4, name="frames.npz")
        >>> fit.form
        "10 time steps of 2x128x128, not the model's 4; averaged down to 64x64"
        >>> fit(torch.ones(10, 2, 128, 128)).shape
        torch.Size([10, 2, 64, 64])
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        config: DataConfig | None,
        *,
        time_steps: int | None = None,
        name: str,
    ) -> None:
        steps, channels, height, width = shape
        self.form = f"{steps} time steps of {channels}x{height}x{width}"
        if time_steps is not None and time_steps != steps:
            self.form += f", not the model's {time_steps}"
        self._size: tuple[int, int] | None = None
        if config is None:
            return
        if channels != config.input_size[0]:
            raise DataError(
                f"{name} has frames of {channels} channels, but the model reads "
                f"{config.input_size[0]}; give frames or a model with the same channels"
            )
        if (height, width) != config.input_size[1:]:
            self._size = config.input_size[1:]
            self._shrinks = height >= self._size[0] and width >= self._size[1]
            how = "averaged down to" if self._shrinks else "interpolated to"
            self.form += f"; {how} {self._size[0]}x{self._size[1]}"

    def __call__(self, frames: Tensor) -> Tensor:
        if self._size is None:
            return frames
        if self._shrinks:
            return F.interpolate(frames, self._size, mode="area")
        return F.interpolate(frames, self._size, mode="bilinear", align_corners=False)


def as_tensor(frames: Frames, place: str) -> Tensor:
    """A float32 copy of frames; ``DataError`` naming the place of a NaN or an infinity.

    Example:
        >>> as_tensor(np.full((1, 1, 1, 2), 3, dtype=np.uint8), "frames.npz").tolist()
        [[[[3.0, 3.0]]]]
    """
    tensor = torch.from_numpy(np.array(frames, dtype=np.float32))
    if not bool(tensor.isfinite().all()):
        raise DataError(f"the frames of {place} hold NaN or infinity; repair or remove the sample")
    return tensor
