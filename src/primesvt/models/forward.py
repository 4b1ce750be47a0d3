"""Run and copy any network: evaluation mode, hooks, example inputs, working copies."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state import at_rest

__all__ = [
    "LAYERS",
    "Layer",
    "batch_of",
    "check_can_be_cut",
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
    check_module(model)
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def owner_of(tensor: str) -> str:
    """The module that applies a stored tensor, by the tensor's name.

    Example:
        >>> owner_of("net.fc.weight"), owner_of("net.fc.parametrizations.weight.original0")
        ('net.fc', 'net.fc')
    """
    module, found, _ = tensor.rpartition("parametrizations.")
    return module.rstrip(".") if found else tensor.rpartition(".")[0]


def applied_weight(model: nn.Module, tensor: str) -> Tensor:
    """A stored weight, or what a parametrization makes of it where that has the same sizes.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))
        >>> torch.equal(applied_weight(layer, "parametrizations.weight.original1"), layer.weight)
        True
    """
    path, _, leaf = tensor.rpartition(".")
    stored: Tensor = getattr(model.get_submodule(path), leaf).detach()
    _, found, rest = tensor.rpartition("parametrizations.")
    if not found:
        return stored
    with torch.no_grad():
        made: Any = getattr(model.get_submodule(owner_of(tensor)), rest.split(".")[0])
    return made.detach() if made.shape == stored.shape else stored


def check_module(model: object) -> None:
    """Raise ``TypeError`` for anything but a torch module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, but must be a torch module")


def check_can_be_cut(model: nn.Module) -> None:
    """Raise ``ValueError`` naming the first part of a network whose tensors nothing can shorten."""
    check_module(model)
    for name, module in model.named_modules():
        where = f"module '{name}'" if name else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{where} is TorchScript, whose weights cannot be cut: give the Python module that "
                "it was made from"
            )
        if "quantized" in type(module).__module__.split("."):
            raise ValueError(
                f"{where} ({type(module).__name__}) is quantized, and its weights cannot be cut: "
                "prune the network before it is quantized"
            )
    for name, tensor in state_tensors(model).items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"sparse ({tensor.layout})"
            raise ValueError(f"'{name}' is {kind} and cannot be cut: make it dense before pruning")


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
    with at_rest(model):
        duplicate = copy_of(model)
    if any(t.is_meta for t in state_tensors(duplicate).values()):
        duplicate = duplicate.to_empty(device="cpu")
        for tensor in state_tensors(duplicate).values():
            tensor.detach().zero_()
    duplicate = duplicate.cpu()
    if double:
        _cast_attributes(duplicate.double(), torch.float64)
        for tensor in state_tensors(duplicate).values():
            if tensor.is_complex():
                tensor.data = tensor.data.to(torch.complex128)
    for parameter in duplicate.parameters():
        parameter.requires_grad_(False)
    return duplicate.eval()


def _cast_attributes(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the tensors that modules keep as plain attributes, which ``Module.to`` leaves."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _PARTS and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                vars(module)[name] = tree_map_only(Tensor, cast, value)


def shorten(model: nn.Module, time_steps: int = 2) -> None:
    """Lower a model's number of time steps, as few of them show the same channel groups as many.

    Somebody's own module keeps its number: it may have weights for every step.
    """
    if isinstance(model, SpikingViT) and model.time_steps > time_steps:
        model.time_steps = time_steps


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a network's first floating-point tensor; single precision without any.

    Example:
        >>> dtype_of(nn.Linear(2, 2).double())
        torch.float64
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def in_its_dtype(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in the dtype of a network all of whose weights have one, such as bfloat16.

    Example:
        >>> in_its_dtype(nn.Linear(2, 2).double(), (torch.zeros(1, 2),))[0].dtype
        torch.float64
    """
    given = {x.dtype for x in tree_leaves(inputs) if is_tensor(x) and x.is_floating_point()}
    own = dtype_of(model)
    if given <= {own} or any(p.is_floating_point() and p.dtype != own for p in model.parameters()):
        return inputs

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(own) if tensor.is_floating_point() else tensor

    cast_inputs: tuple[Any, ...] = tree_map_only(Tensor, cast, inputs)
    return cast_inputs


def example_args(model: nn.Module, example_input: Any, *, double: bool = False) -> tuple[Any, ...]:
    """The example as positional arguments, on the device and in the dtype of the working copy."""
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    own = torch.float64 if double else dtype_of(model)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        tensor = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(own)

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
    if isinstance(model, SpikingViT):
        return _module(model, known)
    return _deep_copy(model, known)


def _deep_copy(model: nn.Module, known: dict[int, Any]) -> nn.Module:
    """``copy.deepcopy`` that also takes what it refuses in modules that people write.

    A kept tensor with a graph, such as a membrane after a training step, is copied without it; an
    object that cannot be copied, such as a lock or an open file, is shared.
    """
    held = [(m, name, v) for m in model.modules() for name, v in vars(m).items()]
    for _, _, value in held:
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                known[id(leaf)] = leaf.detach().clone()
    try:
        return copy.deepcopy(model, dict(known))
    except Exception:  # copying runs whatever code the objects have
        for module, name, value in held:
            if name not in _PARTS and not _can_be_copied(value, known):
                if isinstance(value, Tensor):
                    kind = type(module).__name__
                    raise ValueError(
                        f"'{name}' of a {kind} cannot be copied; make it a parameter or buffer"
                    ) from None
                known[id(value)] = value
        return copy.deepcopy(model, known)


_PARTS = ("_parameters", "_buffers", "_modules")


def _can_be_copied(value: Any, known: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(known))
    except Exception:
        return False
    return True


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
