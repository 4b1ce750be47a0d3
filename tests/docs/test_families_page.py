"""docs/families.md says what the traces say, and agrees with the official code's shares."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from primesvt.models import list_models

from ..families.cases import CASES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "families.md"

# One variant a family as the section and column of SPEC's tables; our roles as sums of its rows.
MLP, CLASSES = {"MLP hidden": ["mlp fc1"]}, {"classes": ["head", "head_kd"]}
QK_V = {"attention q+k": ["attn q+k"], "attention v": ["attn v"]}
SHARES = {
    ("qkformer", "10-384"): {
        **MLP,
        **CLASSES,
        "attention q+k": ["SSA q+k"],
        "attention v": ["SSA v"],
        "attention q, attention k": ["token-QK q+k"],
    },
    ("sdt1", "8-384"): {**MLP, **CLASSES, "attention q+k+v": ["attn q+k", "attn v"]},
    ("sdt2", "8-256-15M-kd"): {**MLP, **CLASSES, "conv block hidden": ["convblock 3x3 conv1"]},
    ("sdt3", "base-t"): {**MLP, **CLASSES, **QK_V, "conv block hidden": ["convblock 3x3 conv1"]},
    ("sdt3", "large-12-768-171M-kd"): {**MLP, **CLASSES},
    ("spikformer", "8-384"): {**MLP, **CLASSES, **QK_V},
    ("spikingformer", "8-384"): {**MLP, **CLASSES, **QK_V},
    ("spikingresformer", "ti"): {**CLASSES, "MLP hidden": ["FFN up", "FFN grouped conv"]},
}
MANIFESTS = {manifest: name for case in CASES for manifest, name in case.manifests.items()}
COLUMNS = {MANIFESTS[f"{s}-imagenet-{c}"]: (s, c) for s, c in SHARES}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/families.py."""
    spec = importlib.util.spec_from_file_location(
        "families_page", ROOT / "benchmarks" / "families.py"
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables(text: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Every table of a page: its header's cells, and its lines by their first cell."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *lines = table.splitlines()
        yield cells(header), {cells(line)[0]: line for line in lines}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_model_is_on_the_page() -> None:
    found = [name for _, lines in tables(PAGE.read_text()) for name in lines]
    assert sorted(found) == sorted(f"`{name}`" for name in list_models())


@pytest.mark.parametrize("name", COLUMNS)
def test_the_page_is_what_the_script_gives(name: str, script: ModuleType) -> None:
    """Renew with ``python benchmarks/families.py``."""
    row = script.measure(name)
    for header, lines in tables(PAGE.read_text()):
        if f"`{name}`" in lines:
            assert lines[f"`{name}`"] == script.line(row, header[4:-2])
            return
    raise AssertionError(f"{name} is missing")


@pytest.mark.parametrize("name", COLUMNS)
def test_shares_agree_with_those_of_the_official_code(
    name: str, script: ModuleType, shared: Path
) -> None:
    section, column = COLUMNS[name]
    text = (shared / "reference" / "SPEC.md").read_text()
    ((header, lines),) = tables(text.split(f"\n### {section}\n")[1].split("\n#")[0])
    index = header.index(column)
    found = script.measure(name).shares
    assert sum(found.values()) == pytest.approx(1)
    for roles, rows in SHARES[section, column].items():
        official = sum(float(cells(lines[row])[index]) for row in rows if row in lines)
        ours = 100 * sum(found[role] for role in roles.split(", "))
        assert ours == pytest.approx(official, abs=0.06 * len(rows)), roles
