"""Run and copy any network: evaluation mode, hooks, example inputs, working copies."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from primesvt.models.neurons import reset
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "LAYERS",
    "NORMS",
    "Layer",
    "batch_of",
    "check_no_nan",
    "copy_of",
    "evaluating",
    "first_samples",
    "hooked",
]


def first_samples(args: tuple[Any, ...], samples: int = 2) -> tuple[Any, ...]:
    """The first samples of a batch, which are enough to trace with; several inputs stay whole.

    Example:
        >>> import torch
        >>> first_samples((torch.zeros(64, 1, 8, 8),))[0].shape
        torch.Size([2, 1, 8, 8])
    """
    args = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), args)
    if len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim > 1:
        return (args[0][:samples],)
    return args


def batch_of(example: tuple[Any, ...]) -> int:
    """Samples in example inputs: the first axis of the first tensor."""
    return next((len(x) for x in tree_leaves(example) if isinstance(x, Tensor) and x.ndim), 1)


Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode and without gradients; ``training`` flags are restored."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks, given by the handles of their registration, when the ``with`` block ends.

    Example:
        >>> layer, shapes = nn.Linear(2, 3), []
        >>> def note(module, args, output):
        ...     shapes.append(tuple(output.shape))
        >>> with hooked(m.register_forward_hook(note) for m in layer.modules()):
        ...     _ = layer(torch.zeros(1, 2))
        >>> _ = layer(torch.zeros(5, 2))
        >>> shapes
        [(1, 3)]
    """
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name; shared ones under each of their names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, but must be a torch module")
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
    """Lower a model's number of time steps, as few of them show the same channel groups as many."""
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


_PLAIN = (type(None), bool, int, float, complex, str, bytes, type)
_CONTAINERS = (dict, set, list, tuple, OrderedDict)


def copy_of(model: nn.Module, *, shared: Iterable[nn.Module] = ()) -> nn.Module:
    """Copy a network as ``copy.deepcopy`` does, except for modules that both shall share.

    For our own models, whose modules hold little beside tensors and plain values, several times as
    quick.

    Args:
        model: the network; neuron states have to be reset.
        shared: modules that the copy has in common with it.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v2_digits")
        >>> other = copy_of(model, shared=[model.head])
        >>> other.head is model.head, other.blocks[0] is model.blocks[0]
        (True, False)
    """
    known: dict[int, Any] = {id(module): module for module in shared}
    if not isinstance(model, SpikingViT):
        return copy.deepcopy(model, known)
    return _module(model, known)


def _module(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    if id(module) in known:
        found: nn.Module = known[id(module)]
        return found
    made = known[id(module)] = type(module).__new__(type(module))
    own = made.__dict__
    for name, value in vars(module).items():
        own[name] = value if isinstance(value, _PLAIN) else _value(name, value, known)
    return made


def _value(name: str, value: Any, known: dict[int, Any]) -> Any:
    """Copy an attribute of a module: containers of plain values directly, all else deeply."""
    kind = type(value)
    if kind in _CONTAINERS and not value:
        return kind()
    if name == "_modules":
        return {key: None if part is None else _module(part, known) for key, part in value.items()}
    if kind is dict and value and all(isinstance(part, Tensor) for part in value.values()):
        return {key: _tensor(part, known) for key, part in value.items()}
    if kind in _CONTAINERS:
        parts = value.values() if isinstance(value, dict) else value
        if all(isinstance(part, _PLAIN) for part in parts):
            return value if kind is tuple else value.copy()
    return copy.deepcopy(value, known)


def _tensor(tensor: Tensor, known: dict[int, Any]) -> Any:
    if id(tensor) not in known:
        copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        known[id(tensor)] = (
            nn.Parameter(copied, tensor.requires_grad) if type(tensor) is nn.Parameter else copied
        )
    return known[id(tensor)]


def check_no_nan(model: nn.Module) -> None:
    """Raise ``ValueError`` naming the first tensor of a model that holds NaN."""
    for name, tensor in state_tensors(model).items():
        if tensor.is_meta:
            raise ValueError(f"'{name}' is on the meta device, without values; load weights first")
        if bool(tensor.isnan().any()):
            raise ValueError(
                f"'{name}' holds NaN: give the weights of a training that did not diverge"
            )
