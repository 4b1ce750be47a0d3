"""Memory of a network: parameters, buffers, membrane potentials, activations."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from primesvt._files import safetensors_bytes
from primesvt.models import SpikingViT, reset
from primesvt.models.forward import batch_of, hooked, unwrap
from primesvt.models.neurons import IntegerNeuron, own_neurons
from primesvt.models.state import REST, kept_tensors

__all__ = [
    "buffer_bytes",
    "file_bytes",
    "membrane_bytes",
    "parameter_bytes",
    "parameter_count",
    "peak_activation_bytes",
    "watch_decisions",
]


def parameter_count(model: nn.Module) -> int:
    """Number of parameters of a model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, shared ones once: the memory that savings are measured in.

    Example:
        >>> parameter_bytes(nn.Linear(3, 2))
        32
    """
    return sum(p.numel() * p.element_size() for p in model.parameters())


def buffer_bytes(model: nn.Module) -> int:
    """Bytes of all buffers (running statistics of batch norms), shared ones once.

    Example:
        >>> buffer_bytes(nn.BatchNorm2d(4))
        40
    """
    return sum(b.numel() * b.element_size() for b in model.buffers())


def file_bytes(model: nn.Module) -> int:
    """Bytes of ``model.safetensors`` on the disk: all tensors, shared ones under each name.

    Example:
        >>> file_bytes(nn.Linear(3, 2)) - parameter_bytes(nn.Linear(3, 2))  # names and shapes
        144
    """
    state = unwrap(model).state_dict()
    tensors = {name: each.clone() for name, each in state.items() if isinstance(each, Tensor)}
    return len(safetensors_bytes(tensors))


def membrane_bytes(model: nn.Module, example: tuple[Any, ...]) -> int | None:
    """Bytes of all membrane potentials per sample, measured on one forward pass.

    One potential per neuron, whatever the number of time steps; the first axis of the example is
    the batch. A neuron that people wrote counts with the tensors that it keeps. ``None``: not
    counted, as something fires that is no module, or keeps nothing that could be measured.
    """
    sizes: dict[str, int] = {}

    def note(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        current = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        steps = len(current) if getattr(module, "step_mode", "s") == "m" else 1
        sizes[name] = current.numel() // steps * current.element_size()

    def measure(name: str, module: nn.Module, *_: Any) -> None:
        sizes[name] = sum(x.numel() * x.element_size() for x in kept_tensors(module))

    handles = [
        module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, base.MemoryModule)
    ]
    handles += [
        module.register_forward_hook(partial(measure, name))
        for name, module, _ in own_neurons(model)
    ]
    with hooked(handles), watch_decisions(model) as decided:
        _forward(model, example)
    return None if decided else sum(sizes.values()) // batch_of(example)


# Comparisons of real numbers, by which neurons fire.
_DECISIONS = frozenset(
    getattr(torch.ops.aten, name) for name in ("ge", "gt", "le", "lt", "heaviside")
)


@contextmanager
def watch_decisions(model: nn.Module) -> Iterator[list[str]]:
    """The comparisons of real numbers that a forward pass makes outside known neurons.

    Example:
        >>> with watch_decisions(nn.Identity()) as decided:
        ...     _ = (torch.ones(2) > 0.5).float()
        >>> decided
        ['gt']
    """
    watching = _Decisions()
    known = [module for module in model.modules() if _known(module)]
    known += [module for _, module, _ in own_neurons(model) if REST in vars(module)]
    handles = [each.register_forward_pre_hook(watching.enter) for each in known]
    handles += [each.register_forward_hook(watching.leave, always_call=True) for each in known]
    with hooked(handles), watching:
        yield watching.found


def _known(module: nn.Module) -> bool:
    # A model of a family compares numbers elsewhere too; all its neurons are known.
    return isinstance(module, base.MemoryModule | IntegerNeuron | SpikingViT)


class _Decisions(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.depth = 0

    def enter(self, *_: Any) -> None:
        self.depth += 1

    def leave(self, *_: Any) -> None:
        self.depth -= 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket
        if not self.depth and packet in _DECISIONS:
            first = args[0]
            if isinstance(first, Tensor) and first.is_floating_point() and first.ndim:
                self.found.append(packet.__name__)
        return func(*args, **(kwargs or {}))


def peak_activation_bytes(model: nn.Module, example: tuple[Any, ...]) -> int:
    """Peak bytes of the tensors that one forward pass makes.

    Counts every operator's result while it lives, as plain PyTorch runs it: temporary values
    inside an operator are not seen. It is for the whole batch of the example.
    """
    counter = _LiveBytes()
    with counter:
        _forward(model, example)
    return counter.peak


class _LiveBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is None or storage._cdata in given or storage._cdata in self._known:
                continue
            self._known[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage._cdata)
        return result

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


def _forward(model: nn.Module, example: tuple[Any, ...]) -> None:
    """Run one forward pass in evaluation mode, with neurons reset before and after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    reset(model)
    try:
        with torch.no_grad():
            model(*example)
    finally:
        reset(model)
        for module, training in flags:
            module.training = training
