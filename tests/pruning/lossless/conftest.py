"""Networks with channels that are forced to be silent, or to fire always."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.utils.data import Subset

from primesvt.calibration import CalibrationSet, calibration_of
from primesvt.channels import trace
from primesvt.data import Splits, load_data
from primesvt.models import SpikingViT, create_model, reset
from primesvt.models.attention import RepConv
from primesvt.pruning.lossless import StartNetwork, remove_constant_channels, remove_unused


def force(norm: nn.Module, channels: Iterable[int], *, fires: bool = False) -> None:
    """Give some channels of a batch norm a fixed output: never, or always above a threshold."""
    with torch.no_grad():
        for channel in channels:
            norm.weight[channel] = 0.0
            norm.bias[channel] = 100.0 if fires else -1.0


def images(count: int = 24, *, seed: int = 0, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, size, size, generator=generator, dtype=torch.float64)


def slim(
    model: nn.Module,
    *sources: Tensor,
    check: Tensor | None = None,
    names: Sequence[str] = (),
) -> StartNetwork:
    """The lossless step on some inputs, in batches of 7."""
    inputs: list[CalibrationSet] = [calibration_of(each, batch_size=7) for each in sources]
    checked = inputs[-1:] if check is None else [calibration_of(check, batch_size=7)]
    stripped = remove_unused(model, checked)
    graph = trace(stripped.model, sources[0][:2])
    groups = [graph[name] for name in names] or list(graph.prunable())
    return remove_constant_channels(model, stripped, graph, groups, inputs)


def gone(lean: StartNetwork, group: str) -> list[list[int]]:
    """Original indices that a group lost, by position."""
    whole = range(lean.sizes[group])
    return [sorted(set(whole) - set(row)) for row in lean.kept(group)]


def answer(model: nn.Module, x: Tensor) -> Tensor:
    reset(model)
    with torch.no_grad():
        out = model(x)
    reset(model)
    return out


class Chain(nn.Module):
    """Convolution, 1x1 convolution and classifier, a norm and a neuron behind the first two."""

    def __init__(self, *, kernel: int = 1, padding: int = 0, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1, self.lif1 = nn.BatchNorm2d(8), neuron.LIFNode(v_threshold=0.3)
        self.conv2 = nn.Conv2d(8, 6, kernel, padding=padding, bias=bias)
        self.norm2, self.lif2 = nn.BatchNorm2d(6), neuron.LIFNode(v_threshold=0.2)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.norm1(self.conv1(x)))
        return self.fc(self.lif2(self.norm2(self.conv2(x))).flatten(2).mean(-1))


class Padded(Chain):
    """The 1x1 convolution that reads is followed by a norm that pads with what it makes of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = RepConv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.norm1(self.conv1(x)))
        mixed = self.norm2(self.conv2(x[None])[0])
        return self.fc(self.lif2(mixed).flatten(2).mean(-1))


def built(kind: type[nn.Module], *, brightness: float = 1.0, **options: object) -> nn.Module:
    """A network whose neurons all fire now and then, in evaluation mode and double precision."""
    torch.manual_seed(0)
    model = kind(**options).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.bias, 0.1, 0.6)
    answer(model.train(), brightness * images(seed=1))
    return model.eval()


def fired(name: str, **options: object) -> SpikingViT:
    """A model whose norms are bright enough for spikes to reach the head."""
    torch.manual_seed(0)
    model = create_model(name, **options).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.bias.uniform_(0.2, 1.5)
    return model


def picture(model: SpikingViT) -> torch.Tensor:
    size = 8 if model.config.in_channels == 1 else 32
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, model.config.in_channels, size, size, generator=generator)


@pytest.fixture(scope="session")
def digits() -> Splits:
    """Few images of each set."""
    whole = load_data("digits")
    return dataclasses.replace(
        whole,
        calibration=Subset(whole.calibration, range(40)),
        selection=Subset(whole.selection, range(60)),
        test=Subset(whole.test, range(40)),
    )


@pytest.fixture(scope="session")
def pictures(digits: Splits) -> Tensor:
    """Forty digits, in double precision."""
    return torch.stack([torch.as_tensor(digits.selection[i][0]) for i in range(40)]).double()


@pytest.fixture(scope="session")
def _trained() -> SpikingViT:
    return create_model("sdt_v2_digits", pretrained=True).eval()


@pytest.fixture
def trained(_trained: SpikingViT) -> SpikingViT:
    return copy.deepcopy(_trained)
