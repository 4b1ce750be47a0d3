"""The run folder: recipe, probes, plan, figures and pruned model, and how a run goes on in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from primesvt._files import (
    LATENCIES,
    METRICS,
    MODEL,
    PLAN,
    PROBES,
    RECIPE,
    check_place,
    check_writable,
    contents,
    read_json,
    read_yaml,
    write_json,
    write_text,
)
from primesvt.channels.plan import Plan
from primesvt.config import PruneConfig, from_old_recipe
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup
from primesvt.profiling.latency_table import LatencyTable
from primesvt.pruning.metrics import Metrics
from primesvt.pruning.probe_table import ProbeTable, Reference

__all__ = ["RunFolder", "stored_probes"]

Table = TypeVar("Table", ProbeTable, ProbeTable | None, LatencyTable)


class RunFolder:
    """The folder of a run of one recipe, in which a killed run goes on.

    Nothing is written before ``create``, so a mistake in the input leaves nothing behind. Of
    several processes the main one alone reads and writes here; every method is called by all.

    Args:
        path: new, empty, or of the same recipe.
        config: what was asked.
        processes: those at work on the run.

    Raises:
        ValueError: the folder cannot be written to, or holds something else.
    """

    def __init__(
        self, path: str | Path, config: PruneConfig, processes: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.path, self.processes, self.config = Path(path), processes, config
        processes.on_main(self._check)

    def _check(self) -> None:
        """Raise ``ValueError`` where a run of this recipe may not be written here."""
        if (self.path / RECIPE).is_file():
            self._check_recipe()
        elif self.path.exists() and (not self.path.is_dir() or contents(self.path)):
            raise ValueError(
                f"cannot write a run to {str(self.path)!r}: it holds something else; "
                "choose a new or empty folder"
            )
        else:
            check_place(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here meanwhile; the folder is checked again first.

        Raises ``FolderInUse`` where another process has the folder.
        """
        with self.processes.locked(self.path):
            self.processes.on_main(self._check)
            yield

    @property
    def model(self) -> Path:
        """The folder of the pruned model."""
        return self.path / MODEL

    @property
    def plan(self) -> Path:
        """The plan file."""
        return self.path / PLAN

    def probes(self) -> ProbeTable | None:
        """The probes made so far; ``None`` before the unpruned network is measured."""
        return self._own(self.processes.on_main(lambda: ProbeTable.read(self.path / PROBES)))

    def new_probes(self, reference: Reference) -> ProbeTable:
        """A table that begins with the unpruned network; needs ``create`` first."""
        return self._own(self.processes.on_main(lambda: ProbeTable(reference, self.path / PROBES)))

    def latencies(self) -> LatencyTable:
        """The times taken so far; new ones need ``create`` first."""
        return self._own(self.processes.on_main(lambda: LatencyTable(self.path / LATENCIES)))

    def _own(self, table: Table) -> Table:
        """The table for this process: only the main one writes to it, others keep it in memory."""
        if table is not None and not self.processes.main:
            table.write_nothing()
        return table

    def metrics(self) -> Metrics | None:
        """The figures of a run that has ended, which are written last."""
        path = self.path / METRICS

        def read() -> Metrics | None:
            if not path.exists():
                return None
            try:
                return Metrics.from_dict(read_json(path))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{path} is damaged: {error}; delete it to finish the run again"
                ) from error

        return self.processes.on_main(read)

    def create(self) -> None:
        """Make the folder and write the recipe."""

        def write() -> None:
            check_writable(self.path)
            if not (self.path / RECIPE).is_file():
                write_text(self.path / RECIPE, self.config.to_yaml())

        self.processes.on_main(write)

    def finish(self, metrics: Metrics) -> None:
        """Write the figures: the run is complete."""
        self.processes.on_main(lambda: write_json(self.path / METRICS, metrics.to_dict()))

    def stored_plan(self) -> Plan:
        """The plan of a run that has ended."""
        return self.processes.on_main(lambda: Plan.load(self.plan))

    @contextmanager
    def stored_model(self) -> Iterator[Path]:
        """The folder of the pruned model; a copy, where a process may not see what is written."""
        several, files = self.processes.size > 1, dict[str, bytes]()
        if several:
            files = self.processes.on_main(
                lambda: {file.name: file.read_bytes() for file in self.model.iterdir()}
            )
        if self.processes.main:
            yield self.model
            return
        with tempfile.TemporaryDirectory() as place:
            for name, content in files.items():
                Path(place, name).write_bytes(content)
            yield Path(place)

    def _check_recipe(self) -> None:
        """Raise ``ValueError`` where the folder holds a run of another recipe."""
        path = self.path / RECIPE
        try:
            there = read_yaml(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {path}: {error}; choose another run folder") from error
        stated = from_old_recipe(there) if isinstance(there, Mapping) else there
        difference = _difference(stated, self.config.to_dict())
        if difference:
            raise ValueError(
                f"{self.path} holds a run of another recipe: {difference}; choose another run "
                f"folder, and solve again from its probes with --from {self.path}"
            )


def stored_probes(run: str | Path) -> ProbeTable:
    """The probes of another run, to solve again from; that folder is not changed."""
    path = Path(run) / PROBES
    if not path.is_file():
        raise ValueError(f"there are no probes in {str(run)!r}; give the folder of an earlier run")
    table = ProbeTable.read(path, read_only=True)
    if table is None:
        raise ValueError(f"the run in {str(run)!r} has no probe yet; let it finish first")
    return table


# They change no result: what a run may take, and where it computes, which probes have on record.
NOT_COMPARED = ("run.memory_limit", "run.workers", "run.device")


def _difference(there: Any, here: Any, path: str = "") -> str:
    """The first field stated there that differs here, in words; older recipes state fewer."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        found = (
            _difference(value, here.get(name), f"{path}.{name}".strip("."))
            for name, value in there.items()
        )
        return next(filter(None, found), "")
    unnamed = path == "model" and None in (there, here)  # one given in Python; probes know which
    if there == here or path in NOT_COMPARED or unnamed:
        return ""
    return f"{path or 'all of it'} is {there!r} there and {here!r} here"
