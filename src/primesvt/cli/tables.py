"""Tables that are readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from primesvt._format import shown

__all__ = ["by_block", "change_table", "inside", "table", "whole"]


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
        # As text: brackets in a name are no markup.
        made.add_row(*(Text(shown(cell)) if isinstance(cell, str) else cell for cell in row))
    return made


def by_block(
    rows: Iterable[Mapping[str, Any]], name: str
) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """Yield rows under the block of the network they belong to; each block first comes alone.

    Example:
        >>> rows = [{"layer": "blocks.down1.conv"}, {"layer": "blocks.down1.lif"}]
        >>> for block, row in by_block(rows, "layer"):
        ...     print(block, row and inside(block, row["layer"]))
        blocks.down1 None
        blocks.down1 conv
        blocks.down1 lif
    """
    block = ""
    for row in rows:
        here = ".".join(row[name].split(".")[:-1][:2])
        if here != block:
            block = here
            yield block, None
        yield block, row


def inside(block: str, name: str) -> str:
    """The name of a module without that of the block it is in."""
    return name.removeprefix(block).lstrip(".") if name.startswith(block) else name


def whole(number: int) -> str:
    """A whole number with thousands separators."""
    return f"{number:,}"


def change_table(metrics: Mapping[str, Any]) -> Table:
    """Before, after and change of every measure, as the report page has them."""
    from primesvt.report import changes

    rows = [(row.measure, row.before, row.after, row.change) for row in changes(metrics)]
    return table(["", "Before", "After", "Change"], rows, right=[1, 2, 3])
