"""Widths of channel groups that were not cut, and parameters by block, read from the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from primesvt._files import safetensors_header
from primesvt.channels import trace
from primesvt.channels.plan import example_inputs
from primesvt.models import build_model
from primesvt.report.names import block_of
from primesvt.report.run_files import RunFiles

__all__ = ["BlockSize", "block_sizes", "sizes_of"]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class BlockSize:
    """Parameters of one block; ``before`` is ``None`` for a module that was given in Python."""

    block: str
    before: int | None
    after: int


def sizes_of(run: RunFiles, groups: Sequence[str]) -> dict[str, int]:
    """Channels of each group (per head, where it has heads), as they were when it was probed.

    Groups that were cut stand in the plan; others are found in a trace of the unpruned network,
    which only a registry model allows. Groups that neither tells are left out.
    """
    sizes = {step["group"]: int(step["before"][1]) for step in run.steps}
    if any(name not in sizes for name in groups):
        model = _unpruned(run)
        if model is not None and run.plan.get("inputs"):
            graph = trace(model, example_inputs(run.plan["inputs"]))
            sizes = {group.name: group.size for group in graph} | sizes
    gone = run.reference.get("context", {}).get("lossless_cuts") or {}
    return {name: sizes[name] - gone.get(name, 0) for name in groups if name in sizes}


def block_sizes(run: RunFiles) -> list[BlockSize]:
    """Parameters of every block before and after pruning, in forward order.

    Empty where the files do not add up to the counts in ``metrics.json``.

    Before pruning they are those of the config, after it those of ``model.safetensors``.
    """
    stored = _stored(run)
    model = _unpruned(run)
    buffers = set(dict(model.named_buffers())) if model is not None else set()
    named = {
        name: math.prod(shape)
        for name, shape in stored.items()
        if name not in buffers and name.rpartition(".")[2] not in BUFFERS
    }
    after = _by_block(named)
    if sum(after.values()) != run.metrics["after"]["parameters"]:
        return []
    if model is None:
        return [BlockSize(block=b, before=None, after=n) for b, n in after.items()]
    before = _by_block({name: tensor.numel() for name, tensor in model.named_parameters()})
    if sum(before.values()) != run.metrics["before"]["parameters"]:
        return []
    return [BlockSize(block=b, before=n, after=after.get(b, 0)) for b, n in before.items()]


def _by_block(tensors: Mapping[str, int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, size in tensors.items():
        found[block_of(name)] += size
    return dict(found)


def _unpruned(run: RunFiles) -> nn.Module | None:
    """The network without its weights, where its config is known."""
    config = run.plan.get("config")
    if not config:
        return None
    try:
        with torch.device("meta"):
            return build_model(config)
    except (TypeError, ValueError):  # of another version
        return None


def _stored(run: RunFiles) -> dict[str, Any]:
    """Shapes of the tensors of the pruned model, from the file's head alone."""
    path = run.path / "model" / "model.safetensors"
    if not path.is_file():
        return {}
    try:
        head = safetensors_header(path, whole=False)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; make the run again") from error
    return {name: each["shape"] for name, each in head.items() if name != "__metadata__"}
