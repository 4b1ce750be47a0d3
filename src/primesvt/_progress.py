"""What a long run tells while it runs."""

from __future__ import annotations

from collections.abc import Callable

from primesvt.pruning.probe_table import ProbeTable

__all__ = ["Progress", "Stage", "counting"]

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


def counting(progress: Progress | None, table: ProbeTable) -> Progress | None:
    """The same progress, told as well how many images the probes of a table saw.

    Example:
        >>> told = counting(lambda stage, done, total: print(stage, stage.detail), ProbeTable())
        >>> told("walk", 0, 20)
        walk 0 images seen
    """
    if progress is None:
        return None

    def tell(stage: str, done: int, total: int) -> None:
        images = sum(probe.samples or 0 for probe in table)
        early = sum(probe.rejected is not None for probe in table)
        parts = [f"{images:,} images seen", *([f"{early} rejected early"] if early else [])]
        progress(Stage(stage, detail=", ".join(parts)), done, total)

    return tell
