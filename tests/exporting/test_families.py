"""A small network of every family as ONNX and as PyTorch's program: same spikes, any batch."""

from __future__ import annotations

import functools

import onnx
import pytest
import torch
from torch import nn

from primesvt.exporting.deploy import deploy
from primesvt.exporting.onnx.channel_padding import aligned
from primesvt.exporting.onnx.int8_weights import with_8bit_weights
from primesvt.exporting.onnx.model import OPSET, only_logits, onnx_model
from primesvt.exporting.runtime import model_runner, onnx_runner, program_runner
from primesvt.exporting.torch_export import export_program, program_bytes
from primesvt.models import create_model

from ..channels.firing import excite
from ..lively import FAMILIES

# Beside the registry's small models: event frames with learned leaks, and with soft pooling.
EVENTS = {
    "sdt_v1": {"dvs_mode": True, "spike_mode": "plif"},
    "spikingresformer": {"spike_mode": "plif"},
}
MIXED = ("qkformer",)
runtimes = pytest.mark.parametrize("runtime", ["onnx", "torch-export"])
families = pytest.mark.parametrize("family", FAMILIES)


# Of blocks that are alike, one: writing a graph takes as long as it has nodes.
SHALLOW: dict[str, dict[str, object]] = {
    "sdt_v1": {"depth": 1},
    "sdt_v2": {"conv_depths": (1, 0, 0), "depths": (0, 1)},
    "sdt_v3": {"conv_depths": (1, 0, 0), "depths": (1, 1)},
    "sdt_v3_large": {"conv_depths": (1, 0, 0), "depths": (1,)},
    "spikformer": {"depth": 1},
    "spikingformer": {"depth": 1},
}


@functools.cache
def network(family):
    if family in ("sdt_v3", "sdt_v3_large"):
        return firing(f"{family}_small", torch.rand(16, 3, 32, 32), **SHALLOW[family])
    return firing(f"{family}_digits", torch.rand(16, 1, 8, 8), **SHALLOW.get(family, {}))


@functools.cache
def events(family):
    """Frames ``[B, T, C, H, W]`` and a network that fires on them."""
    settings = {"in_channels": 2, "time_steps": 2, **EVENTS[family], **SHALLOW.get(family, {})}
    return firing(f"{family}_digits", torch.rand(8, 2, 2, 8, 8), **settings)


def firing(name, x, **settings):
    """A network whose neurons all fire, and its inputs."""
    for seed in range(50):
        torch.manual_seed(seed)
        model = create_model(name, **settings).eval()
        if excite(model, x, seed):
            return model, x
    raise AssertionError(f"no seed makes all neurons of {name} fire")


@functools.cache
def graph(case):
    model, x = events(case[1:]) if case[0] == "@" else network(case)
    return export_program(deploy(model, x[:2]), x[:2], watch=True)


@functools.cache
def runner(case, runtime):
    if runtime == "torch-export":
        return program_runner(program_bytes(graph(case)))
    return onnx_runner(in_onnx(case).SerializeToString())


@functools.cache
def in_onnx(case):
    return onnx_model(graph(case), input_name="images", about={"family": case})


def agree(found, expected):
    """Spikes of every neuron layer, but for a rare one at its threshold, and so logits."""
    assert len(found) == len(expected)
    for spikes, wanted in zip(found[1:], expected[1:], strict=True):
        assert spikes.shape == wanted.shape
        assert 0.001 < float((wanted != 0).double().mean()) < 0.999
        assert float((spikes == wanted).double().mean()) >= 0.9995
    gap = (found[0] - expected[0]).abs()
    assert float(gap.mean()) <= 1e-3 * float(expected[0].abs().mean())
    assert float((found[0].argmax(1) == expected[0].argmax(1)).double().mean()) >= 0.9


@families
@runtimes
def test_spikes_are_the_same(family, runtime):
    model, x = network(family)
    expected = model_runner(model, alone=family in MIXED)(x)
    agree(runner(family, runtime)(x), expected)
    assert len(graph(family).outputs) == len(expected)


@families
@runtimes
def test_any_number_of_images(family, runtime):
    _, x = network(family)
    run = runner(family, runtime)
    whole = run(x[:5])[0]
    alone = torch.cat([run(image)[0] for image in x[:5].split(1)])
    assert float((whole - alone).abs().mean()) <= 1e-3 * float(alone.abs().mean())


@pytest.mark.parametrize("family", EVENTS)
@runtimes
def test_event_frames_and_learned_leaks(family, runtime):
    model, x = events(family)
    agree(runner(f"@{family}", runtime)(x), model_runner(model)(x))


@families
def test_onnx_is_whole_and_plain(family):
    model = only_logits(in_onnx(family))
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "Loop", "Scan", "If"}
    assert {node.domain for node in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    ends = [*model.graph.input, *model.graph.output]
    assert [end.name for end in ends] == ["images", "logits"]
    assert [end.type.tensor_type.shape.dim[0].dim_param for end in ends] == ["batch", "batch"]
    # Weights under their own names, and nothing of the exporter's.
    names = {tensor.name for tensor in model.graph.initializer}
    assert any(name.startswith("blocks.") for name in names)
    assert not any(name.startswith("model.") for name in names)
    assert b"/site-packages/" not in model.SerializeToString()
    assert [(p.key, p.value) for p in model.metadata_props] == [("family", family)]


@pytest.mark.parametrize("family", ["sdt_v2", "qkformer"])
def test_widened_convolutions_compute_the_same_in_float_and_in_eight_bits(family):
    _, x = network(family)
    model = only_logits(in_onnx(family))
    wide = aligned(model, 32)
    assert len(wide.graph.node) > len(model.graph.node)
    for before, after in ((model, wide), (with_8bit_weights(model), with_8bit_weights(wide))):
        wanted, found = (onnx_runner(each.SerializeToString())(x)[0] for each in (before, after))
        assert float((found - wanted).abs().mean()) <= 1e-3 * float(wanted.abs().mean())


def test_images_of_a_batch_no_longer_influence_each_other():
    model, x = network("qkformer")
    made = deploy(model, x[:2])
    assert made.mixing == 'proj_neuron="mixed"'
    assert "as the model does in a batch of one" in made.notes()[0]
    assert not torch.equal(model_runner(model)(x)[0], runner("qkformer", "onnx")(x)[0])


def test_the_first_layer_is_computed_once_for_all_time_steps():
    """As evaluation does it: a convolution that sees as many images as there are, not T times."""
    nodes = list(graph("spikformer").program.graph.nodes)
    first = next(node for node in nodes if "conv" in str(node.target) and node.op != "placeholder")
    (images,) = (node for node in nodes if node.op == "placeholder" and node.name == "input")
    assert first.meta["val"].shape[0] == images.meta["val"].shape[0]


def test_distilled_heads_are_one_and_unread_weights_are_gone():
    model = create_model("sdt_v2_digits", distillation=True)
    made = deploy(model, torch.rand(2, 1, 8, 8))
    assert made.network.head.fc_kd is None
    assert made.network.head.fc.out_features == 10
    spikformer = deploy(create_model("spikformer_digits"), torch.rand(2, 1, 8, 8)).network
    assert not any(isinstance(module, nn.LayerNorm) for module in spikformer.modules())
