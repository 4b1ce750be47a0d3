"""What a long run tells while it runs."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "Stage"]

Progress = Callable[[str, int, int], None]


class Stage(str):
    """The name of a stage, with what is known beside how far it is.

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
