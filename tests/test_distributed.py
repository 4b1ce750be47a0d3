"""Two processes find what one finds: the same outcomes, the same steps, one writer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from primesvt._files import FolderInUse, folder_lock
from primesvt.data import Splits, load_data
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup, _exchange
from primesvt.evaluation.evaluator import outcomes
from primesvt.models import SpikingViT, create_model
from primesvt.training import Augmentation
from primesvt.training.config import TrainingConfig
from primesvt.training.loop import TrainingLoop

from .channels.firing import excite
from .played_processes import play
from .two_processes import run_twice

CPU = torch.device("cpu")
SCRIPT = """
from tests.test_distributed import everything
answer(everything())
"""


def mixed() -> tuple[SpikingViT, Splits]:
    """A model in which the images of a batch influence each other, and sets that end unevenly."""
    whole = load_data("digits")
    few = dataclasses.replace(whole, selection=Subset(whole.selection, range(60)))
    torch.manual_seed(0)
    model = create_model("qkformer_digits").double()
    images = torch.stack([few.selection[i][0] for i in range(16)]).double()
    assert excite(model, images, seed=0, low=0.001, high=0.99)
    return model.float(), few


def correct(processes: ProcessGroup, images: int, batch: int) -> list[bool]:
    model, splits = mixed()
    chosen = Subset(splits.selection, range(images))
    return outcomes(model, chosen, batch_size=batch, processes=processes).tolist()


class Plain(nn.Module):
    """No batch norm, so shares of a batch add up to the whole; one parameter is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(36, 8), nn.Linear(8, 3)
        self.unread = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.second(self.first(x.flatten(1)).relu())


def losses(processes: ProcessGroup) -> tuple[list[float], float]:
    """Of three epochs, and a number that tells all weights."""
    torch.manual_seed(1)
    images = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    learning = TrainingConfig(
        epochs=3, batch_size=8, warmup_epochs=0, augmentation=Augmentation(shift=1, flip=True)
    )
    loop = TrainingLoop(
        Plain(),
        TensorDataset(images, torch.arange(20) % 3),
        learning,
        loss=lambda output, _, labels: F.cross_entropy(output, labels),
        processes=processes,
        fill=torch.zeros(1),
        classes=3,
    )
    for _ in range(3):
        loop.epoch(lambda *_: None)
    assert torch.equal(loop.model.get_parameter("unread"), torch.ones(2, 2))
    return loop.losses, sum(p.detach().double().sum().item() for p in loop.model.parameters())


def refused(processes: ProcessGroup) -> str:
    def work() -> None:
        raise ValueError(f"process {processes.rank} refuses")

    with pytest.raises(ValueError) as caught:
        processes.on_main(work)
    return str(caught.value)


def aligned(processes: ProcessGroup) -> float:
    model = Plain()
    model.count += 10 + processes.rank
    with torch.no_grad():
        model.unread += processes.rank
    processes.broadcast_state(model)
    assert torch.equal(model.unread, torch.ones(2, 2) + processes.rank)
    processes.broadcast_state(model, parameters=True)
    assert torch.equal(model.unread, torch.ones(2, 2))
    return float(model.count)


def everything() -> dict[str, Any]:
    """What each of several processes finds."""
    processes = ProcessGroup.start(CPU)
    return {
        "place": [processes.rank, processes.size, processes.main, processes.device.type],
        "correct": [correct(processes, *asked) for asked in ASKED],
        "losses": losses(processes),
        "gathered": processes.gather(f"from {processes.rank}"),
        "agreed": processes.broadcast(f"from {processes.rank}"),
        "on main": processes.on_main(lambda: processes.rank),
        "refused": refused(processes),
        "aligned": aligned(processes),
        "mean": processes.mean(torch.tensor(float(processes.rank))).item(),
    }


# The last batch incomplete, on the first or the second process; fewer images than one batch.
ASKED = [(60, 16), (60, 25), (48, 16), (10, 16)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_twice(SCRIPT, tmp_path_factory.mktemp("two"), torchrun=True)


def test_two_processes_know_each_other(both) -> None:
    assert [found["place"] for found in both] == [[0, 2, True, "cpu"], [1, 2, False, "cpu"]]
    for found in both:
        assert found["gathered"] == ["from 0", "from 1"]
        assert found["agreed"] == "from 0" and found["on main"] == 0
        assert found["refused"] == "process 0 refuses"
        assert found["aligned"] == 10 and found["mean"] == 0.5


@pytest.mark.parametrize("number", range(len(ASKED)))
def test_outcomes_are_those_of_one_process(both, number: int) -> None:
    alone = correct(ProcessGroup.start(CPU), *ASKED[number])
    assert len(alone) == ASKED[number][0]
    assert all(found["correct"][number] == alone for found in both)


def test_outcomes_that_mix_depend_on_the_batches() -> None:
    """So that the test above could fail."""
    alone = ProcessGroup.start(CPU)
    model, splits = mixed()
    with torch.no_grad():
        images = torch.stack([splits.selection[i][0] for i in range(60)])
        logits = [torch.cat([model(part) for part in images.split(n)]) for n in (16, 25)]
    assert not torch.equal(*logits)
    assert any(correct(alone, 60, 16)) and not all(correct(alone, 60, 16))


def test_steps_are_those_of_one_process(both) -> None:
    alone, total = losses(ProcessGroup.start(CPU))
    for found in both:
        assert found["losses"][0] == pytest.approx(alone, rel=1e-5)
        assert found["losses"][1] == pytest.approx(total, rel=1e-5)
    assert both[0]["losses"] == both[1]["losses"]


def test_every_sample_is_dealt_once() -> None:
    for size, total, batch in ((3, 100, 7), (2, 5, 8), (4, 64, 16)):
        ranks = [ProcessGroup(device=CPU, rank=rank, size=size) for rank in range(size)]
        dealt = [np.array(list(each.part_of(range(total), batch))) for each in ranks]
        assert sorted(np.concatenate(dealt)) == list(range(total))
        for mine in dealt:
            full = [mine[i : i + batch] for i in range(0, len(mine), batch)]
            assert all(part[0] % batch == 0 for part in full)
            assert all((np.diff(part) == 1).all() for part in full)


def test_batches_that_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="batch_size is 32, but 3 processes share it evenly"):
        ProcessGroup(device=CPU, size=3).share(32)
    assert ProcessGroup(device=CPU, size=3).share(33) == 11


def test_one_numbered_gpu_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="cuda:1 was asked for, but each of several processes"):
        ProcessGroup.start(torch.device("cuda:1"))


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        ProcessGroup.take_gpu()
    assert taken == [0]
    with pytest.raises(ValueError, match=r"this machine has 1 GPU.s., too few for a process each"):
        ProcessGroup.start(torch.device("cuda"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ProcessGroup.start(torch.device("cuda")).size == 1


@pytest.mark.parametrize(("size", "count"), [(2, 5), (3, 3), (4, 2), (3, 0)])
def test_items_are_dealt_out_and_come_back_in_order(size: int, count: int) -> None:
    done: list[tuple[int, int]] = []

    def all_of(processes: ProcessGroup) -> list[int]:
        def work(item: int) -> int:
            done.append((processes.rank, item))
            return 10 * item

        return processes.map_sharded(range(count), work)

    assert play(size, all_of) == [[10 * item for item in range(count)]] * size
    assert sorted(done) == sorted((item % size, item) for item in range(count))


@pytest.mark.parametrize("error", [ValueError("no such thing"), OSError("no such thing")])
def test_a_mistake_of_one_is_raised_by_all(error: Exception) -> None:
    def work(processes: ProcessGroup) -> str:
        def fail() -> int:
            if processes.rank == 1:
                raise error
            return 0

        with pytest.raises(ValueError) as caught:
            processes.gather_calls(fail)
        return str(caught.value)

    assert play(3, work) == ["no such thing"] * 3
    with pytest.raises(type(error), match="no such thing"):
        SINGLE_PROCESS.on_main(lambda: (_ for _ in ()).throw(error))


def test_a_folder_that_main_cannot_write_is_a_mistake_of_all() -> None:
    def work(processes: ProcessGroup) -> str:
        def fail() -> None:
            raise PermissionError("not here")

        with pytest.raises(ValueError) as caught:
            processes.on_main(fail)
        return str(caught.value)

    assert play(2, work) == ["not here"] * 2


def test_the_main_process_locks_a_folder_for_all(tmp_path: Path) -> None:
    def work(processes: ProcessGroup) -> list[str]:
        with processes.locked(tmp_path / "run"):
            return processes.on_main(lambda: [each.name for each in (tmp_path / "run").iterdir()])

    assert play(2, work) == [[".lock"], [".lock"]]
    assert not (tmp_path / "run").exists()

    def refused(processes: ProcessGroup) -> str:
        with pytest.raises(FolderInUse) as caught, processes.locked(tmp_path / "run"):
            pass
        return str(caught.value)

    with folder_lock(tmp_path / "run"):
        said = play(2, refused)
    assert said[0] == said[1] and "run is in use by process" in said[0]


def test_processes_that_were_given_different_things() -> None:
    def refused(processes: ProcessGroup) -> str:
        facts = {"model": "m", "selection_set": "abc" if processes.rank < 2 else "other"}
        processes.check_same(lambda: {"model": "m"})
        with pytest.raises(ValueError) as caught:
            processes.check_same(lambda: facts)
        return str(caught.value)

    told = "process 2 differs from process 0 in selection set; give all of them the same model"
    assert all(each.startswith(told) for each in play(3, refused))
    SINGLE_PROCESS.check_same(lambda: pytest.fail("nobody to compare with"))


@pytest.mark.parametrize("said", ["Connection closed by peer [127.0.0.1]", "Broken pipe"])
def test_a_lost_process_is_told_in_one_line(said: str) -> None:
    with (
        pytest.raises(ValueError, match="another process of this run has ended") as told,
        _exchange(),
    ):
        raise RuntimeError(f"[gloo/transport/tcp/pair.cc:547]\n{said}")
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="another process"), _exchange():
        raise torch.distributed.DistBackendError("NCCL error")
    with pytest.raises(RuntimeError, match="mat1 and mat2"), _exchange():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
