"""Folding a batch norm changes rounding alone; where it would change more, it is not done."""

from __future__ import annotations

import copy

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from primesvt.exporting.batchnorm_folding import ScaleShift, fold_norms
from primesvt.exporting.deploy import deploy
from primesvt.models.attention import RepConv
from primesvt.models.blocks import ConvBN
from primesvt.models.families.spikformer import LinearBN

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def shaken(net):
    """In double precision, with statistics that make norms do something."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return net.double().eval()


def close(found, wanted):
    return torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("net", "shape", "count"),
    [
        (ConvBN(3, 8, 3, bias=True), (2, 2, 3, 6, 5), 1),
        (ConvBN(4, 8, 3, groups=2), (2, 2, 4, 6, 5), 1),
        (ConvBN(3, 8, dims=1), (2, 2, 3, 6, 5), 1),
        (LinearBN(3, 8), (2, 2, 3, 6, 5), 1),
        (RepConv(4, 6), (2, 2, 4, 6, 5), 3),
    ],
)
def test_every_norm_goes_into_the_layer_in_front(net, shape, count):
    net, x = shaken(net), torch.randn(shape, dtype=torch.float64)
    folded = copy.deepcopy(net)
    found = fold_norms(folded, (x,))
    assert (len(found.folded), found.scaled) == (count, ())
    assert not any(isinstance(m, NORMS) for m in folded.modules())
    with torch.no_grad():
        assert close(folded(x), net(x))


def test_a_padded_norm_becomes_padding_of_zeros_in_the_layer_behind():
    net, x = shaken(RepConv(4, 6)), torch.randn(1, 2, 4, 5, 5, dtype=torch.float64)
    fold_norms(net, (x,))
    assert (net.inner.padding, net.depthwise.padding) == ((0, 0), (1, 1))
    assert net.inner.bias is None
    assert isinstance(net.pad, nn.Identity)


def test_a_padded_norm_in_front_of_a_full_convolution_becomes_padding_where_it_was():
    net, x = shaken(RepConv(4, 6)), torch.randn(1, 2, 4, 5, 5, dtype=torch.float64)
    net.depthwise = nn.Conv2d(4, 4, 3, bias=False).double()
    before = net(x)
    fold_norms(net, (x,))
    assert (net.inner.padding, net.depthwise.padding) == ((1, 1), (0, 0))
    assert close(net(x), before)


def test_a_norm_with_nothing_in_front_is_a_scale_and_a_shift():
    net = shaken(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        found = fold_norms(net, (x,))
        assert close(net(x), before)
    assert (found.folded, found.scaled) == ((), ("0",))
    assert isinstance(net[0], ScaleShift)


def test_norms_of_sequences_scale_the_axis_behind_time():
    net = shaken(nn.Sequential(layer.BatchNorm2d(3, step_mode="m"), nn.ReLU()))
    x = torch.randn(4, 2, 3, 5, 5, dtype=torch.float64)
    before = net(x)
    fold_norms(net, (x,))
    assert close(net(x), before)


def test_a_layer_that_two_norms_read_keeps_them():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.a(y) - self.b(y)

    net, x = shaken(Fork()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    before = net(x)
    found = fold_norms(net, (x,))
    assert (found.folded, found.scaled) == ((), ("a", "b"))
    assert close(net(x), before)


def test_without_running_statistics_there_is_nothing_to_fold():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match=r"1 has no running statistics.*track_running_stats=True"):
        fold_norms(net, (torch.zeros(2, 3, 4, 4),))


class Shortcut(nn.Module):
    """Reads a layer a second time, past its norm, where no hook can see it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.lif = neuron.LIFNode(step_mode="m")

    def forward(self, x):
        y = self.conv(x)
        return self.lif((self.bn(y) + 0.3 * y)[None]).mean((0, 3, 4)) + y.mean((2, 3))


def test_folding_that_would_change_the_answer_is_left_out_and_said():
    net = shaken(Shortcut()).float()
    x = torch.randn(2, 3, 4, 4)
    made = deploy(net, x)
    assert made.unfolded
    assert made.norms.scaled == ("bn",)
    assert "something else reads the layers in front" in made.notes()[0]
    with torch.no_grad():
        assert torch.allclose(made.network(x), net(x), atol=1e-6)


def test_the_original_is_left_as_it_is():
    net = shaken(Shortcut()).float()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    deploy(net, torch.randn(2, 3, 4, 4))
    assert list(before) == list(net.state_dict())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
