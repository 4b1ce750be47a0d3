"""PyTorch's multi-head attention with a forward that takes its widths from its weights.

The forward of ``nn.MultiheadAttention`` has queries, keys and values of one width, that of its
input divided by the number of heads. After channels are removed these differ.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MultiheadAttention", "follow_weights", "take_widths_from_weights"]


class MultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with queries and keys, values, input and output of any widths.

    Made by ``take_widths_from_weights``, not by its constructor.

    Attributes:
        scale: of the products of queries and keys, from the width of a head before any cut.
    """

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as PyTorch's own class does, with the same arguments and results."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError("nested tensors are not supported after pruning; give padded ones")
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal only says what attn_mask is; give attn_mask too")
        batched = query.dim() == 3
        q, k, v = (self._in_heads(part, batched) for part in self._projected(query, key, value))
        causal = is_causal and key_padding_mask is None and not need_weights
        padding = (
            key_padding_mask if batched or key_padding_mask is None else key_padding_mask[None]
        )
        mask = None if causal else _merged(attn_mask, padding, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            products = (q * self.scale) @ k.transpose(-2, -1)
            weights = (products if mask is None else products + mask).softmax(-1)
            weights = functional.dropout(weights, dropout, self.training)
            y = weights @ v
            if average_attn_weights:
                weights = weights.sum(1) / self.num_heads
            weights = weights if batched else weights.squeeze(0)
        else:
            y = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, causal, scale=self.scale
            )
        first = self.batch_first or not batched
        y = y.transpose(1, 2) if first else y.permute(2, 0, 1, 3)
        y = self.out_proj(y.flatten(2))
        return (y if batched else y.squeeze(0)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values of all heads."""
        rows = list(_rows(self))
        if self.in_proj_weight is not None and query is key is value:
            return list(
                functional.linear(query, self.in_proj_weight, self.in_proj_bias).split(rows, -1)
            )
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(rows)
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(rows)
        given = zip((query, key, value), weights, biases, strict=True)
        return [functional.linear(x, weight, bias) for x, weight, bias in given]

    def _in_heads(self, x: Tensor, batched: bool) -> Tensor:
        """``[batch, heads, tokens, width]``."""
        if not batched:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)


def _rows(module: nn.MultiheadAttention) -> tuple[int, int, int]:
    """The widths of queries, keys and values of all heads together."""
    values = module.out_proj.weight.shape[1]
    if module.in_proj_weight is None:
        queries = module.q_proj_weight.shape[0]
    else:
        queries = (module.in_proj_weight.shape[0] - values) // 2
    return queries, queries, values


def _merged(mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the products of queries and keys: a mask of pairs, one of keys, or both."""
    found = None
    if mask is not None:
        found = _added(mask, q)
        if mask.dim() == 3:
            found = found.unflatten(0, (len(q), -1))
    if padding is not None:
        of_keys = _added(padding, q)[:, None, None]
        found = of_keys if found is None else found + of_keys
    return found


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """A mask as numbers to add: where a boolean one is true, minus infinity."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)
    if not mask.is_floating_point():
        raise ValueError(f"a mask is of dtype {mask.dtype}; give bool or floating-point numbers")
    return mask


def take_widths_from_weights(model: nn.Module, changed: Set[str] | None = None) -> None:
    """Let every multi-head attention of a network take its widths from its weights, in place.

    Subclasses stay as they are, and so do attentions with ``add_bias_kv`` or ``add_zero_attn``.

    Args:
        model: the network.
        changed: names of parameters; attentions without one of them stay. All when not given.

    Example:
        >>> plain = nn.MultiheadAttention(4, 2).eval()
        >>> x = torch.ones(3, 1, 4)
        >>> before = plain(x, x, x)[0]
        >>> take_widths_from_weights(plain)
        >>> type(plain).__module__, torch.allclose(plain(x, x, x)[0], before)
        ('primesvt.models.multihead', True)
    """
    for path, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        own = {f"{path}.{name}" if path else name for name, _ in module.named_parameters()}
        if _is_plain(module) and (changed is None or own & changed):
            module.scale = 1 / module.head_dim**0.5
            module._qkv_same_embed_dim = False  # layers around it then leave its forward to it
            module.__class__ = MultiheadAttention
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(part, MultiheadAttention) for part in module.modules()
        ):
            module.use_nested_tensor = False


def _is_plain(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    return (
        type(module) is nn.MultiheadAttention
        and "forward" not in vars(module)
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


def follow_weights(module: nn.MultiheadAttention) -> None:
    """Set the widths that an attention keeps as attributes to those of its weights."""
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    else:
        weights = (module.in_proj_weight,) * 3
    module.embed_dim, module.kdim, module.vdim = (weight.shape[1] for weight in weights)
    module.head_dim = _rows(module)[0] // module.num_heads
