"""Registries of policies, importance criteria, recoveries, families and export formats by name.

Each kind has a registry. What the package has is a table of names that imports nothing, so that
help texts stay quick; others add theirs by a decorator, or from their own package by an entry
point, which is loaded when its name is first asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Any, TypeVar

__all__ = [
    "CRITERIA",
    "EXPORT_FORMATS",
    "FAMILIES",
    "POLICIES",
    "RECOVERIES",
    "Registry",
    "place_of",
]

Object = TypeVar("Object")


def place_of(thing: Any) -> str:
    """Where a function or class is defined, as ``module:qualname``.

    Example:
        >>> place_of(get_close_matches)
        'difflib:get_close_matches'
    """
    kind = type(thing)
    module = getattr(thing, "__module__", kind.__module__)
    return f"{module}:{getattr(thing, '__qualname__', kind.__qualname__)}"


class Registry(Mapping[str, Any]):
    """Names of one kind of object, such as policies, each loaded when it is first asked for.

    Args:
        kind: what a name stands for, in words, for messages.
        group: entry-point group in which other packages name theirs.
        builtin: name -> ``module:object`` of this package, in the order in which they are listed.

    Example:
        >>> colours = Registry("colour", group="tests.colours", builtin={"pi": "math:pi"})
        >>> @colours("mine")
        ... def mine(): ...
        >>> colours.names(), colours.find("pi")
        (('pi', 'mine'), 3.141592653589793)
        >>> colours.find("red")
        Traceback (most recent call last):
            ...
        ValueError: unknown colour 'red'; known: pi, mine
    """

    def __init__(self, kind: str, *, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group, self.builtin = kind, group, dict(builtin)
        self._registered: dict[str, Any] = {}

    def __call__(self, name: str) -> Callable[[Object], Object]:
        """A decorator that registers a class or function by a name.

        Raises ``ValueError`` where another one has the name.
        """

        def register(thing: Object) -> Object:
            other = self._registered.get(name)
            here = self.builtin.get(name, None if other is None else place_of(other))
            # A module that is imported again makes another object of the same place.
            same = other is thing or (hasattr(thing, "__qualname__") and here == place_of(thing))
            if here is not None and not same:
                raise ValueError(
                    f"{self.kind} {name!r} is already {here}; give {place_of(thing)} another name"
                )
            self._registered[name] = thing
            return thing

        return register

    def __getitem__(self, name: str) -> Any:
        """The object of a name; ``KeyError`` for an unknown one."""
        if name not in self:
            raise KeyError(name)
        return self.find(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def names(self) -> tuple[str, ...]:
        """All names: those of the package in its order, then those of others."""
        return tuple(dict.fromkeys([*self.builtin, *self._registered, *self._entry_points]))

    def check(self, name: str) -> None:
        """Raise ``ValueError`` for an unknown name; nothing is imported."""
        if name not in self.names():
            near = get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(self.names())
            raise ValueError(f"unknown {self.kind} {name!r}; known: {known}{hint}")

    def find(self, name: str) -> Any:
        """The object of a name, imported now if need be; ``ValueError`` for an unknown one.

        So are names that several packages claim, and what cannot be imported from another package.
        """
        self.check(name)
        claims = self._entry_points.get(name, [])
        owners = ["primesvt"] * (name in self.builtin) + [_package(point) for point in claims]
        if len(owners) > 1:
            raise ValueError(
                f"{self.kind} {name!r} is claimed by {' and by '.join(owners)}; uninstall one of "
                "them, or let it choose another name"
            )
        if name not in self._registered:
            if name in self.builtin:
                module, _, attribute = self.builtin[name].partition(":")
                self._registered[name] = getattr(importlib.import_module(module), attribute)
            else:
                self._registered[name] = self._loaded(name, claims[0])
        return self._registered[name]

    def find_class(self, name: str, base: type) -> Any:
        """The class of a name, which must extend a base class and implement what that leaves open.

        Raises ``ValueError`` for anything else.
        """
        found = self.find(name)
        if not (isinstance(found, type) and issubclass(found, base)):
            wanted = f"primesvt.plugins.{base.__name__}"
            raise ValueError(f"{self.kind} {name!r} is {found!r}; it must extend {wanted}")
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            raise ValueError(
                f"{self.kind} {name!r} ({place_of(found)}) must implement {', '.join(missing)}"
            )
        return found

    def _loaded(self, name: str, point: importlib.metadata.EntryPoint) -> Any:
        """The object of an entry point; an error of the other package's is one line."""
        try:
            return point.load()
        except Exception as error:
            raise ValueError(
                f"{self.kind} {name!r} cannot be loaded from {_package(point)} ({point.value}): "
                f"{type(error).__name__}: {error}; mend or uninstall that package"
            ) from error

    @cached_property
    def _entry_points(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        """The names that other packages give by entry points, not loaded yet."""
        found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found


def _package(point: importlib.metadata.EntryPoint) -> str:
    """The name of the package that an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.value


_POLICIES = "primesvt.pruning.policies"
POLICIES = Registry(
    "policy",
    group="primesvt.policies",
    builtin={
        "allocate": f"{_POLICIES}.allocate:Allocate",
        "prime": f"{_POLICIES}.prime:Prime",
        "psvit": f"{_POLICIES}.psvit:Psvit",
        "uniform": f"{_POLICIES}.uniform:Uniform",
        "global": f"{_POLICIES}.global_ranking:Global",
        "random": f"{_POLICIES}.random_rates:Random",
    },
)
CRITERIA = Registry(
    "importance",
    group="primesvt.importances",
    builtin={
        "obs": "primesvt.importance.obs:obs",
        "activity": "primesvt.importance.activity:activity",
        "taylor": "primesvt.importance.activity:taylor",
        "l2": "primesvt.importance.magnitude:l2",
        "l1": "primesvt.importance.magnitude:l1",
        "l2_folded": "primesvt.importance.magnitude:l2_folded",
        "firing_rate": "primesvt.importance.activity:firing_rate",
        "membrane": "primesvt.importance.activity:membrane",
        "random": "primesvt.importance.magnitude:random",
    },
)
RECOVERIES = Registry(
    "recovery",
    group="primesvt.recoveries",
    builtin={
        "match": "primesvt.recovery.recovery:Match",
        "refit": "primesvt.recovery.recovery:Refit",
        "bn": "primesvt.recovery.recovery:BatchNorm",
        "none": "primesvt.recovery.recovery:Recovery",
    },
)
_FAMILIES = "primesvt.models.families"
FAMILIES = Registry(
    "family",
    group="primesvt.families",
    builtin={
        name: f"{_FAMILIES}.{name}:FAMILY"
        for name in (
            "qkformer",
            "sdt_v1",
            "sdt_v2",
            "sdt_v3",
            "sdt_v3_large",
            "spikformer",
            "spikingformer",
            "spikingresformer",
        )
    },
)
EXPORT_FORMATS = Registry(
    "export format",
    group="primesvt.export_formats",
    builtin={
        "onnx": "primesvt.exporting.onnx:OnnxFormat",
        "torch-export": "primesvt.exporting.torch_export:TorchExportFormat",
        "hub": "primesvt.exporting.hub:HubFormat",
    },
)
