"""Recovery around a cut, on networks of every family that spike."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from primesvt.channels import remove_channels
from primesvt.importance import keep
from primesvt.importance.magnitude import random
from primesvt.models import reset
from primesvt.models.shared_prefix import VariantBatch
from primesvt.recovery import BatchNorm, Recovery, Refit, find_recovery

from ..lively import FAMILIES, Lively, lively


def halves(one: Lively, names: list[str]) -> dict[str, np.ndarray]:
    """Half of some groups, drawn."""
    groups = [one.graph[name] for name in names]
    return {g.name: keep(random(one.evidence, g), max(1, g.size // 2)) for g in groups}


def cut(one: Lively, kept: dict[str, np.ndarray], kind: str) -> nn.Module:
    recovery = find_recovery(kind)(activity=one.activity)
    smaller = copy.deepcopy(one.model)
    recovery.before(smaller, kept)
    remove_channels(smaller, one.graph, kept)
    recovery.after(VariantBatch(networks=[smaller]), [kept])
    return smaller


def entering(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """What a reader gives."""
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, o: found.append(o))
    reset(model)
    with torch.no_grad():
        model(x)
    reset(model)
    handle.remove()
    return found[0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_every_group_at_once(family: str) -> None:
    one = lively(family)
    names = [g.name for g in one.graph.prunable()]
    before = [tensor.clone() for tensor in one.model.state_dict().values()]
    for kind in ("none", "bn", "refit"):
        smaller = cut(one, halves(one, names), kind)
        with torch.no_grad():
            logits = smaller(one.x)
        assert logits.isfinite().all()
        assert not any(module.training for module in smaller.modules())
    after = one.model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refit_brings_the_readers_output_nearer(family: str) -> None:
    """In every group cut alone that layers read; the constant part apart, as a norm follows."""
    one, shares = lively(family), []
    for group in one.graph.prunable()[::2]:
        readers = one.activity.readers[group.name]
        kept = halves(one, [group.name])
        for reader in readers[:1]:
            layer = reader.layer(one.model)
            if layer.weight.shape[2:].numel() > 1:
                continue  # there channels are mixed, and nothing is promised
            wanted = entering(one.model, one.x, reader.module)
            errors = []
            for fit in (True, False):
                smaller = copy.deepcopy(one.model)
                if fit:
                    Refit(activity=one.activity).before(smaller, kept)
                remove_channels(smaller, one.graph, kept)
                gap = entering(smaller, one.x, reader.module) - wanted
                axis = 1 if gap.ndim > 2 and not isinstance(layer, nn.Linear) else gap.ndim - 1
                rows = gap.movedim(axis, -1).flatten(0, -2)
                errors.append(float(rows.var(0, correction=0).sum()))
            assert errors[0] <= errors[1] * (1 + 1e-5), (group.name, reader.module)
            shares.append(errors[0] / errors[1] if errors[1] else 1.0)
    assert min(shares) < 0.95


@pytest.mark.parametrize("kind", ["bn", "refit"])
def test_only_norms_behind_the_cut_change(kind: str) -> None:
    one = lively("sdt_v2")
    name = "blocks.block3_0.mlp.fc1"
    smaller = cut(one, halves(one, [name]), kind)
    order = one.activity.wiring.order
    start = order.index("blocks.block3_0.mlp.fc2.conv")
    changed = {
        norm
        for norm in one.activity.wiring.norms
        if norm != "blocks.block3_0.mlp.fc1.bn"
        and not torch.equal(
            smaller.get_submodule(norm).running_var, one.model.get_submodule(norm).running_var
        )
    }
    assert changed
    assert all(order.index(norm) > start for norm in changed)
    assert "blocks.block3_0.mlp.fc2.bn" in changed


TOLD = {
    ("sdt_v2", "blocks.block3_0.mlp.fc1"): (
        "least squares (blocks.block3_0.mlp.fc2.conv), batch norm"
    ),
    ("sdt_v2", "blocks.block3_0.attn.q+k"): "batch norm only",
    ("sdt_v2", "blocks.conv1b.conv1"): ("least squares (blocks.conv1b.conv2.conv), batch norm"),
    ("qkformer", "blocks.block1_0.attn.q"): "batch norm only",
}


@pytest.mark.parametrize(("family", "group"), TOLD)
def test_what_a_plan_says_of_it(family: str, group: str) -> None:
    one = lively(family)
    assert Refit(activity=one.activity).describe(group) == TOLD[family, group]
    assert BatchNorm(activity=one.activity).describe(group) == "batch norm only"
    assert Recovery().describe(group) == "nothing"


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="unknown recovery 'magic'; known: match, refit, bn, none"):
        find_recovery("magic")
    with pytest.raises(ValueError, match="give calibration="):
        BatchNorm()


def test_no_cut_no_change() -> None:
    one = lively("sdt_v2")
    same = cut(one, {}, "refit")
    state = one.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())
