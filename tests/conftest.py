"""What every test shares: one thread per worker, reference data, and small networks that spike."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn
from torch.utils.data import Subset

from primesvt.channels import ChannelGraph, trace
from primesvt.data import Splits, load_data
from primesvt.models import SpikingViT, create_model

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as where a shell starts it with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository, or the one named by PRIMESVT_SHARED."""
    folder = Path(os.environ.get("PRIMESVT_SHARED", ROOT.parent / "shared"))
    if folder.is_dir():
        return folder
    message = f"reference data not found at {folder}; set PRIMESVT_SHARED to its folder"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


# Folders and files that take longest, one test or the fixture of all of them.
LONGEST = (
    "tests/pruning",
    "tests/training",
    "tests/docs",
    "tests/test_",
    "tests/exporting",
    "tests/families",
    "tests/report",
    "tests/cli",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files and end with short examples: no worker is left alone."""

    def rank(item: pytest.Item) -> int:
        return 0 if item.nodeid.startswith(LONGEST) else 1 + item.nodeid.startswith("src")

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was compared with the reference files, by whichever worker."""
    reports = terminalreporter.getreports("passed")
    found = [said for report in reports for name, said in report.user_properties if name == "said"]
    if found:
        terminalreporter.section("compared with the official code")
    for line in sorted(found):
        terminalreporter.line(line)


class OwnNet(nn.Module):
    """A spiking network that no registry knows, with a lookup buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.lif = neuron.LIFNode(v_threshold=0.3)
        self.fc1 = nn.Linear(6 * 36, 20)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(20, 10)
        self.register_buffer("shift", torch.linspace(-1, 1, 20), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.lif(self.norm(self.conv(x)))
        hidden = self.fc1(spikes.flatten(1)) + self.shift
        return self.fc2(self.act(hidden))


@pytest.fixture(scope="session")
def _pretrained() -> SpikingViT:
    return create_model("sdt_v2_digits", pretrained=True).eval()


@pytest.fixture
def model(_pretrained: SpikingViT) -> SpikingViT:
    return copy.deepcopy(_pretrained)


@pytest.fixture(scope="session")
def graph(_pretrained: SpikingViT) -> ChannelGraph:
    return trace(_pretrained, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="session")
def digits() -> Splits:
    whole = load_data("digits")
    return dataclasses.replace(
        whole,
        selection=Subset(whole.selection, range(60)),
        test=Subset(whole.test, range(40)),
    )


@pytest.fixture
def own_net() -> OwnNet:
    torch.manual_seed(0)
    return OwnNet().eval()
