"""Parts of result pages that other pages show: written by the benchmark, never by hand."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["quote"]

ROOT = Path(__file__).parent.parent


def quote(page: str, source: str, text: str) -> None:
    """Put a part of ``benchmarks/results/SOURCE`` between its marks in a page.

    Args:
        page: path in the repository.
        source: name of the result page, which holds the text too.
        text: what is shown; lines without marks.

    Raises:
        ValueError: the page has no such marks.
    """
    path = ROOT / page
    begin, end = f"<!-- from benchmarks/results/{source} -->\n", "<!-- end -->\n"
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    content = path.read_text(encoding="utf-8")
    if len(marked.findall(content)) != 1:
        raise ValueError(f"{page} must have {begin.strip()!r} and {end.strip()!r} after it, once")
    path.write_text(
        marked.sub(lambda _: f"{begin}{text.strip()}\n{end}", content), encoding="utf-8"
    )
