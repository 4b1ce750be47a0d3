"""A network for quick inference in PyTorch, and the steps that every export begins with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.channels.copies import working_copy
from primesvt.exporting.batchnorm_folding import Folded, fold_norms
from primesvt.exporting.packing import pack
from primesvt.models import reset
from primesvt.models.blocks import ConvBN
from primesvt.models.strip import merge_head, strip_unused

__all__ = ["quick", "simplify"]


def quick(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy that answers sooner on a CPU, for inference under ``torch.no_grad()`` alone.

    Batch norms are folded, what nothing reads is gone, channels lie last and weights as the
    processor's library reads them. It answers as the model does but for rounding, which may flip a
    spike now and then: compare both on images of yours before you rely on it. The model is left as
    it is; save that one, since the copy has no state to save.

    Args:
        model: with float32 weights.
        example: what it reads, at least two samples; best as many as it will be given at a time.

    Raises:
        ValueError: a norm without running statistics, or one that something else reads past, so
            that folding would change more than rounding.

    Example:
        >>> from primesvt import create_model
        >>> model = create_model("sdt_v2_digits", pretrained=True)
        >>> images = torch.rand(2, 1, 8, 8)
        >>> net = quick(model, images)
        >>> with torch.no_grad():
        ...     net(images).shape
        torch.Size([2, 10])
    """
    whole, made = (working_copy(model, double=True) for _ in range(2))
    example = example.cpu()
    double = example[:2].double()  # two show it; in double precision a batch takes its memory twice
    with torch.no_grad():
        before = _answer(whole, double)
        simplify(made, double)
        after = _answer(made, double)
    if not torch.allclose(before, after, rtol=1e-6, atol=1e-6, equal_nan=True):
        raise ValueError(
            "folding batch norms would change what this model computes, as something else reads"
            " the layers in front too; use the model as it is"
        )
    made = made.float().to(memory_format=torch.channels_last)
    pack(made, example.float())
    reset(made)
    return made


def simplify(model: nn.Module, example: Tensor, *, keep: bool = False) -> Folded:
    """Take out, in place, what evaluation does not need; ``keep`` folds no norm.

    Example:
        >>> from primesvt import create_model
        >>> model = create_model("sdt_v2_digits").eval()
        >>> len(simplify(model, torch.rand(2, 1, 8, 8)).folded)
        45
    """
    strip_unused(model)
    merge_head(model)
    folded = fold_norms(model, (example,), keep=keep)
    for module in model.modules():
        if isinstance(module, ConvBN):
            _on_images(module)
    return folded


def _on_images(module: ConvBN) -> None:
    """Let a layer on tokens work on the image: the same sums, without copies to a row."""
    tokens = module.conv
    if not isinstance(tokens, nn.Conv1d) or tokens.kernel_size != (1,) or tokens.stride != (1,):
        return
    if "weight" not in tokens._parameters or tokens.padding != (0,):
        return
    made = nn.Conv2d(tokens.in_channels, tokens.out_channels, 1, groups=tokens.groups, bias=False)
    made.weight = nn.Parameter(tokens.weight.detach().unsqueeze(-1), requires_grad=False)
    if tokens.bias is not None:
        made.bias = nn.Parameter(tokens.bias.detach(), requires_grad=False)
    made._forward_hooks.update(tokens._forward_hooks)
    module.conv = made


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    reset(model)
    answer: Tensor = model(x)
    reset(model)
    return answer
