"""L2 norms against loops written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from primesvt.importance import CriterionContext, find_importance, keep
from primesvt.importance.magnitude import l2

BLOCK = "blocks.block4_0"


def test_a_plain_layer(model, graph):
    weight = model.get_parameter(f"{BLOCK}.mlp.fc1.conv.weight")
    expected = weight.flatten(1).double().norm(dim=1)
    scores = l2(CriterionContext(model=model, graph=graph), graph[f"{BLOCK}.mlp.fc1"])
    assert scores.shape == (1, 160)
    np.testing.assert_allclose(scores[0], expected.detach().numpy(), rtol=1e-12)


def test_q_and_k_share_one_score_per_head(model, graph):
    q = model.get_parameter(f"{BLOCK}.attn.q.outer.weight").detach().double()
    k = model.get_parameter(f"{BLOCK}.attn.k.outer.weight").detach().double()
    scores = l2(CriterionContext(model=model, graph=graph), graph[f"{BLOCK}.attn.q+k"])
    assert scores.shape == (4, 10)
    for head in range(4):
        for channel in range(10):
            row = head * 10 + channel
            square = float(q[row].square().sum() + k[row].square().sum())
            assert scores[head, channel] == pytest.approx(square**0.5, rel=1e-12)


def test_tied_stream_producers_are_summed(model, graph):
    group = graph["blocks.down4:stream"]
    makers = [m.tensor for m in group.producers]
    assert len(makers) == 3
    squares = sum(model.get_parameter(t).flatten(1).double().square().sum(1) for t in makers)
    found = l2(CriterionContext(model=model, graph=graph), group)[0]
    np.testing.assert_allclose(found, squares.sqrt().detach().numpy(), rtol=1e-12)


def test_neither_bias_nor_batch_norm_counts(own_net):
    from primesvt.channels import trace

    graph = trace(own_net, torch.rand(2, 1, 8, 8))
    evidence = CriterionContext(model=own_net, graph=graph)
    before = l2(evidence, graph["conv"])
    with torch.no_grad():
        own_net.conv.bias.mul_(100)
        own_net.norm.weight.mul_(100)
    np.testing.assert_array_equal(l2(evidence, graph["conv"]), before)


def test_keep_is_stable_and_ascending():
    scores = np.array([[1.0, 3.0, 3.0, 2.0], [4.0, 1.0, 1.0, 1.0]])
    assert keep(scores, 2).tolist() == [[1, 2], [0, 1]]


def test_unknown_importance():
    with pytest.raises(ValueError, match="unknown importance 'l3'; known: obs"):
        find_importance("l3")
