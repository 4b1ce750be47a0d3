"""Hidden widths as multiples of a width, cut off to whole channels as the official code does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["ratio_of", "scaled"]


def scaled(width: int, ratio: float) -> int:
    """A multiple of a width, cut off.

    Example:
        >>> scaled(9, 1.5), scaled(49, 29 / 49)
        (13, 29)
    """
    # A ratio of two widths, multiplied again, may fall short of a whole number.
    return int(width * ratio + 1e-9)


def ratio_of(state: Mapping[str, Tensor], layer: str, *, usual: float) -> float | None:
    """Output by input channels of the layers whose names end like this; ``None`` without any.

    ``usual`` where it gives the same widths, else the first that does.

    Example:
        >>> import torch
        >>> ratio_of({"a.fc1.weight": torch.zeros(13, 9, 1)}, "fc1.weight", usual=1.5)
        1.5
    """
    shapes = [tensor.shape[:2] for key, tensor in state.items() if key.endswith(layer)]
    if not shapes:
        return None
    candidates = [usual, *(outputs / inputs for outputs, inputs in shapes)]
    fitting = (
        ratio
        for ratio in candidates
        if all(scaled(inputs, ratio) == outputs for outputs, inputs in shapes)
    )
    return next(fitting, candidates[1])
