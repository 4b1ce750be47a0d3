"""Channels of zeros change nothing that a file computes, and blocked kernels take it then."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from primesvt.exporting.onnx.channel_padding import MULTIPLE, aligned


def conv(name, shape, groups, source, target, *, bias=True):
    """A node and its weights, padded by half the kernel."""
    generator = np.random.default_rng(len(name) + sum(shape))
    weights = [numpy_helper.from_array(generator.normal(size=shape).astype("f4"), f"{name}.w")]
    if bias:
        values = generator.normal(size=shape[:1]).astype("f4")
        weights.append(numpy_helper.from_array(values, f"{name}.b"))
    names = [source, *(each.name for each in weights)]
    pads = [shape[2] // 2] * 4
    return helper.make_node("Conv", names, [target], group=groups, pads=pads), weights


def graph(widths, kernel, between, *, bias=True, watched=False):
    """1x1, depthwise and 1x1 convolutions, with something between them or nothing."""
    first, middle, last = widths
    parts = [
        conv("a", (middle, first, kernel, kernel), 1, "x", "a", bias=bias),
        conv("d", (middle, 1, 3, 3), middle, "a2" if between else "a", "d", bias=bias),
        conv("o", (last, middle, kernel, kernel), 1, "d2" if between else "d", "y", bias=bias),
    ]
    nodes = [node for node, _ in parts]
    if between:
        nodes = [
            nodes[0],
            helper.make_node(between, ["a"], ["a2"]),
            nodes[1],
            helper.make_node(between, ["d"], ["d2"]),
            nodes[2],
        ]
    outputs = ["y", "d"] if watched else ["y"]
    content = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", first, 5, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [tensor for _, weights in parts for tensor in weights],
    )
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(model, x):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})


@settings(max_examples=25, deadline=None)
@given(
    widths=st.tuples(*[st.integers(1, 40)] * 3),
    kernel=st.sampled_from([1, 3]),
    between=st.sampled_from([None, "Relu"]),
    bias=st.booleans(),
    watched=st.booleans(),
)
def test_the_answers_are_the_same(widths, kernel, between, bias, watched):
    before = graph(widths, kernel, between, bias=bias, watched=watched)
    after = aligned(before)
    x = np.random.default_rng(0).normal(size=(2, widths[0], 5, 6)).astype("f4")
    for wanted, found in zip(answers(before, x), answers(after, x), strict=True):
        assert wanted.shape == found.shape
        assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_a_chain_of_convolutions_needs_no_copy_of_its_tensors():
    made = aligned(graph((16, 51, 16), 1, None))
    assert kinds(made) == ["Conv", "Conv", "Conv"]
    shapes = {t.name: tuple(t.dims) for t in made.graph.initializer}
    assert shapes["a.w"] == (52, 16, 1, 1)
    assert shapes["d.w"] == (52, 1, 3, 3)
    assert shapes["o.w"] == (16, 52, 1, 1)
    assert shapes["a.b"] == shapes["d.b"] == (52,)


def test_elsewhere_the_tensor_is_padded_and_cut():
    made = aligned(graph((16, 51, 16), 1, "Relu"))
    assert kinds(made) == ["Conv", "Relu", "Pad", "Conv", "Slice", "Relu", "Conv"]
    assert made.graph.node[2].input[0] == "a2"


def test_the_model_given_stays_as_it_is():
    before = graph((16, 51, 16), 1, None)
    content = before.SerializeToString()
    aligned(before)
    assert before.SerializeToString() == content


def test_shared_weights_are_left_alone():
    before = graph((51, 51, 51), 3, None)
    before.graph.node[2].input[1:] = before.graph.node[0].input[1:]
    after = aligned(before)
    assert kinds(after) == ["Conv", "Pad", "Conv", "Slice", "Conv"]
    x = np.random.default_rng(0).normal(size=(2, 51, 5, 6)).astype("f4")
    (wanted,), (found,) = answers(before, x), answers(after, x)
    assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()


def test_multiples_are_left_alone():
    before = graph((16, 52, 17), 3, "Relu")
    assert aligned(before) == before


def test_narrow_convolutions_of_all_inputs_are_left_alone():
    before = graph((5, 12, 3), 3, "Relu")
    assert aligned(before) == before


def blocked(model, place):
    """How many convolutions onnxruntime runs in blocks of channels, where the processor has any."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(place)
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(place).graph.node
    return sum(node.domain == "com.microsoft.nchwc" and node.op_type == "Conv" for node in nodes)


@pytest.mark.parametrize("between", [None, "Relu"])
def test_onnxruntime_treats_them_like_widths_at_multiples(between, tmp_path):
    even = blocked(graph((16, 51 + -51 % MULTIPLE, 16), 3, between), tmp_path / "even.onnx")
    odd = graph((16, 51, 16), 3, between)
    assert blocked(aligned(odd), tmp_path / "aligned.onnx") == even
    assert even == 0 or blocked(odd, tmp_path / "odd.onnx") < even
