"""Tables that are readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["change_table", "table", "whole"]


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Iterable[int] = (),
    wrap: Iterable[int] = (),
    title: str | None = None,
) -> Table:
    """A plain table; ``right`` columns hold numbers, only ``wrap`` columns may break lines."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    made.title_style = "bold"
    for index, name in enumerate(columns):
        made.add_column(
            name,
            justify="right" if index in set(right) else "left",
            no_wrap=index not in set(wrap),
            overflow="fold",
        )
    for row in rows:
        made.add_row(*row)
    return made


def whole(number: int) -> str:
    """A whole number with thousands set apart."""
    return f"{number:,}"


def change_table(metrics: Mapping[str, Any]) -> Table:
    """Before, after and change of every measure, as the report page has them."""
    from primesvt.report import changes

    rows = [(row.measure, row.before, row.after, row.change) for row in changes(metrics)]
    return table(["", "Before", "After", "Change"], rows, right=[1, 2, 3])
