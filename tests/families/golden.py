"""One reference file: inputs, weights and outputs of the official code, and what was compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import primesvt
from primesvt.models import SpikingViT, official_keys, official_modules

from .case import FamilyCase

TABLES = {
    "bn_outputs": ("values",),
    "train_check": ("bn", "firing_rate_buffers"),
    "grad_check": ("norms",),
}


@dataclass(kw_only=True)
class Golden:
    """One reference file; ``compared`` collects the entries that a test has looked at."""

    name: str
    case: FamilyCase
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    compared: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path, case: FamilyCase, name: str) -> Golden:
        path = folder / name
        return cls(
            name=name,
            case=case,
            record=json.loads(path.with_suffix(".json").read_text()),
            tensors=load_file(path.with_suffix(".safetensors")),
        )

    def model(self) -> SpikingViT:
        """The official weights through the public loader, in float64 and evaluation mode."""
        prefix = "state."
        state = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        self.compared |= {prefix + key for key in state}
        overrides = self.case.goldens[self.name]
        with TemporaryDirectory() as folder:
            file = Path(folder) / "weights.safetensors"
            save_file(state, file)
            model: SpikingViT = primesvt.load(file, quiet=True, **overrides)
        assert model.config.family == self.case.family
        return model.double()

    @property
    def images(self) -> Tensor:
        """``[B, C, H, W]``, or event frames ``[B, T, C, H, W]``."""
        self.compared.add("input")
        return self.tensors["input"].double()

    @property
    def keeps_time(self) -> bool:
        """Whether the official code returns ``[T, B, classes]``."""
        return self.tensors["logits_f64"].ndim == 3

    def table(self, kind: str) -> dict[str, Any]:
        """The stored numbers of one kind by official name."""
        record, parts = self.record[kind], TABLES[kind]
        return {name: value for part in parts for name, value in record.get(part, {}).items()}

    def entries(self) -> set[str]:
        """Everything that must be compared."""
        tables = {f"{kind}.{name}" for kind in TABLES for name in self.table(kind)}
        return tables | {f"neurons.{name}" for name in self.record["neurons"]} | set(self.tensors)

    def close(self, key: str, value: Tensor, tolerance: float) -> None:
        """Compare with a stored tensor: logits absolutely, activations above one relatively."""
        reference = self.tensors[key].to(value.dtype)
        if reference.numel() < value.numel():  # the official code takes the mean over time first
            value = value.mean(0)
        relative = key.startswith("act.")
        errors = [_excess(value, r, tolerance, relative) for r in _in_our_order(reference, value)]
        assert min(errors) <= 0, f"{key} is off by {min(errors):.2e} more than {tolerance:g}"
        self.compared.add(key)


def _excess(value: Tensor, reference: Tensor, tolerance: float, relative: bool) -> float:
    scale = reference.abs().clamp(min=1) if relative else torch.ones(())
    return float(((value - reference).abs() - tolerance * scale).max())


def _in_our_order(reference: Tensor, value: Tensor) -> Iterator[Tensor]:
    """A stored tensor in the shape of ours; tokens may stand before channels there."""
    yield reference.reshape(value.shape)
    if value.ndim == 5 and reference.shape[-2:] == (value[0, 0, 0].numel(), value.shape[2]):
        yield reference.transpose(-2, -1).reshape(value.shape)


def official_table(model: SpikingViT) -> dict[str, nn.Module]:
    """Our modules by official name."""
    modules = dict(model.named_modules())
    return {official: modules[ours] for ours, official in official_modules(model).items()}


def official_tensors(model: SpikingViT) -> dict[str, Tensor]:
    """Our parameters and buffers by official key, as they are in the model."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {official: own[ours] for ours, official in official_keys(model).items()}


def recorded(model: SpikingViT, images: Tensor, *, keeps_time: bool) -> dict[str, Tensor]:
    """Outputs of every module with an official name under that name; the model's under ``""``."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.update({name: output})

    table = official_table(model)
    handles = [module.register_forward_hook(keep(name)) for name, module in table.items()]
    with torch.no_grad():
        outputs[""] = model(images, time_steps_out=keeps_time)
    for handle in handles:
        handle.remove()
    return outputs
