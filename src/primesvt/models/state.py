"""What networks keep between forwards: reset it, find it in anybody's modules, draw alike."""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from primesvt.models.neurons import UNIT, noting_neurons

__all__ = [
    "Behaviour",
    "at_rest",
    "attribute_of",
    "drawing_alike",
    "held_tensors",
    "hold",
    "memories",
    "reset",
    "settle",
    "tensors_in",
    "unrepeatable",
]

REST = "_primesvt_rest"  # of a module: the attributes that a forward changes, as they are at rest
DRAWS = "_primesvt_draws"  # of a network: its forward draws random numbers
ABSENT = "absent"  # marks an attribute that is not there at rest
SEED = 2024


def reset(model: nn.Module) -> None:
    """Put back what every module of a network keeps between forwards, such as its potentials.

    SpikingJelly's modules are reset; of other modules, the attributes are put back that ``settle``
    has seen a forward change.

    Example:
        >>> from primesvt.models import lif
        >>> layer = lif()
        >>> _ = layer(torch.ones(1, 2))
        >>> reset(layer)
        >>> layer.v
        0.0
    """
    for module in _keepers(model):
        if REST in module.__dict__:
            for name, value in module.__dict__[REST].items():
                _put_back(module, name, value)
        if isinstance(module, base.MemoryModule):
            module.reset()


def kept_tensors(module: nn.Module) -> list[Tensor]:
    """The tensors of real numbers that a module keeps after a forward, as ``settle`` has seen.

    Example:
        >>> class Adds(nn.Module):
        ...     total = 0.0
        ...     def forward(self, x):
        ...         self.total = self.total + x
        ...         return self.total
        >>> net, x = Adds(), torch.ones(2)
        >>> _ = settle(net, (x,)), net(x)
        >>> [tuple(each.shape) for each in kept_tensors(net)]
        [(2,)]
    """
    now = [vars(module).get(name) for name in vars(module).get(REST, ())]
    now += [module._buffers[name] for name in vars(module).get(REST, ()) if name in module._buffers]
    return [tensor for tensor in tensors_in(now) if tensor.is_floating_point()]


def memories(*models: nn.Module) -> list[base.MemoryModule]:
    """Every stateful SpikingJelly module inside some modules; shared ones several times.

    Example:
        >>> from primesvt.models import lif
        >>> len(memories(nn.Sequential(nn.Linear(2, 2), lif()), lif()))
        2
    """
    return [module for module in _keepers(*models) if isinstance(module, base.MemoryModule)]


def _keepers(*models: nn.Module) -> list[nn.Module]:
    """Modules that keep something between forwards, as far as is known."""
    left = list(models)
    found: list[nn.Module] = []
    while left:  # model.modules() makes the names of all, and takes ten times as long
        module = left.pop()
        if isinstance(module, base.MemoryModule) or REST in module.__dict__:
            found.append(module)
        parts = module._modules
        if parts:
            left += [part for part in parts.values() if part is not None]
    return found


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the forwards of a network depend on each other.

    Attributes:
        state: attributes that a forward changes and a later one is influenced by, such as
            ``layer1.mem``.
        draws: the forward draws random numbers, of torch, numpy or Python.
        repeatable: two forwards with the same state and seeds agree.
    """

    state: tuple[str, ...] = ()
    draws: bool = False
    repeatable: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for a result, on what was done about state and randomness."""
        found = []
        if self.state:
            shown = ", ".join(self.state[:3]) + (", ..." if len(self.state) > 3 else "")
            found.append(f"State between forwards is put back before every batch: {shown}.")
        if self.draws:
            found.append(
                "The forward draws random numbers: every network is measured with the same ones, "
                "and other seeds would give other accuracies."
            )
        return tuple(found)


def settle(model: nn.Module, args: tuple[Any, ...]) -> Behaviour:
    """Find what a forward of somebody's network leaves behind, so that ``reset`` puts it back.

    The network is run on the same inputs a few times, with its state put back or left and with
    seeds alike or different. Methods such as ``reset`` or ``reset_mem`` of its modules are called
    first; afterwards it is at rest.

    Args:
        model: a copy to work on, in evaluation mode; attributes that note the state are added.
        args: its inputs.

    Raises:
        ValueError: the forward fails, or a module still holds what an earlier forward left and has
            no method that resets it.

    Example:
        >>> class Counter(nn.Module):
        ...     calls = 0
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x * self.calls
        >>> net = Counter()
        >>> settle(net, (torch.ones(1),)).state
        ('calls',)
        >>> net(torch.ones(1)).item(), reset(net), net(torch.ones(1)).item()
        (1.0, None, 1.0)
    """
    if getattr(type(model), "resets_itself", False):
        reset(model)
        return Behaviour()
    _reset_as_they_do(model, args)
    reset(model)
    before = _Kept(model)
    with drawing_alike(model, always=True), noting_neurons(model):
        first = _answer(model, args)
    changed = before.changes()
    with drawing_alike(model, always=True):
        second = _answer(model, args)
    for module, _, name in changed:
        module.__dict__.setdefault(REST, {})[name] = before.rest(module, name)
    again: list[Tensor] = []
    others: list[Tensor] = []
    for found, number in ((again, 0), (others, 1)):
        reset(model)
        with drawing_alike(model, number, always=True):
            found += _answer(model, args)
    reset(model)
    names = tuple(f"{path}.{name}" if path else name for _, path, name in changed)
    carries = not _same(first, second)
    behaviour = Behaviour(
        state=names if carries else (),
        draws=_same(first, again) and not _same(first, others),
        repeatable=_same(first, again),
    )
    if carries:
        _check_fresh(changed)
    if behaviour.draws:
        model.__dict__[DRAWS] = True
    return behaviour


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Reset a network of the user's in a ``with`` block; what SpikingJelly keeps is then put back.

    Example:
        >>> from primesvt.models import lif
        >>> layer = lif()
        >>> _ = layer(torch.full((1, 2), 0.5))
        >>> with at_rest(layer):
        ...     layer.v
        0.0
        >>> layer.v.tolist()
        [0.25, 0.25]
    """
    kept = [(module, dict(module._memories)) for module in memories(model)]
    reset(model)
    try:
        yield
    finally:
        for module, values in kept:
            module._memories.update(values)


def unrepeatable(model: nn.Module) -> str:
    """What to tell of a network of which two forwards on the same input differ."""
    return (
        f"two forwards of {type(model).__name__} on the same input differ, with the same seeds and "
        "with what its modules keep put back: it draws random numbers that no seed sets, writes to "
        "its parameters, or keeps something outside of its modules' attributes; make its forward "
        "in evaluation mode repeatable"
    )


@contextlib.contextmanager
def drawing_alike(model: nn.Module, number: int = 0, *, always: bool = False) -> Iterator[None]:
    """Seed all generators in a ``with`` block, for a network that draws random numbers.

    What they would have drawn afterwards stays as it was.

    Args:
        model: nothing is done for one of which ``settle`` has not seen that it draws.
        number: of the batch; each has draws of its own.
        always: for any network.
    """
    if not (always or DRAWS in model.__dict__):
        yield
        return
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[d for d in devices if d.index is not None]):
        torch.manual_seed(SEED + number)
        random.seed(SEED + number)
        np.random.seed(SEED + number)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _answer(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that a forward gives, copied: a network may write to them in the next one."""
    try:
        with torch.no_grad():
            found = model(*args)
    except Exception as error:  # whatever a foreign forward raises is the finding
        shapes = ", ".join(str(list(x.shape)) for x in tree_leaves(args) if isinstance(x, Tensor))
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"the forward of {type(model).__name__} fails on an input of shape {shapes} "
            f"({type(error).__name__}: {line}); give inputs that it takes, or correct it"
        ) from error
    return [tensor.clone() for tensor in tensors_in(found)]


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in what a forward gives: in containers, data classes and other plain objects.

    Example:
        >>> from types import SimpleNamespace
        >>> one = torch.ones(1)
        >>> len(tensors_in({"logits": one, "more": [SimpleNamespace(features=(one, 2))]}))
        2
    """
    found: list[Tensor] = []
    left, seen = deque([value]), {}
    while left:
        item = left.popleft()
        if isinstance(item, Tensor):
            found.append(item)
        elif id(item) not in seen and not callable(item) and not isinstance(item, _NO_CONTAINERS):
            seen[id(item)] = item  # kept, so that no other object gets its id
            if isinstance(item, Mapping):
                left += [*item.keys(), *item.values()]
            elif isinstance(item, Sequence | Set | deque):
                left += item
            else:
                left += getattr(item, "__dict__", {}).values()
                left += [getattr(item, n, None) for n in getattr(type(item), "__slots__", ())]
    return found


_NO_CONTAINERS = (bool, int, float, complex, str, bytes, np.ndarray)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    return bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


# Of every module, beside its parameters; SpikingJelly's memories are reset by themselves.
_TORCH = frozenset(vars(nn.Module())) | {REST, DRAWS, UNIT, "_memories", "_memories_rv"}
_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_SHARED = (type, nn.Module, FunctionType, MethodType, BuiltinFunctionType, ModuleType)


def held_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules keep as plain attributes, or in a list, tuple or dict that is one.

    What a forward changes is left out, as far as ``settle`` has seen it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.scale, layer.shifts = torch.ones(2), [0.0, torch.zeros(2)]
        >>> list(held_tensors(nn.Sequential(layer)))
        ['0.scale', '0.shifts[1]']
    """
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        changing = vars(module).get(REST, {})
        for name, value in vars(module).items():
            if name in _TORCH or name in changing:
                continue
            start = f"{path}.{name}" if path else name
            if isinstance(value, Tensor):
                found[start] = value
            for key, part in _entries(value):
                if isinstance(part, Tensor) and "." not in f"{key!r}":
                    found[f"{start}[{key!r}]"] = part
    return found


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if type(value) in (list, tuple):
        return enumerate(value)
    return value.items() if type(value) in (dict, OrderedDict) else ()


def hold(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put another tensor in the place of one that ``held_tensors`` has found.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.shifts = (0.0, torch.zeros(2))
        >>> hold(layer, "shifts[1]", torch.ones(1))
        >>> layer.shifts
        (0.0, tensor([1.]))
    """
    path, _, leaf = name.rpartition(".")
    own, (leaf, _, rest) = vars(model.get_submodule(path)), leaf.partition("[")
    old = own[leaf]
    if not rest:
        own[leaf] = tensor
    elif isinstance(old, tuple):
        own[leaf] = tuple(tensor if f"{i}]" == rest else part for i, part in enumerate(old))
    else:
        key = next(key for key, _ in _entries(old) if f"{key!r}]" == rest)
        old[key] = tensor


def attribute_of(model: nn.Module) -> dict[int, str]:
    """Names of the attributes in which modules keep tensors, however deep, by the tensors' ids.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.tables = {"a": [torch.ones(2)]}
        >>> list(attribute_of(nn.Sequential(layer)).values())
        ["'tables' of module '0'"]
    """
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _TORCH and not isinstance(value, (*_SHARED, *_GENERATORS)):
                where = f" of module '{path}'" if path else ""
                for tensor in tensors_in(value):
                    found.setdefault(id(tensor), f"'{name}'{where}")
    return found


class _Kept:
    """The attributes and buffers of all modules of a network, at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.named_modules())
        self.found = {module: _attributes(module) for _, module in self.modules}
        known: dict[int, Any] = {}
        self.copies = {
            module: {name: _copied(value, known) for name, value in found.items()}
            for module, found in self.found.items()
        }

    def changes(self) -> list[tuple[nn.Module, str, str]]:
        """What is no longer as it was: the module, its path and the attribute's name."""
        changed = []
        for path, module in self.modules:
            now, was = _attributes(module), self.found[module]
            changed += [
                (module, path, name)
                for name in [*was, *(n for n in now if n not in was)]
                if name not in now or name not in was or not self._as_it_was(module, name, now)
            ]
        return changed

    def _as_it_was(self, module: nn.Module, name: str, now: dict[str, Any]) -> bool:
        before, value = self.copies[module][name], now[name]
        if value is not self.found[module][name]:
            plain = isinstance(value, bool | int | float | str)
            return plain and type(value) is type(before) and value == before
        return _unchanged(value, before, set())

    def rest(self, module: nn.Module, name: str) -> Any:
        """The value of an attribute at that moment."""
        return self.copies[module].get(name, ABSENT)


def _attributes(module: nn.Module) -> dict[str, Any]:
    own = {name: value for name, value in vars(module).items() if name not in _TORCH}
    return own | dict(module._buffers)


def _contents(value: Any) -> dict[str, Any] | None:
    """The attributes of a plain object; ``None`` of anything else."""
    if isinstance(value, (*_SHARED, *_GENERATORS, Tensor, np.ndarray)):
        return None
    return getattr(value, "__dict__", None)


def _copied(value: Any, known: dict[int, Any] | None = None) -> Any:
    """Copy tensors, generators and what holds them; modules, functions and the like are shared."""
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)][1]
    made: Any = value
    if isinstance(value, Tensor):
        made = value.detach().clone()
    elif isinstance(value, np.ndarray):
        made = value.copy()
    elif isinstance(value, _GENERATORS):
        made = _State(of=type(value), state=_state_of(value))
    elif type(value) is tuple:
        made = tuple(_copied(part, known) for part in value)
    elif isinstance(value, _CONTAINERS) or _contents(value) is not None:
        with contextlib.suppress(Exception):  # an object may refuse to be copied: it is shared
            made = copy.copy(value)
            known[id(value)] = (value, made)
            _fill(made, value, lambda part: _copied(part, known))
    known[id(value)] = (value, made)  # kept, so that no other object gets its id
    return made


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a random generator would draw next."""

    of: type
    state: Any


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return None if isinstance(generator, random.SystemRandom) else generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    elif state is not None:
        generator.setstate(state)


def _fill(into: Any, source: Any, make: Callable[[Any], Any]) -> None:
    """Make the contents of one container or plain object those of another of its type."""
    if isinstance(source, dict):
        made = {key: make(part) for key, part in source.items()}
        into.clear()
        into.update(made)
    elif isinstance(source, set):
        kept = set(source)
        into.clear()
        into.update(kept)
    elif isinstance(source, list | deque):
        parts = [make(part) for part in source]
        into.clear()
        into.extend(parts)
    own = _contents(source)
    if own is not None:
        contents = {name: make(part) for name, part in own.items()}
        vars(into).clear()
        vars(into).update(contents)


def _unchanged(now: Any, before: Any, seen: set[int]) -> bool:
    """Whether a value is what its copy shows."""
    if isinstance(before, _State):
        return type(now) is before.of and _unchanged(_state_of(now), before.state, seen)
    if isinstance(now, Tensor) and isinstance(before, Tensor):
        return _equal(now, before)
    if type(now) is not type(before):
        return False
    if isinstance(now, np.ndarray):
        return bool(now.shape == before.shape and now.tobytes() == before.tobytes())
    if isinstance(now, bool | int | float | complex | str | bytes):
        return bool(now == before or now != now)
    if id(now) in seen or now is before:
        return True
    seen.add(id(now))
    if isinstance(now, set):
        return bool(now == before)
    parts = list(_parts(now)), list(_parts(before))
    return len(parts[0]) == len(parts[1]) and all(
        _unchanged(a, b, seen) for a, b in zip(*parts, strict=True)
    )


def _parts(value: Any) -> list[Any]:
    """What a container or plain object holds."""
    held: list[Any] = []
    if isinstance(value, dict):
        held += [part for pair in value.items() for part in pair]
    elif isinstance(value, list | tuple | deque):
        held += value
    return held + [part for pair in (_contents(value) or {}).items() for part in pair]


def _put_back(module: nn.Module, name: str, value: Any) -> None:
    if isinstance(value, str) and value == ABSENT:
        if name in vars(module) or name in module._buffers:
            delattr(module, name)
        return
    now = vars(module).get(name, module._buffers.get(name))
    fresh = _again(now, value)
    if isinstance(fresh, Tensor) and isinstance(now, Tensor):
        fresh = fresh.to(now.device, now.dtype if now.is_floating_point() else fresh.dtype)
    if name in module._buffers:
        module._buffers[name] = fresh
    else:
        vars(module)[name] = fresh


def _again(now: Any, rest: Any) -> Any:
    """What was kept, in the same object where there still is one: others may hold it too."""
    if isinstance(rest, _State):
        if type(now) is rest.of:
            _set_state(now, rest.state)
        return now
    if isinstance(now, Tensor) and isinstance(rest, Tensor) and _equal(now, rest):
        return now
    if type(now) is type(rest) and not isinstance(rest, Tensor):
        if isinstance(rest, np.ndarray) and now.shape == rest.shape:
            now[...] = rest
            return now
        if isinstance(rest, _CONTAINERS) or _contents(rest) is not None:
            if now is not rest:
                _refill(now, rest)
            return now
    return _copied(rest)


def _refill(now: Any, rest: Any) -> None:
    """Put back the contents of a container or plain object, part by part."""
    held = dict(now) if isinstance(now, dict) else {}
    held |= dict(enumerate(now)) if isinstance(now, list | deque) else {}
    held |= _contents(now) or {}
    places = iter([*rest, *(_contents(rest) or {})] if isinstance(rest, dict) else _places(rest))
    _fill(now, rest, lambda part: _again(held.get(next(places)), part))


def _places(rest: Any) -> list[Any]:
    counted = list(range(len(rest))) if isinstance(rest, list | deque) else []
    return counted + list(_contents(rest) or {})


# Methods without arguments by which spiking modules forget, where they have one: BrainCog's,
# snnTorch's, and what people call their own.
_RESETS = ("reset", "n_reset", "reset_mem", "reset_state", "reset_states", "reset_net")


def _reset_as_they_do(model: nn.Module, args: tuple[Any, ...]) -> None:
    """Call what modules have to reset themselves, for the attributes that a forward changes.

    Everything else stays: some of these methods start a training anew.
    """
    resets = [method for module in model.modules() for method in _resets_of(module)]
    if not resets:
        return
    before = _Kept(model)
    try:
        with drawing_alike(model, always=True):
            _answer(model, args)
    except ValueError:  # what an earlier forward left may not fit these inputs
        _call(model, resets)
        with drawing_alike(model, always=True):
            _answer(model, args)
    changed = {(module, name) for module, _, name in before.changes()}
    between = _Kept(model)
    reset(model)
    _call(model, resets)
    done = changed & {(module, name) for module, _, name in between.changes()}
    for module, _, name in before.changes():
        if (module, name) not in done:
            _put_back(module, name, before.rest(module, name))


def _call(model: nn.Module, resets: list[Callable[[], Any]]) -> None:
    """Call methods one by one; parameters keep their values."""
    weights = [(p, p.detach().clone()) for p in model.parameters()]
    for method in resets:
        with contextlib.suppress(Exception):  # it may need what is not there before a forward
            method()
    for parameter, before in weights:
        if not torch.equal(parameter, before):
            parameter.data.copy_(before)


def _resets_of(module: nn.Module) -> list[Callable[[], Any]]:
    found: list[Callable[[], Any]] = []
    if type(module).__module__.startswith(("torch.", "spikingjelly.", "primesvt.")):
        return found
    for name in _RESETS:
        method = getattr(module, name, None)
        if inspect.ismethod(method) and method.__self__ is module:
            try:
                inspect.signature(method).bind()
            except TypeError:
                continue
            found.append(method)
    return found


def _check_fresh(changed: list[tuple[nn.Module, str, str]]) -> None:
    """Raise ``ValueError`` where what would be put back is what an earlier forward left."""
    for module, path, name in changed:
        value = module.__dict__[REST][name]
        stale = isinstance(value, Tensor) and name not in module._buffers and bool(value.any())
        if stale and not _resets_of(module):
            raise ValueError(
                f"module '{path}' ({type(module).__name__}) still holds '{name}' of an earlier "
                "forward and has no method that resets it; give a network that has run nothing, or "
                "give the class a method reset()"
            )
