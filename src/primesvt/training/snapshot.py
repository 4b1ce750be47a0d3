"""The full state of a training at one moment, in one file without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from primesvt._files import save_safetensors

__all__ = ["Snapshot", "named"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Tensors by dotted names, and everything else as plain values.

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
        """The tensors under a name, by the rest of theirs."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def save(self, path: Path) -> Path:
        """Write the file, whole or not at all."""
        return save_safetensors(path, self.tensors, metadata={"facts": json.dumps(self.facts)})

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read what ``save`` wrote; anything else raises ``ValueError``."""
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to start anew") from error
        return cls(tensors=tensors, facts=facts)


def named(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors under a name; shared ones become several.

    Example:
        >>> import torch
        >>> list(named("model", {"w": torch.ones(2)}))
        ['model.w']
    """
    return {f"{name}.{key}": value.detach().clone() for key, value in tensors.items()}
