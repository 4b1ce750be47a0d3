"""Foreign forwards that a trace cannot see through: refused by name, with module and reason."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from primesvt.channels import remove_channels, trace, verify
from primesvt.models import create_model
from primesvt.models.neurons import lif

from .firing import state_bytes


class WrittenSize(nn.Module):
    """A hidden width written into the forward, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.c_hidden = 12
        self.fc0 = nn.Linear(5, 10)
        self.fc1 = nn.Linear(10, self.c_hidden)
        self.bn = nn.BatchNorm1d(self.c_hidden)
        self.fc2 = nn.Linear(self.c_hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn(self.fc1(self.fc0(x).relu()))
        return self.fc2(hidden.relu().reshape(-1, self.c_hidden))


class ScaleFromShape(nn.Module):
    """Spiking attention whose scale follows the width of a head."""

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.neurons = nn.ModuleList(lif() for _ in range(4))
        self.p, self.head = nn.Linear(dim, dim), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        layers = zip((self.q, self.k, self.v), self.neurons, strict=False)
        q, k, v = (self.split(spike(layer(x))) for layer, spike in layers)
        out = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5) @ v
        spikes = self.neurons[3](out.transpose(2, 3).flatten(-2))
        return self.head(self.p(spikes)).mean((0, 2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)


class Normalised(nn.Module):
    """A layer norm over channels, behind a width that it does not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc0 = nn.Linear(5, 10)
        self.fc1 = nn.Linear(10, 12)
        self.ln = nn.LayerNorm(12)
        self.fc2 = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ln(self.fc1(self.fc0(x).relu())).relu())


class LooksAlike(nn.Module):
    """Two widths that the forward pads to agree: wrong, unless both are cut by the same count."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 8)
        self.fa, self.fb = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).sigmoid(), self.b(x).sigmoid()
        return (self.fa(a) + self.fb(b)) * (a.shape[-1] / b.shape[-1])


def refusals(model: nn.Module, x: Tensor) -> dict[str, tuple[str, str, str]]:
    model.eval()
    before = state_bytes(model)
    graph = replace(trace(model, x), rewrites=())  # what the check sees where nothing is rewritten
    found = {r.group: (r.module, r.reason, r.fix) for r in verify(model, graph)}
    assert state_bytes(model) == before, "the check changed the model"
    return found


def test_a_size_written_into_the_forward() -> None:
    torch.manual_seed(0)
    model = WrittenSize()
    graph = trace(model, torch.randn(4, 5))
    assert [g.name for g in graph.prunable()] == ["fc0", "fc1"]
    found = refusals(model, torch.randn(4, 5))
    assert list(found) == ["fc1"], "fc0 can be cut"
    module, reason, fix = found["fc1"]
    assert "RuntimeError" in reason or "shape" in reason
    assert "size is written into the forward" in fix
    assert module in ("", "fc2")
    remove_channels(model, graph, {"fc0": [0, 2]})
    assert model(torch.randn(2, 5)).shape == (2, 3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_scale_computed_from_the_shape(scale: float) -> None:
    """Refused even where no neuron fires, because zero times a wrong constant is still zero."""
    torch.manual_seed(0)
    found = refusals(ScaleFromShape(), torch.randn(2, 2, 5, 16) * scale)
    assert list(found) == ["q+k"], "v and p can be cut"
    _, reason, fix = found["q+k"]
    assert "differs from the silenced original" in reason
    assert "constant follows the width" in fix


def test_a_normalisation_over_channels_is_frozen_by_the_trace() -> None:
    model = Normalised().eval()
    graph = trace(model, torch.randn(4, 5))
    group = graph["fc1"]
    assert (group.status, group.prunable) == ("frozen", False)
    assert "layer normalisation" in group.reason
    assert "module 'ln'" in group.reason
    assert [g.name for g in graph.prunable()] == ["fc0"]
    assert verify(model, graph) == []
    with pytest.raises(ValueError, match=r"'fc1' is frozen .*layer normalisation"):
        remove_channels(model, graph, {"fc1": [0, 1]})


def test_widths_that_agree_only_when_cut_alike_are_refused() -> None:
    torch.manual_seed(0)
    assert set(refusals(LooksAlike(), torch.randn(4, 5))) == {"a", "b"}


def test_a_clean_model_has_no_refusal_and_stays_as_it_was() -> None:
    model = create_model("sdt_v2_digits", pretrained=True).train()
    x = torch.rand(2, 1, 8, 8)
    before = state_bytes(model)
    graph = trace(model, x)
    assert verify(model, graph) == []
    assert state_bytes(model) == before
    assert all(m.training for m in model.modules())
    streams = [g.name for g in graph if g.kind == "stream" and g.status == "free"]
    assert verify(model, graph, groups=[streams[0], "blocks.block3_0.attn.v"]) == []


def test_check_names_an_unknown_group_and_refuses_another_model() -> None:
    graph = trace(Normalised(), torch.randn(4, 5))
    with pytest.raises(ValueError, match=r"no channel group named 'fc7'.*fc0"):
        verify(Normalised(), graph, groups=["fc7"])
    wider = Normalised()
    wider.fc0, wider.fc1 = nn.Linear(5, 11), nn.Linear(11, 12)
    with pytest.raises(ValueError, match=r"fc0\.weight.*shape"):
        verify(wider, graph)


def test_check_works_on_the_graph_of_a_pruned_model() -> None:
    torch.manual_seed(0)
    model = create_model("sdt_v2_digits", pretrained=True)
    graph = trace(model, torch.rand(2, 1, 8, 8))
    cuts = {
        g.name: np.tile(np.arange(1 if g.fronts else max(1, g.size // 2)), (g.positions, 1))
        for g in graph.prunable()
    }
    small = remove_channels(model, graph, cuts)
    assert verify(model, small) == []


def test_a_refusal_reads_like_a_sentence() -> None:
    torch.manual_seed(0)
    model = WrittenSize().eval()
    graph = replace(trace(model, torch.randn(4, 5)), rewrites=())
    (refusal,) = verify(model, graph)
    text = str(refusal)
    assert text.startswith("fc1: the forward fails after a cut (RuntimeError: ")
    assert text.endswith("read it from the tensor (x.shape, -1) instead")
    assert "\n" not in text


class EndsEarly(nn.Module):
    """Takes a short cut as soon as its width changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x))
        return y * 2.0 if self.a.out_features == 8 else y


def test_a_forward_that_ends_earlier_after_a_cut_is_refused() -> None:
    model, x = EndsEarly().eval(), torch.randn(2, 4)
    (refusal,) = verify(model, trace(model, x))
    assert refusal.group == "a"
    assert "ends earlier" in refusal.reason


class Wrong(nn.Module):
    """A linear reader, and any function of what it reads and returns."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.function(h, self.b(h))


HIDDEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "another order": lambda h, y: y.roll(h.shape[-1], 0),
    "beside infinity": lambda h, y: (
        y.index_fill(-1, torch.tensor([0]), torch.inf) * (h.shape[-1] / 8)
    ),
    "beside the least number": lambda h, y: (
        y.index_fill(-1, torch.tensor([0]), torch.finfo(y.dtype).min) + h.shape[-1] / 8
    ),
    "no number": lambda h, y: (y - y) / int(h.shape[-1] == 8),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_differences_that_sums_do_not_show(name: str) -> None:
    torch.manual_seed(0)
    assert set(refusals(Wrong(HIDDEN[name]), torch.randn(5, 4))) == {"a"}


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.ge(50.0).to(x)


SILENT: dict[str, Callable[[Tensor], Tensor]] = {
    "comparison": lambda x: (x > 50).to(x),
    "heaviside": lambda x: torch.heaviside(x - 50, torch.zeros(()).to(x)),
    "autograd function": Gate.apply,
    "where": lambda x: torch.where(x > 50, 1.0, 0.0),
    "integers": lambda x: torch.round(torch.clamp(x - 50, 0, 4)) / 4,
    "rectifier": lambda x: (x - 50).relu_(),
    "sign": lambda x: (torch.sign(x - 50) + 1) / 2,
}


class OwnNeurons(nn.Module):
    """Attention with a scale that follows its width, behind neurons of somebody's own."""

    def __init__(self, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 8) for _ in range(3))
        self.spike, self.head = spike, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.spike(layer(x)) for layer in (self.q, self.k, self.v))
        return self.head(self.spike((q @ k.T) * q.shape[-1] ** -0.5 @ v))


@pytest.mark.parametrize("name", SILENT)
def test_a_wrong_constant_shows_behind_neurons_that_never_fire(name: str) -> None:
    torch.manual_seed(0)
    assert list(refusals(OwnNeurons(SILENT[name]), torch.randn(4, 3))) == ["q+k"]


class Reads(nn.Module):
    """Reads hidden channels through a function of them and of a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, self.w, self.function = nn.Linear(3, 8), nn.Parameter(torch.rand(4, 8)), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.make(x).sigmoid(), self.w)


def test_a_single_channel_left_is_tried_too() -> None:
    """What broadcasts or squeezes an axis of size 1 is found; einsum takes another path there."""
    x = torch.randn(4, 3)
    assert refusals(Reads(lambda h, w: h @ w.T * min(h.shape[1], 2)), x)
    assert refusals(Reads(lambda h, w: h.squeeze() @ w.T), x)
    assert not refusals(Reads(lambda h, w: torch.einsum("bc,oc->bo", h, w)), x)


def test_a_loop_over_comparisons_ends_and_assertions_on_values_hold() -> None:
    def halved(h: Tensor, w: Tensor) -> Tensor:
        assert (h >= 0).all() and (w >= 0).all()
        while (h.sum(1) > 1).any():
            h = h / 2
        return h @ w.T

    assert not refusals(Reads(halved), torch.randn(4, 3))


@dataclass
class Output:
    logits: Tensor
    features: Tensor


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "data class": Output,
    "plain object": lambda a, b: SimpleNamespace(logits=a, features=b),
    "mapping": lambda a, b: UserDict(logits=a, features=b),
    "nested": lambda a, b: {"all": [Output(a, b)]},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_channels_given_in_any_object_are_protected(name: str) -> None:
    net = Reads(lambda h, w: OUTPUTS[name](h @ w.T, h)).eval()
    assert trace(net, torch.randn(4, 3))["make"].status == "protected"


def test_tensors_of_another_dtype_that_no_module_holds() -> None:
    """A layer in a list stays single precision in the check; what it reads is frozen."""
    hidden = [nn.Linear(8, 8)]
    net = nn.Sequential(Reads(lambda h, w: hidden[0](h) @ w.T), nn.Linear(4, 6), nn.Linear(6, 2))
    graph = trace(net.eval(), torch.randn(4, 3))
    assert [g.name for g in graph.prunable()] == ["0", "1"]
    assert graph["0.make"].status == "frozen" and verify(net, graph) == []


def test_a_forward_that_wants_single_precision_says_so() -> None:
    def picky(h: Tensor, w: Tensor) -> Tensor:
        assert h.dtype == torch.float32, "single precision only"
        return h @ w.T

    net = Reads(picky).eval()
    graph = trace(net, torch.randn(4, 3))
    with pytest.raises(ValueError, match="in double precision, and the forward of Reads fails th"):
        verify(net, graph)


def sparse() -> nn.Module:
    net = Reads(lambda h, w: h @ w.T)
    net.register_buffer("links", torch.eye(3).to_sparse())
    return net


def quantized() -> nn.Module:
    net = Reads(lambda h, w: h @ w.T)
    net.register_buffer("table", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 4))), "module '0' is TorchScript"),
        (sparse, r"'links' is sparse \(torch.sparse_coo\) and cannot be cut"),
        (quantized, "'table' is quantized and cannot be cut"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(jit.script|quantize_per_tensor)")
def test_what_cannot_be_cut_is_named(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trace(make().eval(), torch.randn(4, 3))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_recurrent_layers_know_their_new_widths(kind: type[nn.RNNBase]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.cell, self.head = nn.Linear(3, 8), kind(8, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(self.make(x))[0])

    torch.manual_seed(0)
    net, x = Recurrent().double().eval(), torch.randn(5, 3).double()
    graph = trace(net, x)
    assert verify(net, graph) == []
    kept = torch.zeros(8).double().index_fill(0, torch.tensor([1, 4, 5]), 1.0)
    expected = net.head(net.cell(net.make(x) * kept)[0])
    remove_channels(net, graph, {"make": [1, 4, 5]})
    torch.testing.assert_close(net(x), expected)
    assert net.cell.input_size == 3
