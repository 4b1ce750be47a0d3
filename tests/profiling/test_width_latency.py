"""What is timed on which part of a network; a made-up clock says how long each takes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from primesvt.channels import trace
from primesvt.exporting import onnx_timing as files
from primesvt.models import create_model
from primesvt.profiling import width_latency as module
from primesvt.profiling.latency_table import LatencyTable
from primesvt.profiling.memory import parameter_count
from primesvt.profiling.timing import Pace
from primesvt.profiling.width_latency import Stopwatch

QUICK = Pace(seconds=0, least=1, tick=0)
FC1, CONV = "blocks.block4_0.mlp.fc1", "blocks.conv1b.conv1"


@pytest.fixture(scope="module")
def model():
    return create_model("sdt_v2_digits", pretrained=True).eval()


@pytest.fixture(scope="module")
def graph(model):
    return trace(model, torch.rand(2, 1, 8, 8))


@pytest.fixture(scope="module")
def small():
    """A model that takes little time to export, and its graph."""
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "time_steps": 1}
    model = create_model("sdt_v1_digits", **sizes).eval()
    return model, trace(model, torch.rand(2, 1, 8, 8))


@pytest.fixture
def clock(monkeypatch):
    """Every part takes a second a parameter, and twice that on a busy machine; runs for real."""
    seen = []

    def race_networks(parts, pace):
        seen.append(sorted(parts))
        with torch.no_grad():
            for part, inputs in parts.values():
                part(*inputs)
        times = {name: float(parameter_count(part)) for name, (part, _) in parts.items()}
        return {name: np.array([1.0, 1.0, 1.0, 2.0]) * time for name, time in times.items()}

    monkeypatch.setattr(module, "race_networks", race_networks)
    return seen


def watch(model, graph, *, widths, table=None, **options):
    x = torch.rand(3, 1, 8, 8)
    table = LatencyTable() if table is None else table
    return Stopwatch(model, graph, widths=widths, inputs=(x,), batch=2, table=table, **options)


def parameters(part, *, of=None):
    return parameter_count(part if of is None else of.get_submodule(part))


def test_groups_are_timed_on_their_block_against_it(model, graph, clock):
    one = watch(model, graph, widths={FC1: [144, 80, 16]})
    block = "blocks.block4_0"
    total = sum(parameters(part, of=model) for part in one.parts)
    assert total == parameters(model)
    # 80 of 160 hidden channels: their rows and columns, a bias and a norm
    gone = (160 - 80) * (2 * 40 + 1 + 2)
    assert one.saved({FC1: 80}) == pytest.approx(1e3 * gone)
    assert clock == [["144", "16", "80", "whole"], sorted(["", *one.parts])]
    assert one.table.width(FC1, 80).part == block
    assert one.table.width(FC1, 80).share == pytest.approx(1 - gone / parameters(block, of=model))


def test_widths_between_are_on_the_line_and_groups_add_up(model, graph, clock):
    one = watch(model, graph, widths={FC1: [120, 40], CONV: [32]})
    middle = (one.saved({FC1: 120}) + one.saved({FC1: 40})) / 2
    assert one.saved({FC1: 80}) == pytest.approx(middle)
    assert one.saved({FC1: 160}) == one.saved({}) == 0
    both = one.saved({FC1: 40, CONV: 32})
    assert both == pytest.approx(one.saved({FC1: 40}) + one.saved({CONV: 32}))


def test_a_narrower_width_saves_no_less(model, graph, clock):
    table = LatencyTable()
    one = watch(model, graph, widths={FC1: [120, 80, 40]}, table=table)
    for kept, share in ((120, 0.9), (80, 0.5), (40, 0.7)):
        row = module.WidthTime(group=FC1, kept=kept, part="blocks.block4_0", share=share, runs=1)
        table.add(row)
    saved = [one.saved({FC1: kept}) for kept in (160, 120, 80, 40)]
    assert saved == sorted(saved) and saved[2] == saved[3] > saved[1] > 0
    slower = watch(model, graph, widths={FC1: [120]}, table=LatencyTable())
    slower.table.add(module.WidthTime(group=FC1, kept=120, part="x", share=1.2, runs=1))
    assert slower.saved({FC1: 120}) == 0


def test_a_stream_is_timed_on_the_whole_network(model, graph, clock):
    stream = next(group for group in graph if group.kind == "stream" and group.status == "free")
    one = watch(model, graph, widths={stream.name: [stream.size - 1]})
    assert one.saved({stream.name: stream.size - 1}) > 0
    assert one.table.width(stream.name, stream.size - 1).part == ""


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


def test_a_network_of_ones_own_is_timed_as_a_whole(clock):
    net = Own()
    graph = trace(net, torch.rand(1, 4))
    one = Stopwatch(net, graph, widths={"one": [4]}, inputs=(torch.rand(1, 4),), batch=3,
                    table=LatencyTable())  # fmt: skip
    assert one.parts == ()
    assert one.saved({"one": 4}) == pytest.approx(1e3 * 4 * 7)


def test_whole_networks_are_timed_once(model, graph, clock):
    one = watch(model, graph, widths={FC1: [80], CONV: [32]})
    found = one.network({FC1: 80, CONV: 32})
    left = 1 - (80 * 83 + 32 * (2 * 16 * 9 + 2)) / parameters(model)
    assert found.share == pytest.approx(left, abs=1e-3)
    assert one.network({CONV: 32, FC1: 80}) is found
    assert clock == [["cut", "whole"]]
    assert one.network({}).share == 1.0


def test_a_resumed_run_takes_the_same_table(model, graph, clock, tmp_path):
    first = watch(model, graph, widths={FC1: [80]}, table=LatencyTable(tmp_path / "t.jsonl"))
    saved, share = first.saved({FC1: 80}), first.network({FC1: 80}).share
    timed = len(clock)
    again = watch(model, graph, widths={FC1: [80]}, table=LatencyTable(tmp_path / "t.jsonl"))
    assert again.saved({FC1: 80}) == saved and again.network({FC1: 80}).share == share
    assert len(clock) == timed


def test_only_the_model_itself_is_the_right_one(model, graph, tmp_path):
    watch(model, graph, widths={FC1: [80]}, table=LatencyTable(tmp_path / "t.jsonl"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.fc.weight.add_(1)
    with pytest.raises(ValueError, match="another model"):
        watch(other, graph, widths={FC1: [80]}, table=LatencyTable(tmp_path / "t.jsonl"))


def test_real_timings_leave_the_model_as_it_was(model, graph):
    before = copy.deepcopy(model.state_dict())
    one = watch(model, graph, widths={FC1: [16]}, widths_pace=QUICK, networks_pace=QUICK)
    assert 0 < one.network({FC1: 16}).share < 2
    assert one.saved({FC1: 16}) >= 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_it_is_told_how_many_groups_are_known(model, graph, clock):
    told = []
    widths = {FC1: [80], CONV: [32]}
    one = watch(model, graph, widths=widths, tell=lambda done, total: told.append((done, total)))
    one.saved({FC1: 80})
    one.saved({FC1: 80, CONV: 32})
    assert told == [(1, 2), (2, 2)]


def test_files_are_timed_in_onnxruntime(small, tmp_path, monkeypatch):
    """A block, a whole cut network; what was not cut is exported once."""
    (model, graph), made, group = small, [], "blocks.block0.mlp.fc1"
    one = watch(model, graph, widths={group: [32, 16]}, files=files.Files(model), widths_pace=QUICK,
                networks_pace=QUICK, table=LatencyTable(tmp_path / "t.jsonl"))  # fmt: skip
    real = files._file
    monkeypatch.setattr(files, "_file", lambda *given: made.append(given) or real(*given))
    monkeypatch.setattr(one, "parts", ("blocks.block0",))
    assert one.saved({group: 16}) >= 0 and one.whole.milliseconds > 0
    assert 0 < one.network({group: 16}).share < 2
    assert len(made) == 5  # two widths of a block, it itself, the network, the cut network
    assert [x.shape[axis] for _, x, axis in made] == [2] * 5
    assert one.table.context["runtime"] == "onnxruntime"
    with pytest.raises(ValueError, match="another runtime"):
        watch(model, graph, widths={group: [32]}, table=one.table)
    pytorch = LatencyTable(tmp_path / "pytorch.jsonl")
    watch(model, graph, widths={group: [32]}, table=pytorch)
    with pytest.raises(ValueError, match="another runtime"):
        watch(model, graph, widths={group: [32]}, files=files.Files(model), table=pytorch)


def test_a_file_computes_what_its_part_does(small):
    model, graph = small
    one = files.Files(model)
    x = torch.rand(3, 1, 8, 8)
    stopwatch = watch(model, graph, widths={"blocks.block0.mlp.fc1": [32]})
    (entering,) = stopwatch._entering("blocks.block0")
    for part, given in ((model, x), (model.blocks.block0, entering)):
        with torch.no_grad():
            module.reset(model)
            expected = part(given)
            module.reset(model)
        (found,) = one._run(part, given)()
        assert torch.allclose(found, expected, atol=1e-4), type(part)
