"""``Family``: the functions that every family of models provides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from primesvt.models.config import ModelConfig
from primesvt.models.entry import ModelEntry
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["Family"]

State = Mapping[str, Tensor]


def _as_it_is(state: State) -> State:
    return state


def _nothing(_config: Any) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """The functions by which a family's models are built, recognised and listed.

    Attributes:
        title: the name people use.
        config: sizes and constants of one unpruned model.
        build: a model with fresh weights from a config.
        official_names: our module names (or, for tensors that the official code keeps elsewhere,
            whole tensor names) to the official ones.
        infer: the settings that an official state dict's keys and shapes give away; raises
            ``KeyError`` for a missing tensor.
        entries: the registered sizes; the first is the one the family is known for.
        modernise: an official state dict with older spellings of keys in the present one.
        oddities: what the official code does that one would not expect and that this config
            reproduces, one sentence each; the loader prints them.
        model: the class that ``build`` returns.

    Example:
        >>> from primesvt.models.families import FAMILIES
        >>> FAMILIES["sdt_v2"].config.__name__
        'SDTv2Config'
    """

    title: str
    config: type[ModelConfig]
    build: Callable[[Any], SpikingViT]
    official_names: Callable[[Any], dict[str, str]]
    infer: Callable[[State], dict[str, Any]]
    entries: Callable[[], Iterable[ModelEntry]]
    modernise: Callable[[State], State] = _as_it_is
    oddities: Callable[[Any], tuple[str, ...]] = _nothing
    model: type[SpikingViT] = SpikingViT
