"""The worked example of docs/costs.md is what the tool says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from primesvt.profiling.energy import PRICES
from primesvt.profiling.memory import parameter_bytes

PAGE = (Path(__file__).parents[2] / "docs" / "costs.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict = {}
    exec(compile(code, "docs/costs.md", "exec"), names)
    return names


def cells(first: str) -> list[str]:
    """The row of a table that begins with a cell."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_operations_of_every_layer(example):
    counted = example["counted"]
    rows = {module.module: module for module in counted.modules}
    for name in ("conv1", "conv2", "fc"):
        row = rows[name]
        assert [float(cell) for cell in cells(f"`{name}`")[:3]] == [
            row.macs,
            row.multiplied,
            row.synops,
        ]
    whole = [counted.macs, counted.multiplied, counted.synops]
    assert [float(cell) for cell in cells("all")[:3]] == whole


def test_energy_and_what_it_is_made_of(example):
    counted, energy = example["counted"], example["energy"]
    figures = {
        "firing rate": 100 * counted.firing_rate,
        "energy by operations": 1e12 * energy.operations,
        "bytes fetched by operations": counted.operand_bytes,
        "bytes of potentials moved": counted.state_bytes,
        "parameter bytes": parameter_bytes(example["net"]),
        "energy with memory": 1e12 * energy.with_memory,
    }
    for name, value in figures.items():
        assert float(cells(name)[0].split()[0]) == pytest.approx(value, rel=1e-9), name


def test_sums_by_hand_come_to_what_is_written():
    """What stands in the last column, worked out: the page is right, not only equal."""
    for name in ("energy by operations", "bytes fetched by operations", "energy with memory"):
        value, sum_ = cells(name)[:2]
        assert eval(sum_.replace("x", "*")) == pytest.approx(float(value.split()[0])), name


def test_prices_are_those_of_the_tool():
    for price in (PRICES.mac, PRICES.accumulate, PRICES.chip_byte, PRICES.dram_byte):
        assert f"{price:g} pJ x" in PAGE
