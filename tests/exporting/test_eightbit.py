"""Weights in eight bits: small errors, smaller files, and only as many as predictions allow."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from primesvt.exporting import onnx as payload
from primesvt.exporting.deploy import deploy
from primesvt.exporting.onnx.int8_weights import (
    fewest,
    quantized,
    rounded_count,
    weight_count,
    with_8bit_weights,
)
from primesvt.exporting.onnx.model import only_logits, onnx_model, weight_bytes
from primesvt.exporting.runtime import model_runner, onnx_runner
from primesvt.exporting.torch_export import export_program

from .conftest import tiny


@functools.cache
def network():
    return tiny()


def images(count=64):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@functools.cache
def drawn():
    return export_program(deploy(network(), images(2)), images(2), watch=True)


@functools.cache
def watched():
    return onnx_model(drawn(), input_name="images", about={})


@functools.cache
def exported():
    return only_logits(watched())


def stored(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_errors_are_at_most_half_a_step_of_their_channel(axis):
    weight = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    weight.swapaxes(0, axis)[2] *= 100
    whole, scale = quantized(weight, axis)
    assert whole.dtype == np.int8
    assert scale.dtype == np.float32
    steps = scale.reshape([-1 if a == axis % 3 else 1 for a in range(3)])
    assert (np.abs(whole * steps - weight) <= steps * 0.5001).all()
    assert np.abs(whole).max(axis=tuple(a for a in range(3) if a != axis % 3)).tolist() == [
        127
    ] * len(scale)


def test_a_silent_channel_stays_silent():
    whole, scale = quantized(np.zeros((2, 3), np.float32), 0)
    assert not whole.any()
    assert np.isfinite(scale).all()


def test_weights_become_whole_numbers_and_nothing_else_changes():
    rounded = with_8bit_weights(exported())
    onnx.checker.check_model(rounded, full_check=True)
    before, after = stored(exported()), stored(rounded)
    for name in set(before) - set(after):
        assert after[f"{name}:q"].shape == before[name].shape
        assert after[f"{name}:q"].dtype == np.int8
    assert all(np.array_equal(before[name], after[name]) for name in set(before) & set(after))
    assert rounded_count(rounded) == len(set(before) - set(after)) == 11
    assert weight_bytes(rounded) < 0.35 * weight_bytes(exported())
    assert len(rounded.SerializeToString()) < 0.6 * len(exported().SerializeToString())


def test_onnxruntime_computes_the_rounded_network():
    """The same as the network in PyTorch with rounded weights, layer by layer."""
    rounded = with_8bit_weights(exported())
    made = deploy(network(), images(2)).network
    values = stored(rounded)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if f"{name}:q" in values:
                shape = [-1] + [1] * (weight.ndim - 1)
                steps = torch.from_numpy(values[f"{name}:s"].copy()).reshape(shape)
                weight.copy_(torch.from_numpy(values[f"{name}:q"].copy()) * steps)
            elif name == "head.fc.weight":
                (q,) = (v for n, v in values.items() if v.shape == (16, 10) and v.dtype == np.int8)
                (s,) = (v for n, v in values.items() if n.endswith(":s") and v.shape == (1, 10))
                weight.copy_((torch.from_numpy(q.copy()) * torch.from_numpy(s.copy())).T)
        wanted = made(images())
    found = onnx_runner(rounded.SerializeToString())(images())[0]
    assert float((found - wanted).abs().mean()) < 1e-3 * float(wanted.abs().mean())
    assert not torch.equal(wanted, network()(images()))


def test_onnxruntime_unpacks_them_once(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    content = with_8bit_weights(exported()).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    assert rounded_count(loaded) == 0
    assert weight_bytes(loaded) >= weight_bytes(exported())


def test_weights_in_front_stay_as_they_are():
    count = weight_count(exported())
    assert count == 12
    sizes = [weight_bytes(with_8bit_weights(exported(), front=n)) for n in (0, 5, 9, count)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == weight_bytes(exported())
    names = [t.name for t in with_8bit_weights(exported(), front=3).graph.initializer]
    assert "blocks.stem.conv2.conv.weight" in names
    assert "blocks.stem.conv3.conv.weight:q" in names


@pytest.mark.parametrize("least", [0, 1, 7, 40])
def test_fewest_is_found_by_halving(least):
    asked = []

    def passes(number):
        asked.append(number)
        return number >= least

    assert fewest(passes, 40) == least
    assert len(asked) <= 8
    assert least == 0 or fewest(passes, least - 1) is None


@pytest.fixture
def made(monkeypatch):
    """The payload with weights rounded while ``holds``; its graph is written once for all tests."""
    monkeypatch.setattr(payload, "export_program", lambda *_, **__: drawn())
    monkeypatch.setattr(payload, "onnx_model", lambda *_, **__: watched())
    deployed = deploy(network(), images(2))
    return lambda holds: payload.onnx_payload(deployed, images(2), holds=holds)


def test_as_many_weights_are_rounded_as_hold(made):
    wanted = model_runner(network())(images())[0]
    gaps = []

    def holds(file):
        gaps.append(float((file(images())[0] - wanted).abs().mean()))
        return gaps[-1] < 0.5 * gaps[0]

    found = made(holds)
    assert 0 < found.rounded.front < found.rounded.total == 12
    assert found.rounded.layers == 12 - found.rounded.front
    gap = float((found.run(found.content)(images())[0] - wanted).abs().mean())
    assert 0 < gap < 0.5 * gaps[0]
    assert [size.step for size in found.sizes] == ["Exported", "Exported, 8-bit weights"]
    assert found.sizes[1].file == len(found.content) < found.sizes[0].file


def test_where_nothing_may_be_rounded_it_is_said(made):
    with pytest.raises(ValueError, match=r"no weight can be rounded.*lower agreement"):
        made(lambda file: False)
