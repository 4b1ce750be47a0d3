"""A small finished run, and modules of a user's own with SpikingJelly's neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from primesvt.checkpoint.folder import save_model
from primesvt.cli import main
from primesvt.models import SpikingViT, create_model

QUICK = (
    *("--include", "*.mlp.fc1", "--policy", "prime", "--rates", "0.5", "--importance", "l2"),
    *("--recovery", "none", "--gate", "point", "--no-verify", "--no-lossless"),
    *("--max-accuracy-drop", "5", "--batch-size", "450"),
)


def tiny(name: str = "sdt_v1_digits", **settings: Any) -> SpikingViT:
    """A network of twelve neuron layers, all of which fire on digits; it has learned nothing."""
    torch.manual_seed(1)
    sizes = {"embed_dim": 16, "depth": 1} if name == "sdt_v1_digits" else {}
    model = create_model(name, **{"num_heads": 2, **sizes, **settings})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.normal_(module.bias, 0.3, 0.4)
            nn.init.uniform_(module.running_var, 0.05, 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That network with half of its MLP, as the result of a run."""
    folder = tmp_path_factory.mktemp("runs")
    save_model(tiny(), folder / "tiny" / "model")
    words = ["prune", str(folder / "tiny"), *QUICK, "--out", str(folder / "halved"), "--json"]
    assert main(words) == 0
    return folder / "halved"


class Sequence(nn.Module):
    """Images shown at four time steps, in SpikingJelly's layers for sequences."""

    def __init__(self) -> None:
        super().__init__()
        many = {"step_mode": "m"}
        self.net = nn.Sequential(
            layer.Conv2d(3, 8, 3, padding=1, bias=False, **many),
            layer.BatchNorm2d(8, **many),
            neuron.IFNode(v_reset=None, **many),
            layer.MaxPool2d(2, **many),
            layer.Dropout(0.5, **many),
            layer.BatchNorm2d(8, **many),
            layer.Conv2d(8, 8, 3, **many),
            neuron.ParametricLIFNode(**many),
            layer.Flatten(**many),
            layer.Linear(32, 5, **many),
        )

    def forward(self, x):
        return self.net(x.unsqueeze(0).repeat(4, 1, 1, 1, 1)).mean(0)


class Loop(nn.Module):
    """Three time steps in a loop, with a neuron that is called once in each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.lif, self.last = neuron.LIFNode(), nn.Linear(16, 4)

    def forward(self, x):
        return sum(self.last(self.lif(self.bn(self.first(x)))) for _ in range(3)) / 3


class TimeFirst(nn.Module):
    """Inputs ``[T, B, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layer.Linear(6, 16, step_mode="m")
        self.lif, self.last = neuron.LIFNode(step_mode="m"), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.lif(self.first(x))).mean(0)


def awake(net: nn.Module) -> nn.Module:
    """With batch norms that do something, so that neurons fire."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.uniform_(module.bias, 0, 0.5)
    return net.eval()
