"""Multi-head attention with widths taken from its weights gives what PyTorch's own forward does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from primesvt.models.multihead import MultiheadAttention, take_widths_from_weights

pytestmark = pytest.mark.quick

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "own widths of keys and values": {"kdim": 5, "vdim": 7},
    "values of another width, no bias": {"vdim": 7, "bias": False, "batch_first": True},
}
BATCH, HEADS, QUERIES, KEYS = 3, 2, 4, 6


def mask(*shape: int, boolean: bool) -> Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()
    return numbers > 1 if boolean else numbers


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "of pairs": {"attn_mask": mask(QUERIES, KEYS, boolean=False)},
    "of pairs, boolean": {"attn_mask": mask(QUERIES, KEYS, boolean=True)},
    "of heads": {"attn_mask": mask(BATCH * HEADS, QUERIES, KEYS, boolean=False)},
    "of keys": {"key_padding_mask": mask(BATCH, KEYS, boolean=True)},
    "of keys, as numbers": {"key_padding_mask": mask(BATCH, KEYS, boolean=False)},
    "both": {
        "key_padding_mask": mask(BATCH, KEYS, boolean=True),
        "attn_mask": mask(QUERIES, KEYS, boolean=True),
    },
}


def pair(**options: Any) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """An attention and its copy with the other forward."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, HEADS, **options).double().eval()
    if plain.in_proj_bias is not None:
        nn.init.normal_(plain.in_proj_bias)
    other = copy.deepcopy(plain)
    take_widths_from_weights(other)
    assert type(other) is MultiheadAttention
    return plain, other


def inputs(plain: nn.MultiheadAttention) -> list[Tensor]:
    sizes = ((QUERIES, plain.embed_dim), (KEYS, plain.kdim), (KEYS, plain.vdim))
    shapes = [(BATCH, n, c) if plain.batch_first else (n, BATCH, c) for n, c in sizes]
    return [torch.randn(shape).double() for shape in shapes]


def same(found: Any, wanted: Any) -> bool:
    if wanted[1] is None or found[1] is None:
        assert wanted[1] is found[1] is None
        found, wanted = found[:1], wanted[:1]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("weights", ["averaged", "of heads", "none"])
@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_what_pytorch_gives(kind: str, masked: str, weights: str) -> None:
    plain, other = pair(**KINDS[kind])
    given = {
        **MASKS[masked],
        "need_weights": weights != "none",
        "average_attn_weights": weights == "averaged",
    }
    x = inputs(plain)
    with torch.no_grad():
        found = other(*x, **given)
        assert same(found, plain(*x, **given))
        assert all(t is None or t.is_contiguous() for t in found), "people use view"
        if plain.in_proj_weight is not None and masked == "none":  # the same tensor three times
            assert same(other(x[0], x[0], x[0], **given), plain(x[0], x[0], x[0], **given))


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_without_a_batch_and_causal(padded: bool, weights: bool) -> None:
    plain, other = pair(batch_first=True)
    x, causal = torch.randn(5, 8).double(), nn.Transformer.generate_square_subsequent_mask(5)
    given: dict[str, Any] = {
        "attn_mask": causal.double(),
        "is_causal": True,
        "need_weights": weights,
        "key_padding_mask": torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf]).double()
        if padded
        else None,
    }
    with torch.no_grad():
        assert same(other(x, x, x, **given), plain(x, x, x, **given))


def test_dropout_is_drawn_alike_in_training() -> None:
    for weights in (True, False):
        plain, other = pair(dropout=0.5)
        x = inputs(plain)
        found = []
        for module in (plain, other):
            torch.manual_seed(3)
            found.append(module.train()(*x, need_weights=weights))
        assert same(found[1], found[0]) or not weights  # fused attention may draw in another order
        torch.manual_seed(4)
        assert not same(other(*x, need_weights=weights), found[1])


def test_other_attentions_keep_their_forward() -> None:
    class Own(nn.MultiheadAttention):
        pass

    for made in (
        Own(8, 2),
        nn.MultiheadAttention(8, 2, add_bias_kv=True),
        nn.MultiheadAttention(8, 2, add_zero_attn=True),
    ):
        kind = type(made)
        take_widths_from_weights(made)
        assert type(made) is kind


def test_what_it_cannot_take_is_an_error() -> None:
    _, other = pair()
    x = torch.randn(4, 3, 8).double()
    with pytest.raises(RuntimeError, match="give attn_mask too"):
        other(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match=r"a mask is of dtype torch\.int64"):
        other(x, x, x, attn_mask=torch.zeros(4, 4, dtype=torch.int64))
