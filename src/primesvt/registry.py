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
    "where",
]

Object = TypeVar("Object")


def where(thing: Any) -> str:
    """Where a function or class is defined, as ``module:qualname``.

    Example:
        >>> where(get_close_matches)
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
            here = self.builtin.get(name) or (where(other) if other is not None else None)
            named = hasattr(thing, "__qualname__")  # imported again it is another object
            if here not in (None, where(thing)) or (other not in (None, thing) and not named):
                raise ValueError(
                    f"{self.kind} {name!r} is already {here}; give {where(thing)} another name"
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
        """The object of a name, imported now if need be; ``ValueError`` for an unknown one."""
        self.check(name)
        if name not in self._registered:
            builtin = self.builtin.get(name)
            if builtin:
                module, _, attribute = builtin.partition(":")
                self._registered[name] = getattr(importlib.import_module(module), attribute)
            else:
                self._registered[name] = self._entry_points[name].load()
        return self._registered[name]

    @cached_property
    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        """The names that other packages give by entry points, not loaded yet."""
        found = importlib.metadata.entry_points(group=self.group)
        return {point.name: point for point in found if point.name not in self.builtin}


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
