"""Operations against layers counted by hand, and SpikingJelly's counter where that is right."""

from __future__ import annotations

import copy

import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import nn

from primesvt.models import create_model, lif, reset
from primesvt.models.attention import RepConv, SpikingSelfAttention
from primesvt.models.blocks import ConvBN
from primesvt.models.neurons import IntegerNeuron, integer
from primesvt.models.spiking_vit import SpikingViT
from primesvt.profiling.memory import membrane_bytes
from primesvt.profiling.operations import count_operations

from ..lively import FAMILIES, lively


class Encoder(nn.Module):
    """Turns its input into spikes or integers, as they are; so that a test says what fires."""

    def __init__(self, neuron_layer: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.fire = neuron_layer
        self.body = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.fire(x))


def direct() -> nn.Module:
    """A neuron that fires wherever its input is one."""
    return neuron.IFNode(v_threshold=1.0, step_mode="s")


def counted(net: nn.Module, *x: torch.Tensor):
    found = count_operations(net, [x])
    return {m.module: m for m in found.modules}, found


def row(module):
    return module.macs, module.multiplied, module.synops


def spikes(shape, *places):
    x = torch.zeros(shape)
    for place in places:
        x[place] = 1
    return x


def test_a_linear_layer_multiplies_real_numbers_and_adds_spikes():
    rows, found = counted(
        Encoder(direct(), nn.Linear(6, 5)), spikes((2, 6), (0, 1), (0, 4), (1, 2))
    )
    assert row(rows["body.0"]) == (30, 0, 3 * 5 / 2)  # three spikes on two samples
    assert rows["body.0"].rate == rows["fire"].rate == found.firing_rate == 3 / 12
    assert found.operand_bytes == 4 * 7.5
    rows, found = counted(nn.Linear(6, 5), torch.rand(2, 6))
    assert row(rows["(model)"]) == (30, 30, 0)
    assert rows["(model)"].rate is None and found.firing_rate is None


@pytest.mark.parametrize(
    ("layer", "place", "arriving"),
    [
        (nn.Conv2d(1, 7, 3, padding=1), (2, 2), 9 * 7),
        (nn.Conv2d(1, 7, 3, padding=1), (0, 0), 4 * 7),  # a corner is under four places
        (nn.Conv2d(1, 7, 3, padding=1), (0, 2), 6 * 7),
        (nn.Conv2d(1, 7, 3, padding=1, stride=2), (1, 1), 4 * 7),
        (nn.Conv2d(1, 7, 3, padding=1, stride=2), (2, 2), 1 * 7),
        (nn.Conv2d(1, 7, 3), (0, 0), 1 * 7),
        (nn.Conv2d(1, 7, 1, bias=False), (3, 1), 7),
        (nn.Conv2d(1, 7, 3, padding=2, dilation=2), (2, 2), 9 * 7),
        (nn.ConvTranspose2d(1, 7, 2, stride=2), (2, 2), 4 * 7),
    ],
)
def test_a_spike_adds_where_it_arrives(layer, place, arriving):
    rows, _ = counted(Encoder(direct(), layer), spikes((1, 1, 5, 5), (0, 0, *place)))
    assert rows["body.0"].synops == arriving and rows["body.0"].multiplied == 0


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), 25 * 6 * 4 * 9),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 25 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), 25 * 8 * 2 * 9),
        (nn.Conv2d(4, 6, 3, padding=1, stride=2), 9 * 6 * 4 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 25 * 4 * 6 * 4),
    ],
)
def test_dense_convolutions(layer, macs):
    rows, _ = counted(layer, torch.rand(1, 4, 5, 5))
    assert row(rows["(model)"]) == (macs, macs, 0)


def test_a_depthwise_convolution_adds_only_in_its_channel():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    rows, _ = counted(Encoder(direct(), layer), spikes((1, 4, 5, 5), (0, 0, 2, 2), (0, 3, 0, 0)))
    assert rows["body.0"].synops == 9 + 4


def test_weights_of_zero_and_one_are_weights():
    layer = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    rows, _ = counted(Encoder(direct(), layer), spikes((1, 4), (0, 0)))
    assert row(rows["body.0"]) == (12, 0, 3)


def test_an_image_of_zeros_and_ones_is_no_spike_train():
    x = (torch.rand(1, 1, 4, 4) < 0.5).float()
    rows, _ = counted(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 2)), x)
    assert row(rows["0"]) == (4 * 2 * 9, 4 * 2 * 9, 0)
    assert rows["1"].synops == 0 and rows["1"].multiplied == 8


def test_an_image_is_convolved_once_and_frames_at_every_step():
    model = create_model("sdt_v2_digits").eval()
    model.time_steps = 3
    image, frames = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 1, 8, 8)
    once, _ = counted(model, image)
    each, _ = counted(model, frames)
    assert row(once["blocks.down1a.conv"]) == (4608, 4608, 0)
    assert row(each["blocks.down1a.conv"]) == (3 * 4608, 3 * 4608, 0)
    assert once["blocks.down1b.conv"].macs == each["blocks.down1b.conv"].macs


def test_integers_are_so_many_spikes():
    layer = nn.Linear(4, 3)
    x = torch.tensor([[0.2, 1.0, 2.1, 7.0]])  # levels 0, 1, 2, 4
    rows, found = counted(Encoder(integer(levels=4), layer), x)
    assert row(rows["body.0"]) == (12, 0, 7 * 3)
    assert rows["fire"].rate == 7 / 16 and rows["body.0"].rate == 7 / 4
    assert found.state_bytes == 0  # it keeps no potential
    rows, _ = counted(Encoder(IntegerNeuron(4, norm=1), layer), x)
    assert rows["body.0"].synops == 21
    loud = torch.full((1, 4), 9.0)  # all ones after the norm: four spikes each, not one
    rows, _ = counted(Encoder(integer(levels=4), layer), loud)
    assert rows["body.0"].synops == 16 * 3


class Stream(nn.Module):
    """A sum of two spike trains, pooled, in front of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = direct(), direct()
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(1, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summed = self.pool(self.one(x[:, :1]) + self.two(x[:, 1:]))
        return self.fc(summed.flatten(1)[:, :1].contiguous())


def test_spikes_stay_spikes_through_sums_and_poolings():
    both = spikes((1, 2, 2, 2), (0, 0, 0, 0), (0, 1, 0, 0))
    rows, _ = counted(Stream(), both)
    assert row(rows["fc"]) == (5, 0, 2 * 5)


class Products(nn.Module):
    """Attention without a softmax: v k^T pairs spikes, then q picks its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = direct(), direct(), direct()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x[0]), self.k(x[1]), self.v(x[2])
        return (v @ k.transpose(-2, -1)) @ q


def test_products_of_spikes():
    x = torch.zeros(3, 1, 2, 3)  # q, k, v: two channels, three tokens
    x[2, 0, 0, :2] = 1  # v: channel 0 at tokens 0 and 1
    x[1, 0, 1, 1:] = 1  # k: channel 1 at tokens 1 and 2: one token in common
    x[0, 0, :, 0] = 1  # q: both channels at token 0
    rows, _ = counted(Products(), x)
    # v k^T holds a single one, but is a sum: two spikes of q, each for two rows
    assert row(rows["(model)"]) == ((12 + 12) / 3, 0, (1 + 2 * 2) / 3)
    assert rows["(model)"].kind == "product"


def test_attention_of_a_block():
    attention = SpikingSelfAttention(8, heads=2, scale=0.1, projection=ConvBN).eval()
    for part in (attention.q, attention.k, attention.v):
        nn.init.constant_(part.bn.bias, 30.0)  # so that everything fires
    x = torch.full((1, 1, 8, 3, 3), 5.0)
    rows, _ = counted(attention, x)
    # per head: 4 channels, 9 tokens; all fire
    assert row(rows["(model)"]) == (2 * (144 + 144), 0, 2 * (144 + 144))
    assert row(rows["q.conv"]) == (9 * 64, 0, 9 * 64)


def test_a_reparametrised_convolution_is_counted_as_it_is_run():
    """One layer on spikes; the two behind it read its sums, on an image padded by one pixel."""
    net = Encoder(lif(), RepConv(4, 6))
    rows, _ = counted(net.eval(), torch.full((1, 1, 4, 5, 5), 9.0))
    assert row(rows["body.0.inner"]) == (25 * 16, 0, 25 * 16)
    assert row(rows["body.0.depthwise"]) == (25 * 4 * 9,) * 2 + (0,)
    assert row(rows["body.0.outer"]) == (25 * 24,) * 2 + (0,)


class Homemade(nn.Module):
    """A neuron that neither SpikingJelly nor we know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x >= 1).to(x.dtype)


class Net(nn.Module):
    """A name shorter than those of SpikingJelly's own scopes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.T


def test_products_of_the_model_itself():
    rows, _ = counted(Net(), torch.rand(2, 3))
    assert row(rows["(model)"]) == (6, 6, 0)


def test_neurons_that_nobody_knows():
    rows, _ = counted(Encoder(Homemade(), nn.Linear(4, 3)), torch.tensor([[2.0, 0, 0, 3.0]]))
    assert row(rows["body.0"]) == (12, 0, 6)


def test_attention_in_one_operator_is_not_missed():
    class Softmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    rows, _ = counted(Softmax(), torch.rand(1, 1, 5, 8))
    assert row(rows["(model)"]) == (2 * 5 * 5 * 8, 2 * 5 * 5 * 8, 0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith("sdt_v3")])
def test_potentials_are_those_that_memory_counts(family):
    one = lively(family)
    example = (one.x[:4],)
    rows, found = counted(one.model, *example)
    total = sum(module.membrane_bytes for module in rows.values())
    assert total == membrane_bytes(one.model, example)
    if family != "qkformer":  # there a neuron runs over the images of a batch
        assert found.state_bytes == 2 * one.model.time_steps * total


def test_spikingjelly_agrees_where_all_spikes_are_binary():
    """SDT has layers on binary spikes only; the first one, on an image, is not theirs to add."""
    one = lively("sdt_v1")
    rows, found = counted(one.model, one.x)
    theirs = SynOpCounter()
    model = copy.deepcopy(one.model)
    with torch.no_grad(), DispatchCounterMode([theirs]):
        model(one.x)
    assert found.synops == theirs.get_total() / len(one.x)
    assert found.synops > 0 and rows["blocks.stem.conv0.conv"].synops == 0


def test_looking_changes_nothing():
    one = lively("sdt_v2")
    model = copy.deepcopy(one.model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = count_operations(model, [(one.x,)])
    assert model.training and first == count_operations(model, [(one.x,)])
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(m.v == 0.0 for m in model.modules() if isinstance(m, neuron.BaseNode))
    assert not any(m._forward_hooks for m in model.modules())


def test_means_over_as_many_samples_as_asked_for():
    one = lively("sdt_v2")
    batches = [(part,) for part in one.x.split(4)]
    assert count_operations(one.model, batches, samples=5).samples == 8
    parts = [count_operations(one.model, [b]).synops for b in batches]
    assert count_operations(one.model, batches).synops == pytest.approx(sum(parts) / 4)
    with pytest.raises(ValueError, match="no inputs"):
        count_operations(one.model, [])


def test_a_neuron_stepped_by_hand_has_its_potential_once():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(3, 5), neuron.LIFNode()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.lif(self.fc(x)) for _ in range(4)]).mean(0)

    net = Loop()
    rows, found = counted(net, torch.rand(2, 3))
    assert rows["lif"].membrane_bytes == 5 * 4 == membrane_bytes(net, (torch.rand(2, 3),))
    assert found.state_bytes == 4 * 2 * 20
    reset(net)


def test_every_layer_of_a_model_is_counted():
    one = lively("sdt_v2")
    assert isinstance(one.model, SpikingViT)
    rows, _ = counted(one.model, one.x)
    kinds = nn.Conv1d | nn.Conv2d | nn.Linear
    layers = {name for name, module in one.model.named_modules() if isinstance(module, kinds)}
    assert layers == {name for name, module in rows.items() if module.kind == "layer"}
