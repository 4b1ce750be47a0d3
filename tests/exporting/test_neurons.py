"""Neurons written out give the spikes of SpikingJelly's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from primesvt.exporting.plain_neurons import PlainNeuron, plain
from primesvt.models import IntegerNeuron, lif, plif

KINDS = {
    "LIF": lambda **s: neuron.LIFNode(tau=1.7, **s),
    "LIF, input not decayed": lambda **s: neuron.LIFNode(tau=1.5, decay_input=False, **s),
    "PLIF": lambda **s: neuron.ParametricLIFNode(init_tau=1.7, **s),
    "PLIF, input not decayed": lambda **s: neuron.ParametricLIFNode(decay_input=False, **s),
    "IF": lambda **s: neuron.IFNode(**s),
}
RESETS = (0.0, None, -0.3)


def currents(steps=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, 3, 500, generator=generator) * 1.5 + 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("threshold", [1.0, 0.3])
def test_all_steps_at_once(kind, reset, threshold):
    layer = KINDS[kind](v_reset=reset, v_threshold=threshold, step_mode="m")
    with torch.no_grad():
        spikes = layer(currents())
        assert torch.equal(plain(layer)(currents()), spikes)
    assert 0.02 < float(spikes.mean()) < 0.98


@pytest.mark.parametrize("reset", RESETS)
def test_a_potential_at_the_threshold_fires(reset):
    layer = neuron.LIFNode(tau=2.0, v_reset=reset, v_threshold=1.0, step_mode="m")
    ties = torch.tensor([[2.0 - (reset or 0.0)], [1.0], [0.5], [0.25]])
    with torch.no_grad():
        assert torch.equal(plain(layer)(ties), layer(ties))
    assert plain(lif())(torch.tensor([[2.0]])).item() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", RESETS)
def test_step_by_step_potentials_are_rounded_alike(kind, reset):
    layer = KINDS[kind](v_reset=reset)
    made = plain(layer)
    for _ in range(2):
        with torch.no_grad():
            for current in currents(4):
                assert torch.equal(made(current), layer(current))
                assert torch.equal(made._v, layer.v)
        layer.reset()
        made.rest()


@pytest.mark.parametrize("make", [lif, plif])
def test_our_own_neurons(make):
    layer = make(0.5, tau=1.5)
    with torch.no_grad():
        assert torch.equal(plain(layer)(currents()), layer(currents()))


@pytest.mark.parametrize("rounding", ["even", "up"])
@pytest.mark.parametrize("norm", [None, 1])
def test_integer_neurons(rounding, norm):
    layer = IntegerNeuron(4, norm=norm, rounding=rounding)
    halves = torch.arange(-1, 6, 0.25)
    assert torch.equal(plain(layer)(halves), layer(halves))


def test_one_current_for_all_steps_needs_no_copies():
    current = currents(1)
    assert torch.equal(
        plain(lif())(current.expand(4, -1, -1)), plain(lif())(current.repeat(4, 1, 1))
    )


def test_what_a_neuron_gives_can_be_seen():
    layer = PlainNeuron()
    layer(currents())
    layer.seen = []
    out = layer(currents())
    assert [id(each) for each in layer.seen] == [id(out)]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (neuron.EIFNode(), "a.b is a EIFNode"),
        (neuron.QIFNode(), "LIFNode, ParametricLIFNode, IFNode"),
        (neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=False)), "spiking=True"),
        (torch.nn.ReLU(), "a.b is a ReLU"),
    ],
)
def test_others_are_refused_by_name(layer, words):
    with pytest.raises(ValueError, match=words):
        plain(layer, name="a.b")
