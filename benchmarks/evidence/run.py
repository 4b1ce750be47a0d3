"""The evidence: policies and recoveries side by side, with and without fine-tuning.

    python benchmarks/evidence/run.py [CIFAR-FOLDER | digits] [MODEL ...]

Rows are made one after another, the most telling first, and kept in results/evidence.json as they
are made; a row that is there is not made again, and a run that was killed goes on. Several
processes may work side by side: each takes rows that no other is at. The page, docs/results.md, is
made anew after every row. One thread a process. Networks come from checkpoints/, where every one
has its recipe and record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from checkpoints import CHECKPOINTS, DIGITS, ROOT, Case
from machine import RESULTS, machine
from presets import in_memory

from evidence import controls
from evidence.page import write_page
from evidence.rows import NARROW, SPARSE, TOLD, UNPRUNED, Row, rows
from primesvt import Constraints, prune
from primesvt._files import write_json
from primesvt.data import Splits
from primesvt.profiling.memory import parameter_count
from primesvt.training.finetuning import finetune

CIFAR = ("sdt_v2_seed0", "qkformer_seed0", "spikformer_seed0", "sdt_v2_seed1", "sdt_v2_seed2")
RUNS = ROOT / "runs" / "evidence"
TABLE = RESULTS / "evidence.json"
Key = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network; ``first`` of its kind, and ``cheap`` where its training takes seconds."""

    case: Case
    first: bool
    cheap: bool

    @property
    def tuning(self) -> dict[str, Any]:
        """A tenth of the training, by the tool's own defaults, compiled where that pays."""
        return {} if self.cheap else {"compile": True}


def networks(folder: str | None, wanted: list[str]) -> Iterator[Network]:
    """CIFAR-10 first, where its folder is given and a network was trained."""
    for number, name in enumerate(CIFAR if folder is not None else ()):
        source = CHECKPOINTS / f"cifar10_{name}"
        if (source / "record.json").exists() and (not wanted or source.name in wanted):
            case = Case(source=source, data=str(folder), batch_size=_batch_size(source))
            yield Network(case=case, first=number == 0, cheap=False)
    for number, source in enumerate(DIGITS):
        case = Case(source=source, data="digits", batch_size=450)
        if not wanted or case.name in wanted:
            yield Network(case=case, first=number == 0, cheap=True)


def _batch_size(source: Path) -> int:
    """Batches of the training, on which the answers of some networks depend."""
    return int(json.loads((source / "record.json").read_text())["recipe"]["batch_size"])


def splits_of(case: Case) -> Splits:
    """The sets, all but the training images decoded once."""
    kept = {name: in_memory(getattr(case.splits, name)) for name in ("calibration", "selection")}
    return dataclasses.replace(case.splits, **kept, test=in_memory(case.splits.test))


def measure(network: Network, splits: Splits, row: Row) -> dict[str, Any] | None:
    """One row; ``None`` for one that waits for another."""
    case, folder = network.case, RUNS / row.name
    begin = time.perf_counter()
    if row.policy == UNPRUNED:
        found = controls.unpruned(case, splits, network.tuning)
    elif row.policy == SPARSE:
        found = controls.sparse(case)
    elif row.policy == NARROW:
        pruned = known().get((case.name, "allocate", "refit", TOLD[-1]))
        if pruned is None:
            return None
        found = controls.narrow(case, pruned["after"]["parameters"], folder)
    else:
        found = _pruned(network, splits, row, folder)
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        **dataclasses.asdict(row),
        "before": costs_before(case),
        **found,
    }


def _pruned(network: Network, splits: Splits, row: Row, folder: Path) -> dict[str, Any]:
    case = network.case
    begin = time.perf_counter()
    earlier = _earlier(row)
    result = prune(
        case.model,
        data=splits,
        constraints=Constraints(**row.constraints),
        batch_size=case.batch_size,
        from_run=earlier,
        out=folder,
        **row.options,
    )
    took = time.perf_counter() - begin
    metrics = result.metrics.to_dict()
    after = {k: v for k, v in metrics["after"].items() if k in ("parameters", "parameter_bytes")}
    return {
        **{name: metrics[name] for name in ("met", "drop", "bound", "bounded_by")},
        "saving": 1 - after["parameter_bytes"] / metrics["before"]["parameter_bytes"],
        "after": {**after, "test": metrics["after"]["test"]},
        "confirmation": metrics["confirmation"],
        "probes": len(result.probes),
        "seconds": round(took, 1),
        "reused": earlier is not None,
    }


def tune(network: Network, splits: Splits, row: Row) -> dict[str, Any]:
    """A row with its pruned network fine-tuned."""
    case, folder = network.case, RUNS / row.name
    if not (folder / "metrics.json").exists():
        _pruned(network, splits, row, folder)  # made elsewhere; run folders are not kept
    record = finetune(folder, teacher=case.source, data=splits, recipe=network.tuning).record
    shutil.rmtree(folder / "finetuned" / "model")
    return {**known()[row.key], "tuned": record.to_dict() | {"run": row.goal}}  # not where it lay


def _earlier(row: Row) -> Path | None:
    """A finished run that differs in its limit alone: its probes hold here too.

    Not where images are set aside for the confirmation: how many depends on the limit.
    """
    if row.options["confirm"]:
        return None
    for other in known().values():
        same = all(other[name] == getattr(row, name) for name in ("model", "policy", "recovery"))
        if same and other["options"] == row.options and other["goal"] != row.goal:
            place = RUNS / dataclasses.replace(row, goal=other["goal"]).name
            if (place / "metrics.json").exists():
                return place
    return None


def costs_before(case: Case) -> dict[str, Any]:
    """Size and test figures of the unpruned network, measured once."""
    for row in known().values():
        if row["model"] == case.name:
            return dict(row["before"])
    return {
        "parameters": parameter_count(case.model),
        "test": controls.tested(case, case.model),
    }


def add(row: dict[str, Any]) -> None:
    """Into the file, which another process may be writing to."""
    with (RESULTS / ".evidence.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = list((known() | {key_of(row): row}).values())
        write_json(TABLE, {"machine": machine(), "rows": found})
        write_page(found, machine())


def key_of(row: dict[str, Any]) -> Key:
    """What tells rows apart, as in ``Row.key``."""
    return row["model"], row["policy"], row["recovery"], row["goal"]


def known() -> dict[Key, dict[str, Any]]:
    """Rows that are there."""
    found = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else []
    return {key_of(row): row for row in found}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A row to make, or the fine-tuning of one that is there, which comes a step later."""

    row: Row
    network: Network
    tunes: bool

    @property
    def urgency(self) -> int:
        """Low ones come first."""
        return self.row.urgency + self.tunes

    @property
    def open(self) -> bool:
        """Whether there is something to do, and what it needs is there."""
        made = known().get(self.row.key)
        if self.tunes:
            return made is not None and "tuned" not in made and made["saving"] > 0
        return made is None

    @contextlib.contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether this process alone is at it, and it is still open."""
        RUNS.mkdir(parents=True, exist_ok=True)
        with (RUNS / f".{self.row.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield self.open

    def do(self, splits: Splits) -> None:
        """Make the row, or say what it waits for."""
        make = tune if self.tunes else measure
        begin = time.perf_counter()
        found = make(self.network, splits, self.row)
        if found is None:
            print(*self.row.key, "waits for the pruned network that it is compared with; run again")
            return
        add(found)
        seconds = f"{time.perf_counter() - begin:.0f} s{', tuned' if self.tunes else ''}"
        print(*self.row.key, f"{found['saving']:.2%}", seconds, flush=True)


def jobs(folder: str | None, wanted: list[str]) -> list[Job]:
    """All of the table, the most telling first."""
    found = []
    for network in networks(folder, wanted):
        for row in rows(network.case.name, first=network.first, cheap=network.cheap):
            later = (True,) if row.finetuned and row.policy != UNPRUNED else ()
            found += [Job(row=row, network=network, tunes=tunes) for tunes in (False, *later)]
    return sorted(found, key=lambda job: job.urgency)


def main() -> None:
    torch.set_num_threads(1)
    folder = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] != "digits" else None
    sets: dict[str, Splits] = {}
    for job in jobs(folder, sys.argv[2:]):
        with job.claimed() as mine:
            if not mine:
                continue
            if job.row.model not in sets:
                sets.clear()  # one in memory at a time
                sets[job.row.model] = splits_of(job.network.case)
            job.do(sets[job.row.model])


if __name__ == "__main__":
    main()
