"""Where an exported network comes from: a run, a saved model, or a module given in Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from primesvt._files import METRICS, PLAN, RECIPE, read_yaml
from primesvt.checkpoint.folder import model_folder
from primesvt.checkpoint.load import OwnData, open_model, own_data, splits_for
from primesvt.config import PruneConfig, read_recipe
from primesvt.models import SpikingViT, list_models
from primesvt.report.run_files import read_run

__all__ = ["ExportSource", "Samples", "open_origin", "samples_of"]


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A network to export, and the run, folder, recipe and data that belong to it.

    Attributes:
        model: left as it is.
        source: what was given.
        folder: the folder of ``config.json`` and ``model.safetensors`` that it was loaded from.
        run: the folder of the run whose result it is; ``None`` where it is not exactly that.
        recipe: of the run it belongs to, however far.
        own: its own data, where they are on record.
    """

    model: nn.Module = field(repr=False)
    source: str | Path | nn.Module
    folder: Path | None = None
    run: Path | None = None
    recipe: PruneConfig | None = field(default=None, repr=False)
    own: OwnData | None = None

    @property
    def name(self) -> str:
        """A name for the network: the last part of the folder, the registry name, or the class."""
        if isinstance(self.source, nn.Module):
            return type(self.source).__name__
        place = Path(self.source) if self.folder is None else self.home
        return place.resolve().name if place.exists() else place.name

    @property
    def home(self) -> Path:
        """The folder that its files belong to: a run's, or ``runs/NAME`` where it has none."""
        if self.folder is not None:
            return self.folder.parent if self.folder.name == "model" else self.folder
        return Path("runs") / Path(str(self.source)).stem

    def metrics(self) -> dict[str, Any]:
        """The content of the run's ``metrics.json``; empty without a run."""
        if self.run is None:
            return {}
        return dict(read_run(self.run).metrics)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples on which file and network are compared.

    Attributes:
        dataset: pairs of a float32 tensor and a label; ``None`` where inputs were given alone.
        inputs: those inputs.
        batch_size: per forward.
        axis: of an input that counts samples.
        source: what they are, in words.
    """

    dataset: Dataset[Any] | None = field(default=None, repr=False)
    inputs: Tensor | None = field(default=None, repr=False)
    batch_size: int = 16
    axis: int = 0
    source: str

    def __len__(self) -> int:
        if self.dataset is not None:
            return len(self.dataset)  # type: ignore[arg-type]
        assert self.inputs is not None
        return self.inputs.shape[self.axis]

    def __iter__(self) -> Any:
        if self.dataset is not None:
            for inputs, labels in DataLoader(self.dataset, batch_size=self.batch_size):
                yield inputs.float(), labels
            return
        assert self.inputs is not None
        for part in self.inputs.split(self.batch_size, self.axis):
            yield part, None

    def example(self) -> Tensor:
        """A batch of two samples, of one twice where there is no second."""
        if self.dataset is not None:
            found = [self.dataset[place][0] for place in range(min(2, len(self)))]
            return torch.stack([found[0], found[-1]]).float()
        assert self.inputs is not None
        found = list(self.inputs.split(1, self.axis)[:2])
        return torch.cat([found[0], found[-1]], self.axis)  # contiguous, which strides decide on


def open_origin(source: str | Path | nn.Module) -> ExportSource:
    """Open anything that ``primesvt.export`` takes: a model, a name, a file or a run folder.

    Raises ``ValueError`` in one line for anything unusable.
    """
    if isinstance(source, nn.Module):
        return ExportSource(model=source, source=source, own=own_data(source))
    path = Path(source)
    opened = open_model(path)
    named = str(source) in list_models()
    folder = model_folder(path) if path.exists() and not named else None
    own = own_data(source)
    if folder is None:
        return ExportSource(model=opened.model, source=source, own=own)
    run = folder.parent
    finished = folder.name == "model" and all((run / name).is_file() for name in (METRICS, PLAN))
    return ExportSource(
        model=opened.model,
        source=source,
        folder=folder,
        run=run if finished and (run / RECIPE).is_file() else None,
        recipe=next(filter(None, map(_recipe, (folder, *folder.parents[:2]))), None),
        own=own,
    )


def _recipe(folder: Path) -> PruneConfig | None:
    """The recipe of a pruning run in a folder; ``None`` for other recipes and runs in Python."""
    path = folder / RECIPE
    content = read_yaml(path) if path.is_file() else None
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        return None
    return read_recipe(path) if "limits" in content else None


def samples_of(
    origin: ExportSource,
    *,
    data: Any,
    example_input: Tensor | None,
    count: int,
    batch_size: int,
    axis: int = 0,
) -> Samples:
    """The samples to compare on: evenly spaced in the selection set, or the inputs given.

    Without ``data`` they are the model's own. Raises ``ValueError`` where there are none.
    """
    if data is None and example_input is not None:
        given = example_input.float()
        named = f"{given.shape[axis]:,} inputs given in Python"
        return Samples(inputs=given, batch_size=batch_size, axis=axis, source=named)
    if data is None and origin.own is None and not isinstance(origin.model, SpikingViT):
        raise ValueError("give data= or example_input= to compare the export on")
    splits = splits_for(origin.model, data, own=origin.own)
    total = len(splits.selection)  # type: ignore[arg-type]
    chosen = torch.linspace(0, total - 1, min(count, total)).round().int().tolist()
    source = f"{len(chosen):,} of the {total:,} {splits.unit} of the selection set of {splits.name}"
    return Samples(dataset=Subset(splits.selection, chosen), batch_size=batch_size, source=source)
