"""The trained networks that benchmarks prune, and a bench for any importance and recovery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from primesvt.calibration import ActivationStatistics, calibration_of
from primesvt.channels import ChannelGraph, ChannelGroup, trace
from primesvt.channels.widths import Widths, kept_count
from primesvt.checkpoint.load import open_model
from primesvt.data import Splits, load_data
from primesvt.evaluation.evaluator import Measurement, outcomes
from primesvt.importance import CriterionContext, find_importance
from primesvt.models import SpikingViT
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.prober import Prober
from primesvt.recovery import find_recovery

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "checkpoints"
DIGITS = ("sdt_v2_digits", CHECKPOINTS / "digits_seed1", CHECKPOINTS / "digits_seed2")
CIFAR = CHECKPOINTS / "cifar10_seed0"


@dataclass(kw_only=True)
class Case:
    """One trained network, the sets of its data, and what was seen of it.

    Args:
        source: registry name or folder.
        data: what ``--data`` takes.
        batch_size: of every evaluation.
        images: calibration images drawn from the training images; the usual 256 when not given.
        seed: of that draw.
    """

    source: str | Path
    data: str | Path
    batch_size: int = 256
    images: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """The last part of the source."""
        return Path(self.source).name

    @cached_property
    def model(self) -> SpikingViT:
        """The unpruned network."""
        return open_model(self.source).model

    @cached_property
    def splits(self) -> Splits:
        """The sets, as the network's own training held them apart."""
        opened = open_model(self.source)
        return load_data(self.data, data_config=opened.data, held_out=opened.held_out)

    @cached_property
    def graph(self) -> ChannelGraph:
        """Channel groups."""
        return trace(self.model, open_model(self.source).example())

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Groups that may be pruned."""
        return self.graph.prunable()

    @cached_property
    def activity(self) -> ActivationStatistics:
        """What the calibration images show."""
        dataset: Any = self.splits.calibration
        if self.images is not None and self.splits.train is not None:
            order = np.random.default_rng(self.seed).permutation(len(self.splits.train))  # type: ignore[arg-type]
            dataset = Subset(self.splits.train, order[: self.images].tolist())
        inputs = calibration_of(dataset, batch_size=self.batch_size)
        return ActivationStatistics(
            model=self.model, graph=self.graph, groups=self.groups, calibration=inputs
        )

    def prober(self, importance: str, recovery: str, *, seed: int = 0) -> Prober:
        """Cuts networks as asked; nothing is measured through it."""
        size = parameter_bytes(self.model)
        table = ProbeTable(Reference(context={}, measurement=_NOTHING, parameter_bytes=size))
        return Prober(
            model=self.model,
            graph=self.graph,
            evaluate=_refuse,
            table=table,
            importance=find_importance(importance),
            evidence=CriterionContext(
                model=self.model, graph=self.graph, activity=self.activity, seed=seed
            ),
            recovery=find_recovery(recovery)(activity=self.activity),
        )

    @cached_property
    def test_images(self) -> TensorDataset:
        """The test set, decoded once."""
        images, labels = zip(*DataLoader(self.splits.test, batch_size=500), strict=True)  # type: ignore[arg-type]
        return TensorDataset(torch.cat(images), torch.cat(labels))

    def test(self, network: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which test images a network gets right."""
        return outcomes(network, self.test_images, batch_size=self.batch_size)


def uniform(prober: Prober, groups: tuple[ChannelGroup, ...], saving: float) -> Widths:
    """All groups at one rate: the lowest, in steps of 0.5 %, that saves this much memory."""
    total = prober.reference.parameter_bytes
    for rate in np.arange(0.005, 1, 0.005).round(3):
        kept = {g.name: kept_count(g.size, float(rate)) for g in groups}
        cuts = {g.name: kept[g.name] for g in groups if kept[g.name] < g.size}
        if prober.bytes_saved(cuts) >= saving * total:
            return cuts
    raise ValueError(f"no uniform rate saves {saving:.0%}")


def cases(cifar: str | None) -> Iterator[Case]:
    """Digits in three training seeds, and CIFAR-10 where a folder with its tables is given."""
    for source in DIGITS:
        yield Case(source=source, data="digits", batch_size=450)
    if cifar is not None:
        yield Case(source=CIFAR, data=cifar)


def _refuse(_: Any) -> Any:
    raise RuntimeError("this bench measures nothing")


_NOTHING = Measurement(value=0.0)
