"""Older SpikingJelly code runs on SpikingJelly 2: its module names, classes and arguments are back.

Code for SpikingJelly 0.0.0.0.12 imports ``spikingjelly.clock_driven`` and makes a
``MultiStepLIFNode(backend="cupy")``; code for 0.0.0.0.14 passes ``backend=`` to the neurons of
``spikingjelly.activation_based``. SpikingJelly 2 has none of it. Import such a file and make its
model inside of ``old_spikingjelly``, or call ``install`` once, before the import:

    with primesvt.compat.old_spikingjelly():
        from model import spikformer

        net = spikformer(embed_dims=384)
    net.load_state_dict(torch.load("checkpoint.pth"))

The neurons are SpikingJelly 2's, with the arithmetic, the defaults and the state dict of the old
ones, so all of PrimeSVT knows them. CuPy is never needed: every backend runs as PyTorch. A class of
one's own may change ``neuronal_charge``, ``neuronal_fire`` or ``neuronal_reset``, as it could then.

Differences that are left: potentials of all time steps, ``v_seq``, are kept only by neurons whose
``store_v_seq`` is set, and inputs of another shape start from rest where the old neurons failed.
Names that are not here are an error that names them.

Source: signatures, defaults and arithmetic of the packages ``spikingjelly`` 0.0.0.0.12 and
0.0.0.0.14 on PyPI, whose outputs ``tests/test_compat.py`` compares.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import spikingjelly
import torch
from spikingjelly import activation_based
from spikingjelly.activation_based import base, encoding, functional, layer, neuron, surrogate
from torch import Tensor, nn

from primesvt.models.fast_paths import LIF, PLIF

__all__ = ["install", "kind_of", "old_spikingjelly"]

BACKENDS = ("torch", "cupy", "triton")
_ABSENT = object()


@contextlib.contextmanager
def old_spikingjelly() -> Iterator[None]:
    """Let older SpikingJelly code be imported in a ``with`` block; see the module.

    Afterwards Python's modules are as before, and what was imported and made goes on working.

    Example:
        >>> import sys
        >>> with old_spikingjelly():
        ...     from spikingjelly.clock_driven.neuron import MultiStepLIFNode
        ...     spike = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        >>> spike(torch.full((3, 1), 1.5)).flatten().tolist()
        [0.0, 1.0, 0.0]
        >>> "spikingjelly.clock_driven" in sys.modules
        False
    """
    before = _put(_MODULES)
    try:
        yield
    finally:
        for names, name, value in reversed(before):
            if value is _ABSENT:
                names.pop(name, None)
            else:
                names[name] = value


def install() -> None:
    """Let older SpikingJelly code be imported from now on, in all of this process.

    For code that imports inside of its functions; otherwise ``old_spikingjelly`` is enough.
    """
    _put(_MODULES)


def _put(modules: dict[str, ModuleType]) -> list[tuple[dict[str, Any], str, Any]]:
    """Put modules where Python finds them; what was there before, or ``_ABSENT``."""
    before = []
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        homes: list[tuple[dict[str, Any], str]] = [(sys.modules, path), (_parents[parent], name)]
        for names, key in homes:
            before.append((names, key, names.get(key, _ABSENT)))
            names[key] = module
    return before


def _check_backend(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(
            f"backend is {backend!r}, not one of {', '.join(map(repr, BACKENDS))}: each of them "
            "runs as PyTorch here"
        )
    return backend


class BaseNode(neuron.BaseNode):  # type: ignore[misc]
    """A neuron whose steps are methods: charge from an input, fire, and reset.

    A class of one's own writes ``neuronal_charge``, which sets ``self.v``.

    Example:
        >>> class Doubling(BaseNode):
        ...     def neuronal_charge(self, x):
        ...         self.v = 2 * self.v + x
        >>> spike = Doubling(v_threshold=3.0, step_mode="m")
        >>> spike(torch.ones(3, 1)).flatten().tolist()
        [0.0, 1.0, 0.0]
    """

    v: Any  # the membrane potentials: a number at rest

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        self._start(
            neuron.BaseNode,
            *(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq),
            backend=backend,
        )

    def _start(self, kind: type, *args: Any, backend: str) -> None:
        """Call the constructor of SpikingJelly 2; a gradient that is not given is a sigmoid's."""
        _check_backend(backend)
        *front, gradient, detach_reset, step_mode, store_v_seq = args
        given = surrogate.Sigmoid() if gradient is None else gradient
        kind.__init__(self, *front, given, detach_reset, step_mode, store_v_seq)  # type: ignore[misc]
        self.backend = backend

    def neuronal_charge(self, x: Tensor) -> None:
        """Add the input of a time step to the membrane potentials."""
        raise NotImplementedError(f"{type(self).__name__} has no neuronal_charge: write one")

    def neuronal_fire(self) -> Tensor:
        """Return 1 where the membrane potential has reached the threshold, else 0 (the spikes)."""
        spikes: Tensor = self.surrogate_function(self.v - self.v_threshold)
        return spikes

    def neuronal_reset(self, spike: Tensor) -> None:
        """Set potentials back where neurons fired, or lower them by the threshold."""
        fired = spike.detach() if self.detach_reset else spike
        if self.v_reset is None:
            self.v = self.v - fired * self.v_threshold
        else:
            self.v = (1.0 - fired) * self.v + fired * self.v_reset

    def v_float_to_tensor(self, x: Tensor) -> None:
        """Make the potentials at rest a tensor like the input of a time step."""
        if isinstance(self.v, float):
            self.v = torch.full_like(x, self.v, requires_grad=False)

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Spikes of one time step."""
        if self.in_version_2() is not None:
            return super().single_step_forward(x, *args, **kwargs)
        self.v = self.materialize_states((x,), (self.v,), "s")[0]
        self.neuronal_charge(x)
        spike = self.neuronal_fire()
        self.neuronal_reset(spike)
        return spike

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Spikes of all time steps."""
        if self.in_version_2() is not None:
            return super().multi_step_forward(x_seq, *args, **kwargs)
        spikes, potentials = [], []
        for x in x_seq:
            spikes.append(self.single_step_forward(x, *args, **kwargs))
            potentials.append(self.v)
        if self.store_v_seq:
            self.v_seq = torch.stack(potentials)
        return torch.stack(spikes)

    def in_version_2(self) -> type | None:
        """The class of SpikingJelly 2 whose steps give the same bits, if there is one."""
        return None

    def _steps_as_in(self, kind: type[BaseNode]) -> bool:
        return (
            type(self).neuronal_charge is kind.neuronal_charge
            and type(self).neuronal_fire is BaseNode.neuronal_fire
            and type(self).neuronal_reset is BaseNode.neuronal_reset
        )

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"{super().extra_repr()}, backend={self.backend}"


def kind_of(module: nn.Module) -> type:
    """The class of SpikingJelly 2 that computes the same as a neuron; else the neuron's own class.

    Example:
        >>> kind_of(MultiStepLIFNode(backend="cupy")).__name__, kind_of(nn.ReLU()).__name__
        ('LIFNode', 'ReLU')
    """
    kind = type(module)
    if not isinstance(module, BaseNode):
        return kind
    calls = ("forward", "single_step_forward", "multi_step_forward")
    untouched = all(getattr(kind, name) is getattr(BaseNode, name) for name in calls)
    return (module.in_version_2() if untouched else None) or kind


class IFNode(BaseNode, neuron.IFNode):  # type: ignore[misc]
    """An integrate-and-fire layer, one time step a call unless ``step_mode`` is ``"m"``."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
        *,
        cupy_fp32_inference: bool = False,
    ) -> None:
        self._start(
            neuron.IFNode,
            *(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq),
            backend=backend,
        )

    def neuronal_charge(self, x: Tensor) -> None:
        """Add the input to the membrane potentials."""
        self.v = self.v + x

    def in_version_2(self) -> type | None:
        """SpikingJelly's ``IFNode``, if no class of one's own has other steps."""
        return neuron.IFNode if self._steps_as_in(IFNode) else None


class LIFNode(BaseNode, LIF):
    """A leaky integrate-and-fire layer, one time step a call unless ``step_mode`` is ``"m"``."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
        *,
        cupy_fp32_inference: bool = False,
    ) -> None:
        self._start(
            LIF,
            *(tau, decay_input, v_threshold, v_reset),
            *(surrogate_function, detach_reset, step_mode, store_v_seq),
            backend=backend,
        )

    def neuronal_charge(self, x: Tensor) -> None:
        """Let the membrane potentials leak, and add the input or ``1 / tau`` of it."""
        rests_at_zero = self.v_reset is None or self.v_reset == 0.0
        if self.decay_input:
            self.v = self.v + (x - (self.v if rests_at_zero else self.v - self.v_reset)) / self.tau
        elif rests_at_zero:
            self.v = self.v * (1.0 - 1.0 / self.tau) + x
        else:
            self.v = self.v - (self.v - self.v_reset) / self.tau + x

    def in_version_2(self) -> type | None:
        """SpikingJelly's ``LIFNode``, unless steps or roundings are others."""
        rounds_alike = self.decay_input or self.v_reset
        return neuron.LIFNode if rounds_alike and self._steps_as_in(LIFNode) else None


class ParametricLIFNode(BaseNode, PLIF):
    """A LIF layer whose leak is learned: ``1 / tau`` is ``sigmoid(w)``, ``w`` a scalar."""

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        self._start(
            PLIF,
            *(init_tau, decay_input, v_threshold, v_reset),
            *(surrogate_function, detach_reset, step_mode, store_v_seq),
            backend=backend,
        )

    def neuronal_charge(self, x: Tensor) -> None:
        """Let the membrane potentials leak, and add the input or ``sigmoid(w)`` of it."""
        rests_at_zero = self.v_reset is None or self.v_reset == 0.0
        rate = self.w.sigmoid()
        if self.decay_input:
            self.v = self.v + (x - (self.v if rests_at_zero else self.v - self.v_reset)) * rate
        elif rests_at_zero:
            self.v = self.v * (1.0 - rate) + x
        else:
            self.v = self.v - (self.v - self.v_reset) * rate + x

    def in_version_2(self) -> type | None:
        """SpikingJelly's ``ParametricLIFNode``, unless steps or roundings are others."""
        rounds_alike = self.decay_input or self.v_reset
        return (
            neuron.ParametricLIFNode
            if rounds_alike and self._steps_as_in(ParametricLIFNode)
            else None
        )


class MultiStepIFNode(IFNode):
    """An integrate-and-fire layer of all time steps: ``[T, N, ...]`` to the same shape."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 1 << 6,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, "m", backend)
        self.lava_s_cale = lava_s_cale


class MultiStepLIFNode(LIFNode):
    """A leaky integrate-and-fire layer of all time steps: ``[T, N, ...]`` to the same shape."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 1 << 6,
    ) -> None:
        neuron_args = (v_threshold, v_reset, surrogate_function, detach_reset)
        super().__init__(tau, decay_input, *neuron_args, "m", backend)
        self.lava_s_cale = lava_s_cale


class MultiStepParametricLIFNode(ParametricLIFNode):
    """A LIF layer of all time steps whose leak is learned: ``[T, N, ...]`` to the same shape."""

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        backend: str = "torch",
    ) -> None:
        neuron_args = (v_threshold, v_reset, surrogate_function, detach_reset)
        super().__init__(init_tau, decay_input, *neuron_args, "m", backend)


class _OtherNode(neuron.BaseNode):  # type: ignore[misc]
    """A neuron of SpikingJelly 2 that takes ``backend=``; its steps are no methods."""

    def __init__(self, *args: Any, backend: str = "torch", **kwargs: Any) -> None:
        self.__dict__["backend"] = _check_backend(backend)
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        changed = [n for n in vars(cls) if n in ("neuronal_charge", "neuronal_fire")]
        if changed:
            raise TypeError(
                f"{cls.__name__} writes {changed[0]}, which SpikingJelly 2 calls in no such neuron:"
                " derive it from BaseNode, IFNode, LIFNode or ParametricLIFNode"
            )


class QIFNode(_OtherNode, neuron.QIFNode):  # type: ignore[misc]
    """A quadratic integrate-and-fire layer."""


class EIFNode(_OtherNode, neuron.EIFNode):  # type: ignore[misc]
    """An exponential integrate-and-fire layer."""


class KLIFNode(_OtherNode, neuron.KLIFNode):  # type: ignore[misc]
    """A LIF layer that scales its potentials by a learned factor."""


class MultiStepDropout(layer.Dropout):  # type: ignore[misc]
    """Dropout that is the same at all time steps: ``[T, N, ...]`` to the same shape."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p, step_mode="m")


class MultiStepDropout2d(layer.Dropout2d):  # type: ignore[misc]
    """Dropout of whole channels, the same at all time steps."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p, step_mode="m")


class SurrogateFunctionBase(surrogate.SurrogateFunctionBase):  # type: ignore[misc]
    """What a spike's gradient is taken from: one slope ``alpha``, and two functions of it."""

    def __init__(self, alpha: float, spiking: bool = True) -> None:
        super().__init__(spiking, alpha=alpha)

    def forward(self, x: Tensor) -> Any:
        """Spikes, or smooth values if ``spiking`` is off."""
        chosen = self.spiking_function if self.spiking else self.primitive_function
        return chosen(x, self.alpha)


class MultiArgsSurrogateFunctionBase(surrogate.SurrogateFunctionBase):  # type: ignore[misc]
    """The same with other settings, which a class of one's own keeps and passes itself."""

    def __init__(self, spiking: bool, *args: Any, **kwargs: Any) -> None:
        super().__init__(spiking)


def reset_net(net: nn.Module) -> None:
    """Put back the state of every module that has a method ``reset``.

    Example:
        >>> spike = MultiStepIFNode()
        >>> _ = spike(torch.full((1, 1), 0.5))
        >>> reset_net(spike)
        >>> spike.v
        0.0
    """
    for module in net.modules():
        reset: Any = getattr(module, "reset", None)
        if reset is not None:
            reset()


def set_backend(net: nn.Module, backend: str, instance: Any = (nn.Module,)) -> None:
    """Note a backend in all neurons; each of them runs as PyTorch."""
    _check_backend(backend)
    for module in net.modules():
        if isinstance(module, instance) and hasattr(module, "backend"):
            module.backend = backend


def _module(path: str, like: ModuleType | None, *own: Any, **named: Any) -> ModuleType:
    """Make a module with the names of another and some more."""
    made = ModuleType(path, f"Names of {path} as they were before SpikingJelly 2.")
    vars(made).update({k: v for k, v in vars(like).items() if k[:2] != "__"} if like else {})
    for name in ("__path__", "__file__", "__spec__", "__all__"):
        if like is not None and hasattr(like, name) and path == like.__name__:
            vars(made)[name] = getattr(like, name)
    vars(made).update({thing.__name__: thing for thing in own} | named)

    def absent(name: str) -> Any:
        raise AttributeError(
            f"'{name}' is neither in SpikingJelly 2 nor in primesvt.compat, which stands for "
            f"{path}: define it in your own code"
        )

    made.__getattr__ = absent  # type: ignore[method-assign]
    return made


_BOTH = (BaseNode, IFNode, LIFNode, ParametricLIFNode, QIFNode, EIFNode)
_STEPS = (MultiStepIFNode, MultiStepLIFNode, MultiStepParametricLIFNode)
_BASES = (SurrogateFunctionBase, MultiArgsSurrogateFunctionBase)
_CLOCK = "spikingjelly.clock_driven"
_NORMS = {
    f"MultiStepThresholdDependentBatchNorm{n}d": getattr(layer, f"ThresholdDependentBatchNorm{n}d")
    for n in (1, 2, 3)
}
_clock_driven = _module(_CLOCK, None, __path__=[])
_MODULES = {
    _CLOCK: _clock_driven,
    f"{_CLOCK}.base": base,
    f"{_CLOCK}.encoding": encoding,
    f"{_CLOCK}.neuron": _module(f"{_CLOCK}.neuron", neuron, *_BOTH, *_STEPS),
    f"{_CLOCK}.functional": _module(f"{_CLOCK}.functional", functional, reset_net, set_backend),
    f"{_CLOCK}.surrogate": _module(f"{_CLOCK}.surrogate", surrogate, *_BASES),
    f"{_CLOCK}.layer": _module(
        f"{_CLOCK}.layer", layer, MultiStepDropout, MultiStepDropout2d, **_NORMS
    ),
    **{
        like.__name__: _module(like.__name__, like, *own)
        for like, own in (
            (neuron, (*_BOTH, *_STEPS, KLIFNode)),
            (functional, (reset_net, set_backend)),
            (surrogate, _BASES),
        )
    },
}
_parents = {
    "spikingjelly": vars(spikingjelly),
    "spikingjelly.activation_based": vars(activation_based),
    _CLOCK: vars(_clock_driven),
}
