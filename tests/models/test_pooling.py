"""Pooling by slices gives PyTorch's values, and is out of the way of whoever looks on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from primesvt.models.fast_paths import HalvingMaxPool, as_evaluated

PLAIN = nn.MaxPool2d(3, 2, 1)
SPECIAL = [0.0, -1.0, 1.0, float("inf"), float("-inf"), float("nan")]


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 11)] * 2),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    special=st.lists(st.sampled_from(SPECIAL), max_size=5),
)
@torch.no_grad()
def test_the_values_and_the_layout_are_those_of_pytorch(shape, seed, dtype, special) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x.view(-1)[: len(special)] = torch.tensor(special, dtype=dtype)[: x.numel()]
    out, expected = HalvingMaxPool()(x), PLAIN(x)
    assert torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(out.isnan(), expected.isnan())
    assert (out.dtype, out.stride()) == (expected.dtype, expected.stride())


def pooled(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether PyTorch's own pooling was called."""
    called = []
    own = nn.MaxPool2d.forward
    with monkeypatch.context() as patch:
        patch.setattr(nn.MaxPool2d, "forward", lambda s, x: called.append(1) or own(s, x))
        HalvingMaxPool()(x)
    return bool(called)


def test_pytorch_pools_where_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3, 6, 6)
    assert pooled(x, monkeypatch)  # gradients
    with torch.no_grad():
        assert not pooled(x, monkeypatch)
        assert pooled(x.contiguous(memory_format=torch.channels_last), monkeypatch)
        assert pooled(x[0], monkeypatch)  # without a batch
        assert pooled(x.mT, monkeypatch)
        with as_evaluated():  # an export has an operator for it
            assert pooled(x, monkeypatch)
        with Operators() as follows:
            HalvingMaxPool()(x)
        assert any("max_pool2d" in name for name in follows.seen)
