"""The file of timings: nothing is lost by a kill, and other circumstances are refused."""

from __future__ import annotations

import pytest

from primesvt.profiling.latency_table import LatencyTable, NetworkTime, PartTime, WidthTime

HERE = {"machine": "a CPU", "threads": 1, "batch": 32, "model": "abc"}
PART = PartTime(part="blocks.one", milliseconds=3.5, runs=9)
WIDTH = WidthTime(group="fc", kept=4, part="blocks.one", share=0.5, runs=9)
NETWORK = NetworkTime(cuts={"fc": 4, "conv": 2}, share=0.7, low=0.6, high=0.8, runs=11)


@pytest.fixture
def path(tmp_path):
    table = LatencyTable(tmp_path / "latency.jsonl")
    table.begin(HERE)
    for row in (PART, WIDTH, NETWORK):
        table.add(row)
    return table.path


def test_timings_come_back(path):
    table = LatencyTable(path)
    table.begin(HERE)
    assert table.part("blocks.one") == PART and table.part() is None
    assert table.width("fc", 4) == WIDTH and table.width("fc", 3) is None
    assert table.network({"conv": 2, "fc": 4}) == NETWORK
    assert len(path.read_text().splitlines()) == 4  # nothing is written twice


def test_half_a_line_is_dropped_and_the_rest_goes_on(path):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "width", "gro')
    table = LatencyTable(path)
    table.add(WidthTime(group="fc", kept=2, part="blocks.one", share=0.4, runs=9))
    assert path.read_bytes().startswith(whole) and b'"gro\n' not in path.read_bytes()
    assert LatencyTable(path).width("fc", 2).share == 0.4


@pytest.mark.parametrize("name", HERE)
def test_other_circumstances_are_refused(path, name):
    with pytest.raises(ValueError, match=name) as refusal:
        LatencyTable(path).begin({**HERE, name: "another"})
    assert "another" in str(refusal.value) and "run folder" in str(refusal.value)


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"kind": "weather"}', '{"kind": "part"}', "nonsense"]
)
def test_a_damaged_file_is_named(path, line):
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"line 5 of .*latency.jsonl"):
        LatencyTable(path)


def test_without_a_file_it_lasts_as_long_as_the_run():
    table = LatencyTable()
    table.begin(HERE)
    table.add(WIDTH)
    assert table.width("fc", 4) == WIDTH
