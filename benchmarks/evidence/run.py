"""The evidence: policies and recoveries side by side, with and without fine-tuning.

    python benchmarks/evidence/run.py [CIFAR-FOLDER] [MODEL ...]

Rows are made one after another, the most telling first, and kept in results/evidence.json as they
are made; a row that is there is not made again, a run that was killed goes on. Two processes may
work side by side, each on its own models. The page, docs/results.md, is made anew after every row.
One thread a process. Networks come from checkpoints/, where every one has its recipe and record.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from checkpoints import CHECKPOINTS, DIGITS, ROOT, Case
from machine import RESULTS, machine
from presets import in_memory

from evidence.page import write_page
from evidence.rows import Row, rows
from primesvt import Constraints, prune
from primesvt._files import write_json
from primesvt.data import Splits
from primesvt.recovery.finetuning import finetune

CIFAR = ("sdt_v2_seed0", "spikformer_seed0", "qkformer_seed0", "sdt_v2_seed1", "sdt_v2_seed2")
RUNS = ROOT / "runs" / "evidence"
TABLE = RESULTS / "evidence.json"


def cases(folder: str | None, wanted: list[str]) -> list[tuple[Case, bool, bool]]:
    """Networks, whether each is the first of its kind, and whether its training is cheap."""
    found = [
        (Case(source=source, data="digits", batch_size=450), number == 0, True)
        for number, source in enumerate(DIGITS)
    ]
    for name in CIFAR if folder is not None else ():
        source = CHECKPOINTS / f"cifar10_{name}"
        if (source / "record.json").exists():
            found.append((Case(source=source, data=str(folder)), name == CIFAR[0], False))
    return [case for case in found if not wanted or case[0].name in wanted]


def splits_of(case: Case) -> Splits:
    """The sets, all but the training images decoded once."""
    kept = {name: in_memory(getattr(case.splits, name)) for name in ("calibration", "selection")}
    return dataclasses.replace(case.splits, **kept, test=in_memory(case.splits.test))


def measure(case: Case, splits: Splits, row: Row) -> dict[str, Any]:
    """One run, fine-tuned where that is asked for."""
    folder = RUNS / "_".join(part.replace(" ", "-") for part in row.key)
    begin = time.perf_counter()
    result = prune(
        case.model,
        data=splits,
        constraints=Constraints(**row.constraints),
        batch_size=case.batch_size,
        out=folder,
        **row.options,
    )
    took = time.perf_counter() - begin
    metrics = result.metrics.to_dict()
    found = {
        **dataclasses.asdict(row),
        **{name: metrics[name] for name in ("met", "saving", "drop", "bound", "before", "after")},
        "probes": len(result.probes),
        "seconds": round(took, 1),
    }
    if row.finetuned and result.plan.steps:
        record = finetune(folder, teacher=case.source, data=splits).record
        found["tuned"] = record.to_dict()
        shutil.rmtree(folder / "finetuned" / "model")
    return found


def add(row: dict[str, Any]) -> None:
    """Into the file, which another process may be writing to."""
    with (RESULTS / ".evidence.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = [*known().values(), row]
        write_json(TABLE, {"machine": machine(), "rows": found})
        write_page(found, machine())


def known() -> dict[tuple[str, ...], dict[str, Any]]:
    """Rows that are there."""
    found = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else []
    names = ("model", "policy", "recovery", "goal")
    return {tuple(row[name] for name in names): row for row in found}


def main() -> None:
    torch.set_num_threads(1)
    folder = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] != "digits" else None
    for case, first, cheap in cases(folder, sys.argv[2:]):
        splits = splits_of(case)
        for row in rows(case.name, first=first, cheap=cheap):
            if row.key not in known():
                add(found := measure(case, splits, row))
                print(*row.key, f"{found['saving']:.2%}", found["seconds"], flush=True)


if __name__ == "__main__":
    main()
