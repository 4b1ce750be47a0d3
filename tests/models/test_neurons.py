"""Neurons without gradients give SpikingJelly's spikes and membrane potentials, bit for bit."""

import copy
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from primesvt.models import create_model, reset
from primesvt.models import fast_paths as inference
from primesvt.models.blocks import ConvBN, MaxPool
from primesvt.models.fast_paths import LIF
from primesvt.models.neurons import lif, plif

KINDS: dict[str, Callable[..., Any]] = {
    "tau 2": lif,
    "tau 1.5": lambda *a, **k: lif(*a, tau=1.5, **k),
    "tau 3, arc tangent": lambda *a, **k: lif(*a, tau=3.0, gradient="atan", **k),
    "learned, w 0": plif,
    "learned, w not 0": lambda *a, **k: learned(0.37, *a, **k),
}


def learned(w: float, *args: Any, **options: Any) -> Any:
    layer: Any = plif(*args, **options)
    nn.init.constant_(layer.w, w)
    return layer


def original(layer: Any) -> Any:
    """The same neuron as SpikingJelly's own class."""
    twin = copy.deepcopy(layer)
    twin.__class__ = neuron.LIFNode if isinstance(layer, LIF) else neuron.ParametricLIFNode
    return twin


def currents(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).add(0.5).to(dtype)


@torch.no_grad()
def compare(layer: Any, *inputs: Tensor, fast: bool = True) -> None:
    """Equal after each call, no input touched; says whether the fast path ran."""
    twin = original(layer)
    for x in inputs:
        before = x.clone()
        with mock.patch.object(inference, "_run", wraps=inference._run) as run:
            spikes = layer(x)
        assert run.called == fast
        expected = twin(x)
        assert torch.equal(spikes, expected) and torch.equal(layer.v, twin.v)
        assert (spikes.dtype, layer.v.dtype) == (expected.dtype, twin.v.dtype)
        assert spikes.stride() == expected.stride() and layer.v_seq is None
        assert torch.equal(x, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.1])
def test_several_calls_equal_spikingjelly(kind: str, dtype: torch.dtype, threshold: float) -> None:
    for steps in (1, 2, 4, 5):
        layer = KINDS[kind](threshold).to(dtype)
        compare(layer, *(currents(steps, 3, 7, 5, dtype=dtype, seed=s) for s in range(3)))
        assert 0 < layer(currents(steps, 99, dtype=dtype)).mean() < 1


FLOATS = st.floats(-4, 4, width=32) | st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, -0.0])


@given(
    rows=st.integers(1, 5).flatmap(
        lambda steps: st.lists(
            st.lists(FLOATS, min_size=steps, max_size=steps), min_size=1, max_size=20
        )
    ),
    kind=st.sampled_from(sorted(KINDS)),
    threshold=st.sampled_from([1.0, 0.5]) | st.floats(0.0625, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=200)
def test_any_currents_equal_spikingjelly(
    rows: list[list[float]], kind: str, threshold: float, dtype: torch.dtype
) -> None:
    x = torch.tensor(rows, dtype=dtype).T.contiguous()
    compare(KINDS[kind](threshold).to(dtype), x, x.flip(0))


@given(w=st.floats(-3, 3, width=32), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_any_learned_leak_equals_spikingjelly(w: float, seed: int) -> None:
    compare(learned(w), currents(4, 33, seed=seed), currents(2, 33, seed=seed + 1))


def test_a_potential_at_the_threshold_fires() -> None:
    just_below = torch.tensor(2.0).nextafter(torch.tensor(0.0))
    x = torch.stack([torch.tensor([2.0, float(just_below), 1.0]), torch.tensor([0.0, 0.0, 1.5])])
    compare(lif(), x)
    with torch.no_grad():
        assert lif()(x).tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_spikes_of_broken_currents_are_those_of_spikingjelly(value: float) -> None:
    x = torch.tensor([[0.5], [value], [9.0], [9.0]])
    layer = lif()
    with torch.no_grad():
        assert torch.equal(layer(x), original(lif())(x))
    assert layer.v.isnan().all()


@given(
    values=st.lists(FLOATS, min_size=1, max_size=20),
    steps=st.integers(1, 3),
    kind=st.sampled_from(sorted(KINDS)),
    threshold=st.sampled_from([1.0, 0.5]) | st.floats(0.0625, 2),
)
@settings(deadline=None, max_examples=200)
@torch.no_grad()
def test_who_forgets_potentials_fires_alike(
    values: list[float], steps: int, kind: str, threshold: float
) -> None:
    layer, x = KINDS[kind](threshold), torch.tensor(values).repeat(steps, 1)
    with inference.forgetting():
        spikes = layer(x)
    assert layer.v == 0.0 and isinstance(layer.v, float)
    expected = original(layer)(x)
    assert torch.equal(spikes, expected) and spikes.stride() == expected.stride()


@torch.no_grad()
def test_potentials_that_somebody_may_read_are_kept() -> None:
    x = currents(2, 9)
    for prepare in (
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer(x),  # it goes on
    ):
        layer = lif()
        prepare(layer)
        twin = original(layer)
        with inference.forgetting():
            assert torch.equal(layer(x), twin(x)) and torch.equal(layer.v, twin.v)


def layouts() -> dict[str, Tensor]:
    image = currents(6, 4, 5, 7)
    return {
        "one image for all steps": currents(1, 2, 4, 5).expand(3, -1, -1, -1),
        "one image, channels last": image.to(memory_format=torch.channels_last).expand(
            4, -1, -1, -1, -1
        ),
        "channels last": image.to(memory_format=torch.channels_last).unflatten(0, (2, 3)),
        "batch first": currents(3, 2, 4, 5).transpose(0, 1),
        "tokens first": currents(2, 3, 5, 4).transpose(-1, -2),
        "images, columns first": image.unflatten(0, (2, 3)).transpose(-1, -2),
        "every second": currents(2, 3, 8)[..., ::2],
        "one value for all": currents(2, 1, 1).expand(2, 3, 4),
        "one pixel": currents(2, 3, 1, 1, 1),
        "one axis of neurons": currents(2, 9),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("kind", KINDS)
def test_any_layout(name: str, kind: str) -> None:
    compare(KINDS[kind](), layouts()[name], layouts()[name])


@pytest.mark.parametrize("make", [lif, plif])
def test_a_reset_forgets_whatever_there_is(make: Callable[..., Any]) -> None:
    layer = make()
    layer.store_v_seq = True
    layer(torch.rand(2, 3))
    assert isinstance(layer.v, Tensor)
    reset(layer)
    assert (layer.v, layer.v_seq) == (0.0, None)
    layer.v = 0.5
    reset(layer)
    assert layer.v == 0.0
    layer.set_reset_value("v", 0.25)
    reset(layer)
    assert layer.v == 0.25


def test_states_that_do_not_fit_are_handled_by_spikingjelly() -> None:
    compare(lif(), currents(2, 3))
    layer = lif()
    compare(layer, currents(2, 3))
    compare(layer, currents(2, 4), currents(2, 4, dtype=torch.float64), fast=False)
    layer.v = 0.5
    compare(layer, currents(2, 3), fast=False)
    compare(layer, currents(2, 3, seed=1))


def test_the_state_of_an_earlier_call_is_not_changed_in_place() -> None:
    layer = lif()
    with torch.no_grad():
        layer(currents(1, 5))
        before = layer.v
        kept = before.clone()
        layer(currents(1, 5, seed=1))
    assert torch.equal(before, kept) and not torch.equal(layer.v, kept)


UNUSUAL: dict[str, Callable[[Any], Any]] = {
    "soft reset": lambda n: setattr(n, "v_reset", None),
    "reset elsewhere": lambda n: setattr(n, "v_reset", -0.25),
    "undecayed input": lambda n: setattr(n, "decay_input", False),
    "smooth spikes": lambda n: n.surrogate_function.set_spiking_mode(False),
    "another surrogate": lambda n: setattr(n, "surrogate_function", surrogate.SoftSign()),
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("make", [lif, plif])
def test_unusual_settings_are_left_to_spikingjelly(name: str, make: Callable[..., Any]) -> None:
    layer = make()
    UNUSUAL[name](layer)
    compare(layer, currents(3, 4, 5), fast=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lif, plif])
def test_half_precision_is_left_to_spikingjelly(
    dtype: torch.dtype, make: Callable[..., Any]
) -> None:
    compare(make(0.1).to(dtype), currents(3, 4, 50, dtype=dtype), fast=False)


@pytest.mark.parametrize("make", [lif, plif])
def test_stored_potentials_are_those_of_every_step(make: Callable[..., Any]) -> None:
    layer, x = make(), currents(4, 3, 5)
    with torch.no_grad():
        single = torch.stack([(layer(x[t : t + 1]), layer.v)[1] for t in range(4)])
        layer.reset()
        layer.store_v_seq = True
        layer(x)
    assert torch.equal(layer.v_seq, single)
    layer.store_v_seq = False
    with torch.no_grad():
        layer(x)
    assert layer.v_seq is None


def test_gradients_are_those_of_spikingjelly() -> None:
    for make in (lif, plif):
        layer = make()
        twin = original(layer)
        x = currents(4, 3, 5).requires_grad_()
        layer(x).square().sum().backward()
        mine = [x.grad, *(p.grad for p in layer.parameters())]
        x.grad = None
        twin(x).square().sum().backward()
        theirs = [x.grad, *(p.grad for p in twin.parameters())]
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert layer.v.requires_grad
        with torch.no_grad():  # a state that has a history does not gain one more step
            assert not layer(x.detach()).requires_grad and not layer.v.requires_grad


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_those_who_follow_operators_see_the_ones_of_spikingjelly() -> None:
    model = create_model("sdt_v2_digits", pretrained=True).eval()
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, LIF):
            module.__class__ = neuron.LIFNode
    x = currents(2, 1, 8, 8)
    with Operators() as mine:
        traced = model(x)
    with Operators() as theirs:
        expected = plain(x)
    assert mine.seen == theirs.seen
    assert torch.equal(traced, expected) and torch.equal(model(x), expected)
    meta = copy.deepcopy(model).to("meta")
    assert meta(x.to("meta")).shape == (2, 10)


@torch.no_grad()
def test_transforms_are_left_to_spikingjelly() -> None:
    x = currents(5, 4, 3, dtype=torch.float64)
    with torch.inference_mode():
        compare(lif(), currents(3, 4))
    layer = lif()
    inner = mock.Mock(side_effect=layer)
    with mock.patch.object(inference, "_run") as run, pytest.raises(RuntimeError):
        torch.func.vmap(inner)(x)  # its surrogate has no rule for it
    assert inner.called and not run.called


def test_they_are_spikingjelly_neurons() -> None:
    single, leaky = lif(), plif()
    assert isinstance(single, neuron.LIFNode) and isinstance(leaky, neuron.ParametricLIFNode)
    assert (list(single.state_dict()), list(leaky.state_dict())) == ([], ["w"])
    x = currents(3, 4)
    for layer in (single, leaky):
        with torch.no_grad():
            layer(x)
            for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
                assert type(twin) is type(layer) and torch.equal(twin.v, layer.v)
                assert torch.equal(twin(x), original(layer)(x))
        functional.reset_net(layer)
        assert layer.v == 0.0
        layer.step_mode = "s"
        with torch.no_grad():
            twin = original(layer)
            assert torch.equal(layer(x[0]), twin(x[0])) and torch.equal(layer.v, twin.v)


# --- layers in front of the first neuron ---------------------------------------------------------


@pytest.mark.parametrize("layer", [ConvBN(3, 4, 3), ConvBN(3, 4, dims=1), MaxPool()])
@torch.no_grad()
def test_one_image_for_all_steps_is_computed_once(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).double().eval()
    image = currents(1, 2, 3, 6, 6, dtype=torch.float64)
    repeated = image.expand(4, -1, -1, -1, -1)
    out = layer(repeated)
    assert out.stride(0) == 0 and out.shape[:2] == (4, 2)
    assert torch.equal(out, layer(repeated.contiguous()))
    assert layer(image).stride(0) != 0


def test_every_step_is_computed_where_somebody_looks() -> None:
    layer = ConvBN(3, 4, 3).eval()
    repeated = currents(1, 2, 3, 6, 6).expand(4, -1, -1, -1, -1)
    assert layer(repeated).stride(0) != 0  # gradients
    with torch.no_grad():
        layer.bn.train()  # statistics count what they see
        layer(repeated)
        assert layer.bn.num_batches_tracked == 1 and layer(repeated).stride(0) != 0
        layer.eval()
        seen: list[Tensor] = []
        handle = layer.conv.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
        layer(repeated)
        handle.remove()
        assert len(seen[0]) == 8
        with Operators():
            assert layer(repeated).stride(0) != 0


@pytest.mark.parametrize("name", ["sdt_v2_digits", "spikformer_digits"])
@torch.no_grad()
def test_a_model_gives_the_same_from_images_and_from_equal_frames(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, time_steps=3).double().eval()
    x = currents(4, 1, 8, 8, dtype=torch.float64)
    frames = torch.stack([x] * 3, dim=1)
    torch.testing.assert_close(model(x), model(frames), rtol=0, atol=1e-12)
