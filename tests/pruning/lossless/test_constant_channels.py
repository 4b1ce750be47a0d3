"""Which channels go: silent ones everywhere, constant ones where a reader can take them up."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from primesvt.channels import remove_channels, trace
from primesvt.pruning.lossless import remove_constant_channels, remove_unused

from .conftest import Chain, Padded, answer, built, force, gone, images, slim

FC1 = "blocks.block4_0.mlp.fc1"


def always(model: nn.Module, layer: str, x: torch.Tensor, value: float) -> list[int]:
    """Channels that enter a layer with one value only, seen by a hook of the test's own."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _m, args, _out: seen.append(args[0].transpose(0, 1).flatten(1))
    )
    answer(model, x)
    handle.remove()
    return (torch.cat(seen, 1) == value).all(1).nonzero().flatten().tolist()


def test_silent_and_constant_channels_of_a_trained_network(trained, pictures):
    trained.double()
    force(trained.blocks.block4_0.mlp.fc1.bn, [3, 7])
    force(trained.blocks.block4_0.mlp.fc1.bn, [11], fires=True)
    x = pictures
    silent = always(trained, f"{FC1[:-3]}fc2.conv", x, 0.0)
    assert {3, 7} <= set(silent) and 11 not in silent
    lean = slim(trained, x, names=[FC1])
    assert gone(lean, FC1) == [sorted([*silent, 11])]
    (removed,) = lean.account.channels
    assert (removed.silent, removed.constant) == (len(silent), 1)
    assert removed.seen(40) == "silent or constant on 40 inputs"
    torch.testing.assert_close(answer(lean.model, x), answer(trained, x), rtol=1e-9, atol=1e-9)
    # The constant channel mattered: without its share in the bias the answers are others.
    careless = copy.deepcopy(trained)
    remove_channels(careless, trace(careless, x[:2]), {FC1: lean.kept(FC1)})
    assert not torch.allclose(answer(careless, x), answer(trained, x), rtol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_goes_into_the_bias_or_into_the_norm_behind(bias):
    net, x = built(Chain, bias=bias), images()
    force(net.norm1, [2, 5], fires=True)
    force(net.norm1, [6])
    lean = slim(net, x, names=["conv1"])
    assert gone(lean, "conv1") == [[2, 5, 6]]
    torch.testing.assert_close(answer(lean.model, x), answer(net, x), rtol=1e-12, atol=1e-12)
    shift = net.conv2.weight[:, [2, 5], 0, 0].sum(1)
    if bias:
        torch.testing.assert_close(lean.model.conv2.bias, net.conv2.bias + shift)
        assert torch.equal(lean.model.norm2.running_mean, net.norm2.running_mean)
    else:
        torch.testing.assert_close(
            lean.model.norm2.running_mean, net.norm2.running_mean - shift.detach()
        )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Chain, {"kernel": 3, "padding": 1, "bias": True}),
        (Chain, {"kernel": 3, "bias": True}),
        (Chain, {"padding": 1, "bias": True}),
        (Padded, {}),
    ],
)
def test_where_a_border_sees_zeros_only_silent_channels_go(kind, options):
    net, x = built(kind, **options), images()
    force(net.norm1, [2, 5], fires=True)
    force(net.norm1, [6])
    lean = slim(net, x, names=["conv1"])
    assert gone(lean, "conv1") == [[6]]
    torch.testing.assert_close(answer(lean.model, x), answer(net, x), rtol=1e-12, atol=1e-12)


class Branched(Chain):
    """The layer that reads is read by something else than its norm."""

    def forward(self, x):
        x = self.lif1(self.norm1(self.conv1(x)))
        y = self.conv2(x)
        return self.fc((self.lif2(self.norm2(y)) + self.lif2(y)).flatten(2).mean(-1))


class Shared(Chain):
    """Two layers feed one norm."""

    def __init__(self):
        super().__init__()
        self.conv3 = nn.Conv2d(8, 6, 1, bias=False)

    def forward(self, x):
        spikes = self.lif1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(spikes)) + self.norm2(self.conv3(spikes))
        return self.fc(self.lif2(y).flatten(2).mean(-1))


@pytest.mark.parametrize("kind", [Branched, Shared])
def test_a_norm_takes_up_nothing_where_it_is_not_alone_with_its_layer(kind):
    net, x = built(kind), images()
    force(net.norm1, [2], fires=True)
    force(net.norm1, [6])
    assert gone(slim(net, x, names=["conv1"]), "conv1") == [[6]]


def test_the_same_number_goes_at_every_head(trained, pictures):
    trained.double()
    v = trained.blocks.block4_0.attn.v.bn
    force(v, [0, 4, 9])  # three of head 0
    force(v, [11, 13])
    force(v, [20, 21, 22, 23, 24, 25])
    force(v, [30, 39])
    x, name = pictures, "blocks.block4_0.attn.v"
    lean = slim(trained, x, names=[name])
    taken = gone(lean, name)
    assert {len(row) for row in taken} == {2}
    silent = always(trained, "blocks.block4_0.attn.proj.inner", x, 0.0)
    by_head = [[c - 10 * head for c in silent if c // 10 == head] for head in range(4)]
    assert min(map(len, by_head)) == 2
    assert taken == [row[:2] for row in by_head]
    assert lean.account.channels[0].channels == 2
    assert lean.account.channels[0].silent == 8
    torch.testing.assert_close(answer(lean.model, x), answer(trained, x), rtol=1e-9, atol=1e-9)


def test_products_are_left_alone(trained, pictures):
    trained.double()
    attn = trained.blocks.block4_0.attn
    for norm in (attn.q.bn, attn.k.bn):
        force(norm, [0, 10, 20, 30])
    lean = slim(trained, pictures[:12])
    assert "blocks.block4_0.attn.q+k" not in {each.group for each in lean.account.channels}
    assert lean.graph["blocks.block4_0.attn.q+k"].size == 10


def test_one_channel_stays():
    net, x = built(Chain), images()
    force(net.norm1, range(8))
    lean = slim(net, x, names=["conv1"])
    assert gone(lean, "conv1") == [list(range(7))]
    torch.testing.assert_close(answer(lean.model, x), answer(net, x), rtol=1e-12, atol=1e-12)


def lit() -> nn.Module:
    """Channel 1 and channel 6 fire on bright images only."""
    net = built(Chain, brightness=0.3)
    with torch.no_grad():
        net.conv1.weight[[1, 6]] = 1.0
        net.norm1.weight[[1, 6]] = 1.0
        net.norm1.bias[[1, 6]] = -3.0
        net.norm1.running_mean[[1, 6]] = 0.0
        net.norm1.running_var[[1, 6]] = 1.0
        net.conv1.bias[[1, 6]] = 0.0
    return net


def test_a_channel_that_fires_on_any_input_stays():
    net, dark, bright = lit(), images() * 0.3, images() * 0.3
    bright[-1] = 1.0
    assert gone(slim(net, dark, names=["conv1"]), "conv1") == [[1, 6]]
    for sources in ((dark, bright), (bright, dark)):
        lean = slim(net, *sources, names=["conv1"])
        assert lean.account.channels == ()
        assert lean.account.inputs == 48
        assert lean.model.state_dict().keys() == net.state_dict().keys()
        for name, value in net.state_dict().items():
            assert torch.equal(lean.model.state_dict()[name], value)


def test_a_channel_that_changes_between_batches_stays():
    """Always 0 in one batch and always 1 in the other: the extremes of all batches count."""
    net = lit()
    with torch.no_grad():
        net.conv1.weight[1] = -1.0
        net.norm1.bias[1] = 3.0
    bright = torch.ones(4, 1, 8, 8, dtype=torch.float64)
    for sources in ((bright, 0 * bright, images() * 0.3), (images() * 0.3, bright, 0 * bright)):
        taken = gone(slim(net, *sources, names=["conv1"]), "conv1")[0]
        assert 1 not in taken
    assert 1 in gone(slim(net, 0 * bright, names=["conv1"]), "conv1")[0]


def test_a_channel_without_which_a_prediction_changes_comes_back():
    net = lit()
    force(net.norm2, [3])
    with torch.no_grad():
        net.conv2.weight[:, [1, 6]] = 5.0
        net.fc.weight.mul_(20)
    dark, bright = images(20) * 0.3, torch.ones(3, 1, 8, 8, dtype=torch.float64)
    lean = slim(net, dark, check=torch.cat([dark, bright]))
    assert lean.account.returned == ("conv1",)
    assert [each.group for each in lean.account.channels] == ["conv2"]
    assert gone(lean, "conv2") == [[3]]
    assert lean.graph["conv1"].size == 8
    assert any("conv1" in note and "Kept" in note for note in lean.account.notes)
    assert torch.equal(answer(lean.model, bright).argmax(1), answer(net, bright).argmax(1))


def test_outputs_that_are_no_logits_must_stay_close():
    class Maps(Chain):
        def forward(self, x):
            x = self.lif1(self.norm1(self.conv1(x)))
            return {"map": self.lif2(self.norm2(self.conv2(x))).mean((-1, -2), keepdim=True)}

    net = lit()
    maps = built(Maps)
    maps.load_state_dict(net.state_dict())
    dark, bright = images(9) * 0.3, torch.ones(2, 1, 8, 8, dtype=torch.float64)
    assert slim(maps, dark, names=["conv1"]).account.channels
    with torch.no_grad():
        maps.conv2.weight[:, [1, 6]] = 5.0
    assert slim(maps, dark, check=bright, names=["conv1"]).account.returned == ("conv1",)


def test_without_inputs_no_channel_goes():
    net = built(Chain)
    force(net.norm1, [2])
    stripped = remove_unused(net)
    graph = trace(stripped.model, images(2))
    lean = remove_constant_channels(net, stripped, graph, graph.prunable(), [])
    assert lean.account.channels == () and lean.account.parameters == 0
    assert lean.account.notes == ()
