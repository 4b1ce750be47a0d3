"""What pages quote of benchmark results stands in those results, word by word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
QUOTE = re.compile(r"<!-- from (benchmarks/results/[\w.]+) -->\n(.*?)<!-- end -->\n", re.DOTALL)
FOUND = [(page, *quote) for page in PAGES for quote in QUOTE.findall(page.read_text())]


@pytest.mark.parametrize(
    ("page", "source", "text"), FOUND, ids=[f"{p.name}: {s}" for p, s, _ in FOUND]
)
def test_quotes_are_in_their_source(page: Path, source: str, text: str) -> None:
    assert text.strip(), "an empty quote"
    assert text.strip() in (ROOT / source).read_text(), f"run the benchmark behind {source} again"


def test_pages_that_show_results_quote_them() -> None:
    quoted = {(page.name, source.rpartition("/")[2]) for page, source, _ in FOUND}
    assert quoted == {
        ("README.md", "evidence.md"),
        ("costs.md", "latency.md"),
        ("export.md", "export.md"),
    }
    marks = sum(page.read_text().count("<!-- from benchmarks/") for page in PAGES)
    assert marks == len(FOUND)
