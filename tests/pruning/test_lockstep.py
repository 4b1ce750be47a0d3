"""Several processes stay in lockstep through a run: they meet at the same places."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from primesvt import create_model, prune
from primesvt.distributed import ProcessGroup
from primesvt.models.digest import model_digest

from ..played_processes import Played, play
from ..same_files import assert_same_files
from .test_processes_prune import ALLOCATE, LIMITS, PAPER, few, rows

SOME = {"include": ["*.block4_0.mlp.fc1", "*.conv2a.conv1"]}
METHODS: dict[str, dict[str, Any]] = {
    "prime": {**PAPER, **SOME},
    "allocate": {**ALLOCATE, **SOME},
    "refit": {**SOME, "gate": "point"},
}
OWN = threading.local()  # the process that a thread plays


def place() -> str:
    """The function of the package that wants something exchanged, and those that called it."""
    frame, names = sys._getframe(1), []
    while frame is not None:
        if "primesvt" in frame.f_code.co_filename and "distributed" not in frame.f_code.co_filename:
            names.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(names[:6])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lockstep(Played):
    """A process that says at every exchange where it is."""

    met: list[str] = dataclasses.field(default_factory=list, compare=False, repr=False)

    def gather(self, value: Any) -> list[Any]:
        said = self.meeting.gather(self.rank, (place(), value))
        places = {each for each, _ in said}
        assert len(places) == 1, f"processes meet in different places: {sorted(places)}"
        self.met.append(next(iter(places)))
        # What real processes get is a copy.
        return [value if rank == self.rank else pickle.loads(pickle.dumps(each))
                for rank, (_, each) in enumerate(said)]  # fmt: skip

    def broadcast_state(self, model: torch.nn.Module, *, parameters: bool = False) -> None:
        parts = [*model.buffers(), *(model.parameters() if parameters else ())]
        first = self.broadcast([part.detach().clone() for part in parts])
        with torch.no_grad():
            for part, value in zip(parts, first, strict=True):
                part.copy_(value)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessGroup, "start", lambda _: OWN.processes)
    monkeypatch.setattr(ProcessGroup, "take_gpu", lambda: None)


def together(size: int, out: Path | None, **method: Any) -> list[tuple[list[str], Any]]:
    """Where the processes of a run met, and what each of them returns."""

    def work(processes: Played) -> tuple[list[str], Any]:
        OWN.processes = Lockstep(
            device=processes.device, rank=processes.rank, size=size, meeting=processes.meeting
        )
        model = create_model("sdt_v2_digits", pretrained=True)
        asked = {"rates": (0.3, 0.9), "batch_size": 8, "verify": False, **method}
        result = prune(model, data=few(), constraints=LIMITS, out=out, **asked)
        return OWN.processes.met, (result.plan, model_digest(result.model), len(result.probes))

    return play(size, work)


@pytest.mark.parametrize(("name", "size"), [("prime", 2), ("allocate", 3), ("refit", 3)])
def test_all_meet_at_the_same_places(played, tmp_path, name: str, size: int) -> None:
    found = together(size, tmp_path / "run", **METHODS[name])
    met = found[0][0]
    assert all(each[0] == met and each[1] == found[0][1] for each in found)
    told = " ".join(met)
    assert [step for step in STEPS if step not in told] == []
    assert found[0][1] == together(1, tmp_path / "one", **METHODS[name])[0][1]
    assert rows(tmp_path / "run") == rows(tmp_path / "one")
    names = ("plan.json", "recipe.yaml", "model/model.safetensors")
    assert_same_files(tmp_path / "run", tmp_path / "one", names)


# What every run exchanges, step by step.
STEPS = (
    "run_folder.probes",
    "run_folder.metrics",
    "run_folder.create",
    "run_folder.new_probes",
    "variants._rank",
    "prober._measure",
    "result.write_model",
    "metrics._test",
    "result.finish_run",
)
