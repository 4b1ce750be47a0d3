"""The type of progress callbacks, and names of stages with details."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "Stage"]

Progress = Callable[[str, int, int], None]


class Stage(str):
    """The name of a stage in progress, with a detail such as the number of images seen.

    Example:
        >>> stage = Stage("walk", detail="4,500 images seen")
        >>> stage == "walk", stage.detail
        (True, '4,500 images seen')
    """

    detail: str

    def __new__(cls, name: str, *, detail: str = "") -> Stage:
        stage = super().__new__(cls, name)
        stage.detail = detail
        return stage
