"""Who reads a group, which neurons are its own: compared with the families' tables by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from primesvt.calibration import readers_of, trace_modules
from primesvt.channels import trace

from ..channels.firing import neurons
from ..families.cases import CASES
from ..families.drawn import NAMES, SEEDS, build, examples, inputs
from ..lively import FAMILIES, free, lively

families = pytest.mark.parametrize("case", CASES, ids=NAMES)


@families
@examples(4)
@given(data=st.data(), seed=SEEDS)
def test_readers_are_those_of_the_table(case: Any, data: st.DataObject, seed: int) -> None:
    config = data.draw(case.configs())
    model = build(config, seed)
    graph = trace(model, inputs(case, config))
    for name, expected in case.table(model, config).items():
        found = readers_of(model, graph, graph[name])
        assert {reader.module for reader in found} == expected.readers, name
        assert all(reader.tensor == f"{reader.module}.weight" for reader in found)


@families
@examples(3)
@given(data=st.data(), seed=SEEDS)
def test_ids_say_whose_channel_an_input_is(case: Any, data: st.DataObject, seed: int) -> None:
    """Blinding a reader to a channel by its ids equals blinding it by the hand-written mask."""
    config = data.draw(case.configs())
    model = build(config, seed)
    graph = trace(model, inputs(case, config))
    for group in free(graph):
        for reader in readers_of(model, graph, group):
            layer = reader.layer(model)
            assert len(reader.ids) == layer.weight.shape[1] * reader.groups
            present = reader.ids[reader.ids >= 0]
            counts = {int(i): int((present == i).sum()) for i in set(present.tolist())}
            assert set(counts) == set(range(group.positions * group.size)), group.name
            assert len(set(counts.values())) == 1


@families
@examples(4)
@given(data=st.data(), seed=SEEDS)
def test_neurons_of_a_group_are_those_that_its_channels_enter(
    case: Any, data: st.DataObject, seed: int
) -> None:
    config = data.draw(case.configs())
    model, x = build(config, seed), inputs(case, config)
    graph = trace(model, x)
    wiring = trace_modules(model, (x,))
    widths = _widths(model, x)
    found = 0
    for group in free(graph):
        for name in wiring.neurons_of(group):
            axis = wiring.axes[name]
            assert widths[name][axis] == group.positions * group.size, (group.name, name)
            entered = case.entering(model, name)
            assert entered is None or entered[0] == group.name
            found += 1
    assume(found)


def _widths(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in neurons(model).items():

        def hook(_m: Any, args: Any, _out: Any, name: str = name) -> None:
            shapes[name] = tuple(args[0].shape)

        handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return shapes


BY_HAND = {
    "sdt_v2": {
        "blocks.block4_0.mlp.fc1": ["lif2"],
        "blocks.block4_0.attn.q+k": ["q_lif", "k_lif"],
        "blocks.block4_0.attn.v": ["v_lif"],
        "blocks.block4_0.attn.q:inner": [],  # a linear chain: no neuron is its own
        "blocks.conv1b.conv1": ["lif2"],
        "blocks.conv1b.sep.pw1": ["lif2"],
    },
    "qkformer": {"blocks.block1_0.attn.q": ["q_lif"], "blocks.block1_0.attn.k": ["k_lif"]},
    "spikformer": {"blocks.block0.attn.q+k": ["q_lif", "k_lif"]},
    "spikingformer": {"blocks.stem.conv0": ["lif1"]},
}


@pytest.mark.parametrize("family", BY_HAND)
def test_neurons_by_hand(family: str) -> None:
    one = lively(family)
    for name, expected in BY_HAND[family].items():
        found = one.activity.neurons(one.graph[name])
        assert [path.rpartition(".")[2] for path in found] == expected, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_takes_up_constants_behind_every_reader_but_the_classifier(family: str) -> None:
    one = lively(family)
    readers = {r.module for found in one.activity.readers.values() for r in found}
    without = {name for name in readers if not one.activity.wiring.norm_after(name)}
    assert without == {"head.fc"}


class Branching(nn.Module):
    """A layer whose output is read by a norm and, past it, by another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.make(x)
        return self.left(self.norm(made)) + self.right(made)


def test_a_second_reader_beside_the_norm_is_seen() -> None:
    net = Branching().train()
    wiring = trace_modules(net, (torch.randn(4, 3),))
    assert wiring.feeds["make"] == ("norm", "right")
    assert not wiring.norm_after("make")
    assert wiring.norms_from(wiring.order.index("make")) == ("norm",)
    assert wiring.norms_from(wiring.order.index("norm")) == ()
    assert net.training and int(net.norm.num_batches_tracked) == 0
