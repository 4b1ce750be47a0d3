"""Code for older SpikingJelly runs, with the values of the packages that it was written for.

``old_spikingjelly.json`` holds what neurons of spikingjelly 0.0.0.0.12 and 0.0.0.0.14 did, as
recorded from their wheels; its note says how.
"""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import spikingjelly
import torch
from spikingjelly import activation_based
from spikingjelly.activation_based import neuron as version_2
from torch import Tensor, nn

import primesvt
from primesvt import compat
from primesvt.exporting.plain_neurons import plain
from primesvt.models.neurons import neurons

RECORD = json.loads(Path(__file__).with_name("old_spikingjelly.json").read_text())
INPUT = torch.tensor(RECORD["input"]["values"]).view(RECORD["input"]["shape"])
OLD_HOME = {"0.0.0.0.12": "clock_driven", "0.0.0.0.14": "activation_based"}


def old(package="clock_driven"):
    """The modules that old code finds."""
    with compat.old_spikingjelly():
        parts = ("neuron", "surrogate", "functional", "layer")
        found = {n: importlib.import_module(f"spikingjelly.{package}.{n}") for n in parts}
    return SimpleNamespace(**found)


def recorded(row):
    modules = old(OLD_HOME[row["version"]])
    settings = dict(row["settings"])
    if "gradient" in settings:
        settings["surrogate_function"] = getattr(modules.surrogate, settings.pop("gradient"))()
    return getattr(modules.neuron, row["kind"])(backend="cupy", **settings), modules


def bits(spikes):
    return spikes.int().flatten().tolist()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "row", RECORD["rows"], ids=lambda row: f"{row['version']} {row['kind']} {row['settings']}"
)
def test_neurons_do_what_they_did(row, gradients):
    layer, modules = recorded(row)
    x = INPUT.clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        spikes = layer(x)
        if gradients:
            (spikes * torch.arange(spikes.numel()).view_as(spikes)).sum().backward()
            expected = torch.tensor(row["gradient"])
            torch.testing.assert_close(x.grad.flatten(), expected, rtol=1e-5, atol=1e-5)
        assert bits(spikes) == row["spikes"]
        assert bits(layer(INPUT)) == row["then"]  # goes on from the potentials
        assert layer.v.flatten().tolist() == row["v"]
        modules.functional.reset_net(layer)
        assert bits(layer(INPUT)) == row["spikes"]
    assert sorted(layer.state_dict()) == row["state"]
    if gradients and row["w_gradient"] is not None and hasattr(layer, "w"):
        assert layer.w.grad.item() == pytest.approx(row["w_gradient"], rel=1e-5)


def test_one_step_after_the_other_is_the_same():
    for row in RECORD["rows"]:
        layer, _ = recorded(row)
        layer.step_mode = "s"
        assert bits(torch.stack([layer(x) for x in INPUT])) == row["spikes"], row


class TestNames:
    def test_all_are_gone_afterwards(self):
        before = dict(sys.modules)
        homes = vars(spikingjelly), vars(activation_based)
        attributes = [dict(home) for home in homes]
        with pytest.raises(KeyError), compat.old_spikingjelly():
            importlib.import_module("spikingjelly.clock_driven.layer")
            assert version_2.LIFNode is not activation_based.neuron.LIFNode
            with compat.old_spikingjelly():
                pass
            assert "spikingjelly.clock_driven" in sys.modules
            raise KeyError
        assert before == {k: v for k, v in sys.modules.items() if k in before}
        assert not [name for name in sys.modules if "clock_driven" in name]
        assert attributes == [dict(home) for home in homes]
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("spikingjelly.clock_driven")

    def test_install_stays(self):
        with compat.old_spikingjelly():  # which takes away what is installed inside of it
            compat.install()
            compat.install()
            with compat.old_spikingjelly():
                pass
            assert sys.modules["spikingjelly.clock_driven"].neuron is old().neuron

    def test_every_way_to_import(self):
        names: dict = {}
        with compat.old_spikingjelly():
            exec(
                "import spikingjelly.clock_driven.neuron as a\n"
                "from spikingjelly.clock_driven.neuron import *\n"
                "from spikingjelly.clock_driven import base, encoding, functional, layer, neuron\n"
                "from spikingjelly.clock_driven.layer import SeqToANNContainer, MultiStepDropout\n"
                "from spikingjelly.activation_based import functional as f, neuron as b, layer\n"
                "from spikingjelly.activation_based.functional.net_config import detach_net\n",
                names,
            )
        assert names["a"].MultiStepLIFNode is names["MultiStepLIFNode"] is compat.MultiStepLIFNode
        assert names["b"].LIFNode is names["LIFNode"] and issubclass(
            compat.LIFNode, names["b"].BaseNode
        )
        assert names["b"].PSN is version_2.PSN
        assert names["f"].seq_to_ann_forward is names["functional"].seq_to_ann_forward

    def test_what_is_missing_is_said(self):
        with compat.old_spikingjelly():
            from spikingjelly.clock_driven import functional

            with pytest.raises(ImportError, match="MultiStepEIFNode"):
                from spikingjelly.clock_driven.neuron import MultiStepEIFNode  # noqa: F401
            with pytest.raises(ModuleNotFoundError, match=r"clock_driven\.ann2snn"):
                importlib.import_module("spikingjelly.clock_driven.ann2snn")
        with pytest.raises(
            AttributeError, match="'fuse_convbn2d' is neither in SpikingJelly 2 nor"
        ):
            functional.fuse_convbn2d  # noqa: B018

    @pytest.mark.parametrize("kind", ["LIFNode", "MultiStepIFNode", "ParametricLIFNode", "EIFNode"])
    def test_an_unknown_backend_is_said(self, kind):
        made = getattr(old().neuron, kind)
        assert made(backend="torch").backend == "torch"
        with pytest.raises(
            ValueError, match="backend is 'lava', not one of 'torch', 'cupy'"
        ) as told:
            made(backend="lava")
        assert "\n" not in str(told.value)

    def test_backends_are_set(self):
        functional = old("activation_based").functional
        net = nn.Sequential(compat.LIFNode(), nn.Linear(1, 1), compat.IFNode(backend="cupy"))
        functional.set_backend(net, "cupy", compat.LIFNode)
        assert [getattr(m, "backend", None) for m in net] == ["cupy", None, "cupy"]
        with pytest.raises(ValueError, match="backend is 'numpy'"):
            functional.set_backend(net, "numpy")


class TestOwnClasses:
    """Classes that users derive from the old ones."""

    class Halved(compat.LIFNode):
        def neuronal_charge(self, x: Tensor) -> None:
            super().neuronal_charge(x / 2)

    class Quiet(compat.MultiStepLIFNode):
        def neuronal_fire(self) -> Tensor:
            return super().neuronal_fire() * 0

    class Settled(compat.LIFNode):
        def __init__(self):
            super().__init__(tau=2.0, detach_reset=True, step_mode="m", backend="cupy")

    @pytest.mark.parametrize("gradients", [True, False])
    def test_their_steps_are_taken(self, gradients):
        with torch.set_grad_enabled(gradients):
            expected = compat.MultiStepLIFNode()(INPUT / 2)
            halved = self.Halved(step_mode="m")
            assert bits(halved(INPUT)) == bits(expected) != bits(compat.MultiStepLIFNode()(INPUT))
            halved.step_mode = "s"
            halved.reset()
            assert bits(torch.stack([halved(x) for x in INPUT])) == bits(expected)
            assert not self.Quiet(v_threshold=0.1)(INPUT).any()

    def test_potentials_of_all_steps_are_kept_on_request(self):
        layer = self.Halved(step_mode="m", store_v_seq=True)
        layer(INPUT)
        assert layer.v_seq.shape == INPUT.shape and torch.equal(layer.v_seq[-1], layer.v)

    def test_steps_that_would_be_ignored_are_an_error(self):
        with pytest.raises(TypeError, match="writes neuronal_charge, which SpikingJelly 2 calls"):

            class Mine(compat.QIFNode):
                def neuronal_charge(self, x):
                    pass

    def test_a_neuron_without_steps_says_so(self):
        with pytest.raises(NotImplementedError, match="BaseNode has no neuronal_charge"):
            compat.BaseNode()(torch.ones(1))

    def test_a_gradient_of_ones_own(self):
        class Own(old().surrogate.SurrogateFunctionBase):
            def __init__(self, alpha=3.0, spiking=True):
                super().__init__(alpha, spiking)

            @staticmethod
            def spiking_function(x, slope):
                return (x >= 0).to(x) + (x * slope - (x * slope).detach())

            @staticmethod
            def primitive_function(x, slope):
                return (x * slope).sigmoid()

        x = torch.tensor([[1.0], [3.0]], requires_grad=True)
        layer = compat.MultiStepIFNode(surrogate_function=Own(), detach_reset=True)
        spikes = layer(x)
        spikes.sum().backward()
        assert bits(spikes) == [1, 1] and x.grad.flatten().tolist() == [3.0, 3.0]
        layer.surrogate_function.set_spiking_mode(False)
        layer.reset()
        assert 0.5 <= layer(torch.tensor([[1.0]])).item() < 1

    def test_which_are_known_to_the_exporter(self):
        kinds = [self.Settled(), compat.MultiStepLIFNode(), compat.MultiStepParametricLIFNode()]
        for layer in [*kinds, compat.MultiStepIFNode(v_reset=None)]:
            with torch.no_grad():
                assert torch.equal(plain(layer)(INPUT), layer(INPUT))
        for layer in (self.Halved(), self.Quiet(), compat.LIFNode(decay_input=False, tau=3.0)):
            with pytest.raises(ValueError, match="cannot be written as plain operators"):
                plain(layer)


class Attention(nn.Module):
    """Written as code for 0.0.0.0.12 is: ``modules`` are those of the old package."""

    def __init__(self, modules, width=8, heads=2):
        super().__init__()
        self.heads = heads
        node = modules.neuron.MultiStepLIFNode
        settings = {"tau": 2.0, "detach_reset": True, "backend": "cupy"}
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.q_lif, self.k_lif, self.v_lif = (node(v_threshold=0.1, **settings) for _ in range(3))
        self.attn_lif = modules.neuron.MultiStepParametricLIFNode(v_threshold=0.05, backend="cupy")
        self.drop = modules.layer.MultiStepDropout(0.5)
        self.proj = modules.layer.SeqToANNContainer(nn.Linear(width, 3))

    def forward(self, x):
        parts = []
        for linear, lif in ((self.q, self.q_lif), (self.k, self.k_lif), (self.v, self.v_lif)):
            steps, batch, tokens, _ = x.shape
            spikes = lif(linear(x))
            parts.append(spikes.reshape(steps, batch, tokens, self.heads, -1).transpose(2, 3))
        q, k, v = parts
        mixed = self.attn_lif((q @ k.transpose(-2, -1) @ v).transpose(2, 3).flatten(3))
        return self.proj(self.drop(mixed)).mean((0, 2))


class TestNetworks:
    @pytest.fixture
    def network(self):
        torch.manual_seed(0)
        return Attention(old()).eval()

    def test_it_is_pruned_as_any_other(self, network):
        x = torch.rand(2, 3, 5, 8) * 2
        assert len(list(neurons(network))) == 5  # the dropout keeps its mask, and is one to it
        with torch.no_grad():
            first = network(x)
            primesvt.reset(network)
            firing = []
            lif = network.attn_lif
            hook = lif.register_forward_hook(lambda *a: firing.append(a[2].mean().item()))
            assert torch.equal(first, network(x)) and 0.02 < firing[0] < 0.98
            hook.remove()
        primesvt.reset(network)
        graph = primesvt.trace(network, x)
        assert [g.name for g in graph.prunable()] == ["q+k", "v"]
        assert primesvt.verify(network, graph) == []
        primesvt.remove_channels(network, graph, {"q+k": np.array([[0, 2], [1, 3]])})
        assert network(x).shape == first.shape and network.q.weight.shape == (4, 8)

    def test_its_checkpoint_loads_and_it_can_be_copied_and_pickled(self, network):
        state = network.state_dict()
        assert sorted(k for k in state if "lif" in k) == ["attn_lif.w"]
        state["attn_lif.w"] = torch.tensor(0.7)
        other = Attention(old()).eval()
        other.load_state_dict(state)
        x = torch.rand(2, 3, 5, 8)
        for made in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
            assert made.attn_lif.w.item() == pytest.approx(0.7)
            with torch.no_grad():
                expected, found = other(x), made(x)
            primesvt.reset(other)
            assert torch.equal(expected, found)

    def test_it_trains(self, network):
        network.train()
        network(torch.rand(2, 3, 5, 8)).sum().backward()
        mask = network.drop.mask
        assert mask.shape == (3, 5, 8) and {0.0, 2.0} == set(mask.unique().tolist())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())

    def test_a_neuron_put_in_later_is_reset_too(self):
        functional = old().functional
        net = nn.Sequential(compat.MultiStepIFNode())
        functional.reset_net(net)
        net.append(compat.MultiStepIFNode())
        net[1](torch.full((1, 1), 0.5))
        functional.reset_net(net)
        assert net[1].v == 0.0
