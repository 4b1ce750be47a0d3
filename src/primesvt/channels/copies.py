"""The working copy that a trace or a check runs on, and the tensors of a model by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from primesvt.models.forward import copy_of
from primesvt.models.neurons import reset


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name; shared ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel and ``torch.compile`` wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def working_copy(model: nn.Module, *, double: bool = False) -> nn.Module:
    """A CPU copy in evaluation mode with reset neurons; meta tensors become zeros."""
    model = unwrap(model)
    reset(model)
    duplicate = copy_of(model)
    if any(t.is_meta for t in state_tensors(duplicate).values()):
        duplicate = duplicate.to_empty(device="cpu")
        for tensor in state_tensors(duplicate).values():
            tensor.detach().zero_()
    duplicate = duplicate.cpu()
    duplicate = duplicate.double() if double else duplicate
    for parameter in duplicate.parameters():
        parameter.requires_grad_(False)
    return duplicate.eval()


def shorten(model: nn.Module, time_steps: int = 2) -> None:
    """Few time steps tell the same groups as many."""
    steps = getattr(model, "time_steps", None)
    if isinstance(steps, int) and steps > time_steps:
        model.time_steps = time_steps  # type: ignore[assignment]


def example_args(model: nn.Module, example_input: Any, *, double: bool = False) -> tuple[Any, ...]:
    """The example as positional arguments, on the device and in the dtype of the working copy."""
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    reference = next(iter(state_tensors(model).values()), torch.empty(0))

    def move(tensor: torch.Tensor) -> torch.Tensor:
        tensor = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float64 if double else reference.dtype)

    return tuple(tree_map_only(torch.Tensor, move, args))


def is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
