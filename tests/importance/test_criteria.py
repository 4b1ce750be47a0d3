"""Each criterion against a slow loop written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from primesvt.importance import CriterionContext, find_importance
from primesvt.models import create_model, reset

from ..channels.firing import excite, membrane, neurons, state_bytes
from ..lively import Lively, watched

BLOCK = "blocks.block3_0"
FC1, QK = f"{BLOCK}.mlp.fc1", f"{BLOCK}.attn.q+k"
INNER = f"{BLOCK}.attn.q:inner"


@pytest.fixture(scope="module")
def small() -> Lively:
    torch.manual_seed(0)
    model = create_model("sdt_v2_digits", embed_dims=(8, 8, 12, 12), num_heads=3).eval()
    x = torch.rand(6, 1, 8, 8)
    assert excite(model, x, 0, low=0.001, high=0.99)
    return watched(model.eval(), x, batch=4)


@pytest.fixture(scope="module")
def trained() -> Lively:
    """The bundled digits model: the loss of a random one is flat."""
    model = create_model("sdt_v2_digits", pretrained=True).eval()
    return watched(model, torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def entering(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """What enters a module, all samples at once."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, a, _o: found.append(a[0]))
    reset(model)
    with torch.no_grad():
        model(x)
    handle.remove()
    return found[0].double()


def scores(one: Lively, name: str, group: str) -> np.ndarray:
    return find_importance(name)(one.evidence, one.graph[group])


def test_activity_is_variance_times_squared_weights(small: Lively) -> None:
    x = entering(small.model, small.x, f"{BLOCK}.mlp.fc2.conv")
    weight = small.model.get_parameter(f"{BLOCK}.mlp.fc2.conv.weight").detach().double()
    found = scores(small, "activity", FC1)[0]
    for channel in range(x.shape[-2] if x.ndim == 3 else x.shape[1]):
        spikes = x.select(1, channel)
        expected = float(spikes.var(correction=0) * weight[:, channel].square().sum())
        assert found[channel] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_activity_of_q_and_k_is_their_part_of_the_attention_map(small: Lively) -> None:
    q, k = _spikes(small, "q"), _spikes(small, "k")
    found, total = scores(small, "activity", QK), np.zeros((3, 4))
    for head in range(3):
        for channel in range(4):
            for left, right in zip(q, k, strict=True):
                row = head * 4 + channel
                part = torch.outer(left[row], right[row])
                total[head, channel] += float(part.square().sum())
    np.testing.assert_allclose(found, total / len(small.x), rtol=1e-9)


def _spikes(one: Lively, part: str) -> Tensor:
    """``[T * B, C, tokens]``."""
    name = f"{BLOCK}.attn.{part}_lif"
    out: list[Tensor] = []
    handle = one.model.get_submodule(name).register_forward_hook(lambda _m, _a, o: out.append(o))
    reset(one.model)
    with torch.no_grad():
        one.model(one.x)
    handle.remove()
    spikes = out[0].double().flatten(0, 1)
    return spikes.flatten(2)


@pytest.mark.parametrize("group", [FC1, QK])
def test_rates_and_potentials_of_ones_own_neurons(small: Lively, group: str) -> None:
    names = [f"{BLOCK}.mlp.lif2"] if group == FC1 else [f"{BLOCK}.attn.{p}_lif" for p in "qk"]
    rates, potentials = [], []
    for name in names:
        module = neurons(small.model)[name]
        before_reset, spikes = membrane(module, entering(small.model, small.x, name))
        kept = before_reset * (1 - spikes)  # what a time step leaves
        rates.append(spikes.transpose(0, 2).flatten(1).mean(1))
        potentials.append(kept.abs().transpose(0, 2).flatten(1).mean(1))
    shape = (small.graph[group].positions, -1)
    for criterion, values in (("firing_rate", rates), ("membrane", potentials)):
        expected = torch.stack(values).mean(0).reshape(shape).numpy()
        np.testing.assert_allclose(scores(small, criterion, group), expected, rtol=1e-4, atol=1e-6)


def test_a_linear_chain_counts_by_what_its_reader_sees(small: Lively) -> None:
    x = entering(small.model, small.x, f"{BLOCK}.attn.v.outer").transpose(0, 1).flatten(1)
    inner = f"{BLOCK}.attn.v:inner"
    rate, root = scores(small, "firing_rate", inner)[0], scores(small, "membrane", inner)[0]
    np.testing.assert_allclose(rate, x.mean(1).abs().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(root, x.square().mean(1).sqrt().numpy(), rtol=1e-4)


@pytest.mark.parametrize("group", [FC1, INNER, QK])
def test_taylor_is_value_times_gradient_per_sample(trained: Lively, group: str) -> None:
    place = {FC1: "mlp.fc2.conv", INNER: "attn.q.outer", QK: "attn.q_lif"}[group]
    names = [place] if group != QK else [place, "attn.k_lif"]
    total = np.mean([_effects(trained, f"{BLOCK}.{name}") for name in names], axis=0)
    found = scores(trained, "taylor", group)
    shape = (trained.graph[group].positions, -1)
    np.testing.assert_allclose(found, total.reshape(shape), rtol=1e-4, atol=1e-9)
    assert found.max() > 0


def _effects(one: Lively, name: str) -> np.ndarray:
    """Of one sample after another, sums over time steps apart: |sum of value x gradient|."""
    total: np.ndarray | float = 0.0
    module = one.model.get_submodule(name)
    for sample in one.x:
        kept: list[Tensor] = []

        def hook(_m: nn.Module, args: tuple[Tensor, ...], out: Tensor, kept=kept) -> None:
            tensor = out if name.endswith("lif") else args[0]
            tensor.retain_grad()
            kept.append(tensor)

        handle = module.register_forward_hook(hook)
        reset(one.model)
        logits = one.model(sample[None])
        functional.cross_entropy(logits, logits.detach().argmax(1)).backward()
        handle.remove()
        value = kept[0].detach() * kept[0].grad
        value = value.flatten(0, 1) if value.ndim > 4 else value
        steps = value.flatten(2).sum(2) if value.ndim > 2 else value
        total = total + steps.abs().double().sum(0).numpy()
        one.model.zero_grad(set_to_none=True)
    reset(one.model)
    return np.asarray(total)


def test_taylor_of_a_frozen_model(trained: Lively) -> None:
    expected = scores(trained, "taylor", FC1)
    frozen = watched(trained.model.requires_grad_(False), trained.x, batch=4)
    try:
        np.testing.assert_allclose(scores(frozen, "taylor", FC1), expected, rtol=1e-5)
        assert not any(p.requires_grad for p in frozen.model.parameters())
    finally:
        trained.model.requires_grad_(True)


@pytest.mark.parametrize(("group", "makers"), [(FC1, ["mlp.fc1"]), (QK, ["attn.q", "attn.k"])])
def test_folding_changes_the_norm_as_the_norm_scales(
    small: Lively, group: str, makers: list[str]
) -> None:
    total: np.ndarray | float = 0.0
    for maker in makers:
        path = f"{BLOCK}.{maker}"
        conv, norms = ("conv", ["bn"]) if maker == "mlp.fc1" else ("outer", _norms_of(small, path))
        rows = small.model.get_parameter(f"{path}.{conv}.weight").detach().double().flatten(1)
        for norm in (small.model.get_submodule(f"{path}.{name}") for name in norms):
            scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
            rows = rows * scale[:, None]
        total = total + rows.square().sum(1).numpy()
    shape = (small.graph[group].positions, -1)
    expected = np.sqrt(total).reshape(shape)
    np.testing.assert_allclose(scores(small, "l2_folded", group), expected, rtol=1e-9)
    assert not np.allclose(expected, scores(small, "l2", group))


def _norms_of(one: Lively, path: str) -> list[str]:
    """A RepConv closes with two batch norms in a row."""
    return [n for n in ("outer_bn", "bn") if hasattr(one.model.get_submodule(path), n)]


def test_l1_sums_absolute_values_over_tied_layers(small: Lively) -> None:
    parts = [small.model.get_parameter(f"{BLOCK}.attn.{p}.outer.weight").detach() for p in "qk"]
    expected = sum(part.double().abs().flatten(1).sum(1) for part in parts).reshape(3, 4)
    np.testing.assert_allclose(scores(small, "l1", QK), expected.numpy(), rtol=1e-12)


def test_random_depends_on_seed_and_group_alone(small: Lively) -> None:
    before = state_bytes(small.model)
    draw = find_importance("random")
    first, again = (
        CriterionContext(model=small.model, graph=small.graph, seed=seed) for seed in (1, 2)
    )
    group = small.graph[FC1]
    assert (draw(first, group) == draw(first, group)).all()
    assert (draw(first, group) != draw(again, group)).all()
    assert len(set(draw(first, small.graph[QK]).flatten())) == 12
    assert state_bytes(small.model) == before
