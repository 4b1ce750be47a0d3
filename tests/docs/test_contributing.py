"""CONTRIBUTING.md: its examples run, and the functions that it names are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SOURCE = "\n".join(path.read_text() for path in (ROOT / "src/primesvt").rglob("*.py"))
PROBE = PAGE.partition("## What happens to one probe\n")[2].partition("\n## ")[0]


def test_the_examples_run(tmp_path: Path) -> None:
    """In a process of their own, as they register names."""
    source = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    source += "\nprint(result.plan.steps[0].after, result.plan.steps[0].recovery)\n"
    (tmp_path / "example.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 16) nothing at all\n"


def test_what_happens_to_a_probe_is_told_in_ten_lines() -> None:
    assert len(re.findall(r"^\d+\. ", PROBE, re.MULTILINE)) == 10


@pytest.mark.quick
@pytest.mark.parametrize("name", re.findall(r"`([A-Za-z_.]+)(?:\(\w*\))?`", PROBE))
def test_the_functions_that_it_names_are_there(name: str) -> None:
    if name.endswith(".jsonl"):
        assert name in SOURCE
        return
    owner, _, function = name.rpartition(".")
    places = [SOURCE]
    if owner:  # the class itself has the method
        places = re.findall(rf"^class {owner}\b.*?(?=^\S|\Z)", SOURCE, re.DOTALL | re.MULTILINE)
    assert any(re.search(rf"\b(class|def) {function}\b", place) for place in places), name
