"""The groups that a trace finds, against the tables written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels, trace, verify
from primesvt.models import create_model, model_entry

from ..channels.firing import excite
from .case import described
from .cases import CASES
from .drawn import NAMES, SEEDS, build, examples, inputs

families = pytest.mark.parametrize("case", CASES, ids=NAMES)
SHARES = [
    pytest.param(case, name, least, id=name)
    for case in CASES
    for name, least in case.shares.items()
]


def summary(graph: ChannelGraph) -> dict[str, Any]:
    return {g.name: (described(graph, g), g.status, g.reason) for g in graph}


def check_table(case: Any, model: Any, graph: ChannelGraph) -> None:
    """Nothing over-tied, nothing missing, nothing bound without its reason."""
    config = model.config
    free = {g.name: described(graph, g) for g in graph if g.status == "free" and g.kind != "heads"}
    assert free == case.table(model, config)
    assert sum(g.kind == "heads" for g in graph) == case.heads(config)
    assert {g.name.split(".")[0] for g in graph if g.status == "protected"} == {"head"}
    reasons = {g.name: g.reason for g in graph if g.status == "frozen"}
    expected = case.frozen(model, config)
    assert reasons.keys() == expected.keys()
    assert all(part in reasons[name] for name, part in expected.items()), reasons
    assert expected or graph.notes == ()


@families
@examples(4)  # the two tests below look at tables too
@given(data=st.data(), seed=SEEDS)
def test_the_groups_are_those_of_the_table(case: Any, data: st.DataObject, seed: int) -> None:
    config = data.draw(case.configs())
    model = build(config, seed)
    check_table(case, model, trace(model, inputs(case, config)))


@families
@examples(2)
@given(data=st.data(), seed=SEEDS)
def test_the_check_of_a_graph_finds_nothing(case: Any, data: st.DataObject, seed: int) -> None:
    config = data.draw(case.configs())
    model, x = build(config, seed).double(), inputs(case, config).double()
    assume(excite(model, x, seed))
    graph = trace(model, x)
    check_table(case, model, graph)
    assert verify(model, graph) == []


@families
@examples(3)
@given(data=st.data(), seed=SEEDS)
def test_groups_do_not_depend_on_coincidences(case: Any, data: st.DataObject, seed: int) -> None:
    """One channel per head, then other numbers of images, time steps, rows and columns."""
    config = data.draw(case.configs())
    model = build(config, seed)
    graph = trace(model, inputs(case, config))
    check_table(case, model, graph)
    heads = {
        g.name: np.tile(data.draw(st.integers(0, g.size - 1)), (g.positions, 1))
        for g in graph.prunable()
        if (g.fronts and not in_conv_groups(g)) or g.name.endswith((".q+k", ".v"))
    }
    small = remove_channels(model, graph, heads)
    for _ in range(3):
        batch, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        frame = (config.in_channels, *data.draw(case.sizes(config)))
        events = data.draw(st.booleans())
        x = torch.randn(batch, steps, *frame) if events else torch.randn(batch, *frame)
        model.time_steps = steps
        found, wanted = summary(trace(model, x)), summary(small)
        # One head of one channel: nothing is left to cut or to tell.
        assert several(found) == several(wanted), tuple(x.shape)


def in_conv_groups(group: ChannelGroup) -> bool:
    """A convolution in groups writes what it reads; at one channel each it becomes depthwise."""
    return bool({m.module for m in group.producers} & {m.module for m in group.readers})


def several(groups: dict[str, Any]) -> dict[str, Any]:
    """Groups of at least two channels, over all heads."""
    return {
        name: entry
        for name, entry in groups.items()
        if entry[0].size * int(np.prod(entry[0].fronts)) > 1
    }


@pytest.mark.parametrize(("case", "name", "least"), SHARES)
def test_most_parameters_are_in_reach_without_streams(case: Any, name: str, least: float) -> None:
    data = model_entry(name).data
    with torch.device("meta"):
        model = create_model(name, time_steps=1)
        x = torch.empty(1, *([1] if data.events else []), *data.input_size)
    graph = trace(model, x)
    assert least <= graph.touched() / sum(p.numel() for p in model.parameters()) <= 1
    check_table(case, model, graph)
