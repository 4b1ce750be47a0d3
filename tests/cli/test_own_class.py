"""A class of the user's own on the command line: looked at, checked, and exported without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import primesvt
from primesvt.checkpoint.own_model import built, open_own_model
from primesvt.cli import main

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden=24):
        super().__init__()
        torch.manual_seed(0)
        self.hidden = hidden
        self.stem, self.mid = nn.Conv2d(3, 16, 2, 2), nn.Conv2d(16, hidden, 1)
        self.head = nn.Linear(hidden, 4)

    def forward(self, x):
        y = self.mid(self.stem(x).relu())
        return self.head(y.reshape(x.shape[0], self.hidden, -1).relu().mean(-1))


def needs(width):
    return Net(width)


number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return Path(name)


def test_a_class_is_looked_at_and_every_cut_is_checked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--into", f"{here}:Net", "--input-size", "3,8,8"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "mid: 24 channels, made by mid, read by head" in said
    assert "a cut: 1 attribute set." in said
    assert "2 prunable groups reach" in said and "; 0 refused" in said
    torch.save(built(f"{here}:Net").state_dict(), "net.pth")
    command = ["inspect", "net.pth", "--into", f"{here}:Net", "--input-size", "3,8,8", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["refused"] == {} and found["parameters"] == 16 * 12 + 16 + 17 * 24 + 100
    assert found["rewrites"] == ["attribute hidden"]
    assert found["notes"][0].startswith("Widths are written into the forward of 1 module; after")


def test_a_run_is_exported_from_the_command_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, images = built(f"{here}:Net"), torch.randn(120, 3, 8, 8)
    data = TensorDataset(images, net(images).argmax(1))
    result = primesvt.prune(net, data=data, max_accuracy_drop=40.0, out="run", seed=0)
    assert result.plan.groups
    command = ["export", "run", "--into", f"{here}:Net", "--format", "torch-export"]
    assert main(command) == 0
    program = torch.export.load("run/export/model.pt2").module()
    assert torch.allclose(program(images), result.model(images), atol=1e-5)
    for folder in ("run", "run/model"):
        assert main(["inspect", folder, "--into", f"{here}:Net"]) == 0
    assert "; 0 refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["inspect"], "give a model to look at, or a class of your own with --into"),
        (["inspect", "--into", "net"], "must be package.module:Class"),
        (["inspect", "--into", "no_such_module:Net"], "ModuleNotFoundError"),
        (["inspect", "--into", "{}:Nothing"], "AttributeError"),
        (["inspect", "--into", "{}:needs"], "needs no arguments"),
        (["inspect", "--into", "{}:number"], "TypeError"),
        (["inspect", "--into", "{}:Net"], "give --input-size"),
        (["inspect", "--into", "{}:Net", "--input-size", "3,x"], "--input-size is '3,x'"),
        (["inspect", "--into", "{}:Net", "--input-size", "5,8,8"], "forward of Net fails"),
        (["inspect", "weights.pth", "--into", "{}:Net", "--input-size", "3,8,8"], "does not fit"),
        (["export", "sdt_v2_digits", "--input-size", "3,8,8"], "goes with --into"),
        (["inspect", "sdt_v2_digits", "--input-size", "3,8,8"], "goes with --into"),
        (["inspect", "--into", "{}:Net", "--costs"], "--costs is for models of the registry"),
        (["inspect", "--into", "{}:Net", "--time-steps", "2"], "--time-steps is for models"),
    ],
)
def test_mistakes_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], phrase: str
) -> None:
    torch.save({"stem.weight": torch.zeros(1)}, "weights.pth")
    assert main([a.format(here) for a in arguments]) == 1
    said = capsys.readouterr().err
    assert phrase in said and len(said.strip().splitlines()) == 1


def test_fresh_weights_and_random_inputs_are_the_same_each_time(here: Path) -> None:
    first, second = (open_own_model(f"{here}:Net", input_size="3,8,8") for _ in range(2))
    assert torch.equal(first.inputs[0], second.inputs[0]) and first.inputs[0].shape[1:] == (3, 8, 8)
    assert not first.model.training
