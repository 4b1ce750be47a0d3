"""The full state of a training at one moment, in one file without pickle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primesvt._files import parse_json, read_safetensors, save_safetensors, validated
from primesvt.distributed import ProcessGroup

__all__ = ["Snapshot", "named", "random_states", "repeatable", "restore_random_states"]


@contextlib.contextmanager
def repeatable(seed: int, threads: int | None, device: torch.device) -> Iterator[None]:
    """Set seed and thread count in a ``with`` block; the caller's are restored after it.

    Example:
        >>> with repeatable(0, 1, torch.device("cpu")):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def random_states(processes: ProcessGroup) -> dict[str, Tensor]:
    """States of torch's random generators of all processes, as ``cpu.RANK`` and ``cuda.RANK``."""
    here = {"cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        here["cuda"] = torch.cuda.get_rng_state(processes.device)
    everywhere = processes.gather(here)
    return {
        f"{kind}.{rank}": s for rank, found in enumerate(everywhere) for kind, s in found.items()
    }


def restore_random_states(states: Mapping[str, Tensor], processes: ProcessGroup) -> None:
    """Restore the generator states of this process, where there are some for its rank.

    ``processes`` may be others than those that were stored.
    """
    if f"cpu.{processes.rank}" in states:
        torch.set_rng_state(states[f"cpu.{processes.rank}"])
    if f"cuda.{processes.rank}" in states:
        torch.cuda.set_rng_state(states[f"cuda.{processes.rank}"], processes.device)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a training: tensors by dotted names, and everything else as plain values.

    Example:
        >>> import tempfile, torch
        >>> moment = Snapshot(tensors={"model.w": torch.ones(2)}, facts={"step": 3})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = Snapshot.load(moment.save(Path(folder) / "state.safetensors"))
        >>> again.facts, again.part("model")["w"].tolist()
        ({'step': 3}, [1.0, 1.0])
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    facts: Mapping[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Select the tensors whose names begin with ``name.``; that prefix is taken off."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def save(self, path: Path) -> Path:
        """Write the file, whole or not at all."""
        return save_safetensors(path, self.tensors, metadata={"facts": json.dumps(self.facts)})

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read what ``save`` wrote; anything else raises ``ValueError``."""
        try:
            tensors, metadata = read_safetensors(path)
            facts = validated(dict[str, Any], parse_json(metadata["facts"]))
        except KeyError as error:
            raise ValueError(f"{path} is damaged: no {error}; delete it to start anew") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}; delete it to start anew") from error
        return cls(tensors=tensors, facts=facts)


def named(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors with ``name.`` in front of their names; shared ones are copied each.

    Example:
        >>> import torch
        >>> list(named("model", {"w": torch.ones(2)}))
        ['model.w']
    """
    return {f"{name}.{key}": value.detach().clone() for key, value in tensors.items()}
