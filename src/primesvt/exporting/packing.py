"""Convolutions with weights stored in oneDNN's layout, so that no call has to reorder them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from primesvt.models.forward import hooked

__all__ = ["PackedConv2d", "pack"]


class PackedConv2d(nn.Module):
    """A ``Conv2d`` for inference on this CPU, of float32 inputs ``[N, C, H, W]``.

    The weights are packed once, for inputs of about the given size; others are answered too.
    """

    def __init__(self, conv: nn.Conv2d, size: torch.Size) -> None:
        super().__init__()
        self.settings = (conv.padding, conv.stride, conv.dilation, conv.groups)
        weight = conv.weight.detach()
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self.weight = reorder(weight.to_mkldnn(), *self.settings, size)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.shape = tuple(weight.shape)
        self.run = torch.ops.mkldnn._convolution_pointwise.default

    def __deepcopy__(self, _: dict[int, Any]) -> PackedConv2d:
        return self  # nothing in it ever changes, and packed tensors cannot be copied

    def extra_repr(self) -> str:
        return f"weight={list(self.shape)}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.run(x, self.weight, self.bias, *self.settings, "none", [], "")
        return out


def pack(model: nn.Module, example: Tensor) -> None:
    """Replace every 2-D convolution that the example runs through by a packed one, in place.

    Without oneDNN, which not every build of PyTorch has, everything stays.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
        >>> pack(net, torch.rand(2, 1, 8, 8))
        >>> net(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 4, 6, 6])
    """
    # Both are what torch.compile runs on a CPU; they are not part of the documented interface.
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return
    if not torch.backends.mkldnn.is_available():
        return
    for name, size in _sizes(model, example).items():
        conv = model.get_submodule(name)
        if isinstance(conv, nn.Conv2d) and len(size) == 4 and _plain(conv):
            model.set_submodule(name, PackedConv2d(conv, size))


def _plain(conv: nn.Conv2d) -> bool:
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and "weight" in conv._parameters and conv.weight.dtype == torch.float32


def _sizes(model: nn.Module, example: Tensor) -> dict[str, torch.Size]:
    """The input shape of every convolution, by name."""
    found: dict[str, torch.Size] = {}

    def note(_: nn.Module, args: tuple[Tensor, ...], name: str) -> None:
        found.setdefault(name, args[0].shape)

    handles = (
        module.register_forward_pre_hook(partial(note, name=name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    )
    with hooked(handles), torch.no_grad():
        model(example)
    return found
