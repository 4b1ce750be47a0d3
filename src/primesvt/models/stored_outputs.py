"""Reuse the outputs of modules of any network where nothing that they depend on has changed.

Pruned variants of one network begin alike: up to the first layer that differs, the same modules
read the same inputs. Somebody's own forward cannot be entered in the middle; but a module whose
output is stored can give that output instead of computing it, and the forward runs on.

An output is stored under the data and a digest of every parameter and buffer that any operator
reads, and of the plain attributes of every module that begins, before the module ends. So it is the
same by construction.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from primesvt.models.forward import evaluating, hooked, state_tensors
from primesvt.models.neurons import UNIT
from primesvt.models.state import REST, reset

__all__ = ["ActivationCache", "CacheKey", "StoredOutputs"]


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Key of stored values: a place in networks that are equal before it.

    Args:
        inputs: names the data that the networks are run on, always in the same batches.
        block: the place: the block that an activation enters, or the module that gave an output.
        before: tells networks apart that differ in front of that place.
    """

    inputs: Hashable
    block: int | str
    before: Hashable


@dataclass(kw_only=True)
class ActivationCache:
    """Stored activations by key and batch, up to a limit of memory.

    What does not fit is computed again. Data are always read from their first batch on, so the
    first batches of a place stay, and room is made by places that were not asked for longest.

    Args:
        ceiling: bytes that all of them may take together.

    Example:
        >>> import torch
        >>> place = CacheKey(inputs="selection", block=3, before=())
        >>> prefixes = ActivationCache(ceiling=100)
        >>> for batch in range(2):
        ...     prefixes.keep(place, batch, torch.zeros(20))
        >>> [prefixes.find(place, batch) is not None for batch in range(2)]
        [True, False]
    """

    ceiling: int
    taken: int = field(default=0, init=False)
    _kept: dict[CacheKey, dict[int, Any]] = field(default_factory=dict, init=False, repr=False)

    def find(self, place: CacheKey, batch: int) -> Any:
        """The stored values of a batch, not to be written to; ``None`` if there are none."""
        known = self._kept.get(place, {}).get(batch)
        if known is not None:
            self._kept[place] = self._kept.pop(place)  # asked for last
        return known

    def keep(self, place: CacheKey, batch: int, values: Any) -> None:
        """Store values; if memory is short, those least recently used are dropped."""
        size = _bytes(values)
        if size > self.ceiling:
            return
        for old in [other for other in self._kept if other != place]:
            if self.taken + size <= self.ceiling:
                break
            self.taken -= sum(map(_bytes, self._kept.pop(old).values()))
        if self.taken + size <= self.ceiling:
            self._kept.setdefault(place, {})[batch] = values
            self.taken += size


def _bytes(values: Any) -> int:
    tensors = (x for x in tree_leaves(values) if isinstance(x, Tensor))
    return sum(x.untyped_storage().nbytes() for x in tensors)


@dataclass(kw_only=True)
class _Order:
    """The order of one forward: when modules end, and when weights and modules are first needed.

    Times count the beginnings and ends of module calls.

    Attributes:
        writing: modules that write to what they are given, or whose outputs share memory with it or
            with each other; whoever reads that afterwards would miss it.
    """

    ends: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)  # state and modules, by name
    writing: set[str] = field(default_factory=set)


class _Watch(TorchDispatchMode):
    """Notes when every parameter and buffer is first read.

    At the latest it is when its module begins: values can be read past all operators (``tolist``).
    """

    def __init__(self, names: dict[int, list[str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.time, self.order = names, 0, _Order()
        self.given: list[list[tuple[Tensor, int]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                for name in self.names.pop(id(leaf), ()):
                    self.order.needed[name] = self.time
        return func(*args, **(kwargs or {}))

    def enter(
        self, name: str, own: tuple[str, ...], _: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        self.time += 1
        for each in (name, *own):
            self.order.needed.setdefault(each, self.time)
        self.given.append([(x, _version(x)) for x in _tensors((args, kwargs))])

    def leave(self, name: str, _module: nn.Module, _args: Any, out: Any) -> None:
        self.time += 1
        self.order.ends[name] = self.time
        self.order.calls[name] = self.order.calls.get(name, 0) + 1
        given = self.given.pop()
        tensors = [x for x, _ in given] + [x.detach() for x in _tensors(out)]
        places = [x.untyped_storage().data_ptr() for x in tensors]
        made = places[len(given) :]
        apart = len(set(made)) == len(made) and not set(made) & set(places[: len(given)])
        if not apart or any(_version(x) != version for x, version in given):
            self.order.writing.add(name)


def _version(tensor: Tensor) -> int:
    """The number of writes to a tensor; 0 in inference mode, which does not count them."""
    return 0 if tensor.is_inference() else tensor._version


class _Exhausted(Exception):
    """A module is called more often than when its outputs were stored."""


@dataclass(kw_only=True)
class StoredOutputs:
    """Runs networks of one architecture on named batches, reusing outputs of their modules.

    Outputs are stored where another network before, or ``base``, has depended on the same. Modules
    with hooks, and those that leave something in attributes, always run.

    Args:
        cache: where outputs are stored.
        base: the unpruned network, which never changes.

    Example:
        >>> import copy
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2)).eval()
        >>> stored, x = StoredOutputs(cache=ActivationCache(ceiling=1000)), torch.ones(3, 4)
        >>> for each in (net, copy.deepcopy(net), net):
        ...     with torch.no_grad():
        ...         same = torch.equal(stored(each, (x,), data="test", batch=0), net(x))
        >>> same, stored.reused
        (True, 2)
    """

    cache: ActivationCache
    base: nn.Module | None = None
    reused: int = field(default=0, init=False)
    _order: _Order | None = field(default=None, init=False, repr=False)
    _seen: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False)
    _shared: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False)
    _digests: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False
    )

    def __call__(
        self, network: nn.Module, inputs: tuple[Any, ...], *, data: Hashable, batch: int
    ) -> Any:
        """The output of a network with reset neurons, for a batch that ``data`` names."""
        order = self._prepare(network, inputs)
        try:
            with self._in_place_of(network, order, data, batch):
                return network(*inputs)
        except _Exhausted:
            reset(network)
            return network(*inputs)

    def unchanged(self, network: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
        """Names of the modules that see and give the same as in the unpruned network."""
        if self.base is None:
            return set()
        self._prepare(network, inputs)
        known = self._digests[self.base]
        return {name for name, digest in self._digests[network].items() if known[name] == digest}

    def forget(self, network: nn.Module) -> None:
        """Drop what is known about a network, because its weights or buffers were changed."""
        self._digests.pop(network, None)

    def _prepare(self, network: nn.Module, inputs: tuple[Any, ...]) -> _Order:
        """Digests of a network that is new, and on the first call the order of its modules."""
        if self._order is None:
            self._order = _watched(network if self.base is None else self.base, inputs)
        for each in (self.base, network):
            if each is not None and each not in self._digests:
                found = self._digests[each] = _digests(each, self._order)
                self._shared |= self._seen & set(found.items())
                self._seen |= set(found.items())
        return self._order

    @contextlib.contextmanager
    def _in_place_of(
        self, network: nn.Module, order: _Order, data: Hashable, batch: int
    ) -> Iterator[None]:
        """Let modules give stored outputs, and store those that other networks share."""
        changed: list[nn.Module] = []
        made: list[tuple[CacheKey, list[Any], int]] = []
        with contextlib.ExitStack() as stack:
            for name, module in self._largest(network, order):
                key = self._key(network, name, data)
                if key is None:
                    continue
                known = self.cache.find(key, batch)
                if known is not None:
                    module.__dict__["forward"] = partial(_give, deque(known))
                    changed.append(module)
                    self.reused += 1
                else:
                    outputs: list[Any] = []
                    handle = module.register_forward_hook(partial(_take, outputs))
                    stack.callback(handle.remove)
                    made.append((key, outputs, order.calls[name]))
            try:
                yield
            finally:
                for module in changed:
                    del module.__dict__["forward"]
        for key, outputs, calls in made:
            if len(outputs) == calls and all(map(_of_tensors, outputs)):
                self.cache.keep(key, batch, outputs)

    def _key(self, network: nn.Module, name: str, data: Hashable) -> CacheKey | None:
        digest = self._digests[network].get(name)
        if digest is None or (name, digest) not in self._shared:
            return None
        return CacheKey(inputs=data, block=name, before=digest)

    def _largest(self, network: nn.Module, order: _Order) -> Iterator[tuple[str, nn.Module]]:
        """The largest modules that networks share, none inside another."""
        left = deque(network.named_children())
        while left:
            name, module = left.popleft()
            digest = self._digests[network].get(name)
            shared = digest is not None and (name, digest) in self._shared
            ran = name in order.ends and name not in order.writing
            if shared and ran and _pure(module):
                yield name, module
            else:
                left.extend((f"{name}.{n}", m) for n, m in module.named_children())


def _give(outputs: deque[Any], *_: Any, **__: Any) -> Any:
    if not outputs:
        raise _Exhausted
    return tree_map_only(Tensor, Tensor.clone, outputs.popleft())  # it may be written to


def _take(outputs: list[Any], _module: nn.Module, _args: Any, out: Any) -> None:
    outputs.append(tree_map_only(Tensor, _copied, out))


def _copied(x: Tensor) -> Tensor | None:
    """A copy of the same memory layout, or ``None``: rounding may depend on the layout."""
    made = x.detach().clone()
    return made if made.stride() == x.stride() and x.storage_offset() == 0 else None


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _of_tensors(output: Any) -> bool:
    return all(isinstance(leaf, Tensor) for leaf in tree_leaves(output))


def _pure(module: nn.Module) -> bool:
    """Whether a module has weight matrices, and no hooks, state or replaced forward."""
    if not any(p.ndim > 1 for p in module.parameters()):
        return False
    for part in module.modules():
        keeps = REST in vars(part) and UNIT not in vars(part)
        if keeps or part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            return False
    return True


def _watched(network: nn.Module, inputs: tuple[Any, ...]) -> _Order:
    names: dict[int, list[str]] = {}
    state = state_tensors(network)
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    watch = _Watch(names)

    def handles() -> Iterator[Any]:
        for name, module in network.named_modules():
            leaves = (*module._parameters, *module._buffers)
            own = tuple(f"{name}.{leaf}" if name else leaf for leaf in leaves)
            enter = partial(watch.enter, name, tuple(n for n in own if n in state))
            yield module.register_forward_pre_hook(enter, with_kwargs=True)
            yield module.register_forward_hook(partial(watch.leave, name))

    reset(network)
    with evaluating(network), hooked(handles()), watch:
        network(*inputs)
    reset(network)
    for name in state:
        watch.order.needed.setdefault(name, 0)  # nobody was seen to read it
    return watch.order


def _digests(network: nn.Module, order: _Order) -> dict[str, str]:
    """A digest per module of all weights, buffers and attributes that its output depends on."""
    state: dict[str, Any] = {**state_tensors(network), **dict(network.named_modules())}
    events = [(time, 0, name) for name, time in order.needed.items()]
    events += [(time, 1, name) for name, time in order.ends.items()]
    digest, found = hashlib.blake2b(digest_size=16), {}
    for _, end, name in sorted(events):
        if end:
            found[name] = digest.hexdigest()
        else:
            digest.update(name.encode())
            _add(digest.update, state[name])
    return found


def _add(update: Callable[[bytes], None], value: Tensor | nn.Module) -> None:
    if isinstance(value, Tensor):
        update(str((tuple(value.shape), value.dtype)).encode())
        update(_content(value))
        return
    kept = vars(value).get(REST, {})
    plain = [
        (n, _values(v))
        for n, v in sorted(vars(value).items())
        if n not in _OF_TORCH and n not in kept and _is_plain(v)
    ]
    plain += [(n, v.signature) for n, v in vars(value).items() if hasattr(v, "signature")]
    update(repr(plain).encode())


_OF_TORCH = frozenset((*vars(nn.Module()), "_memories", "_memories_rv", REST)) - {"training"}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, Tensor):
        return value.layout is torch.strided and not (value.is_meta or value.is_quantized)
    return value is None or isinstance(value, bool | int | float | str | np.ndarray)


def _values(value: Any) -> Any:
    """Plain values, with digests in place of arrays, whose text would leave most out."""
    if isinstance(value, list | tuple):
        return [_values(part) for part in value]
    if isinstance(value, dict):
        return [(_values(key), _values(part)) for key, part in value.items()]
    if isinstance(value, Tensor | np.ndarray):
        content = value.tobytes() if isinstance(value, np.ndarray) else _content(value)
        return str(value.dtype), tuple(value.shape), hashlib.blake2b(content).hexdigest()
    return value


def _content(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().resolve_conj().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
