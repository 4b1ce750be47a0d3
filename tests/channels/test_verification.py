"""Foreign forwards that a trace cannot see through: refused by name, with module and reason."""

from __future__ import annotations

from collections.abc import Callable

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
    found = {r.group: (r.module, r.reason, r.fix) for r in verify(model, trace(model, x))}
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
    (refusal,) = verify(model, trace(model, torch.randn(4, 5)))
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
