"""The loop can be stopped after any step, and goes on as if nothing had been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from primesvt.data import ImageSet, load_data
from primesvt.distributed import ProcessGroup
from primesvt.models import lif, reset
from primesvt.training import Augmentation
from primesvt.training.config import TrainingConfig
from primesvt.training.loop import BestWeights, TrainingLoop, _with_room, learning_rate_factor
from primesvt.training.snapshot import Snapshot, repeatable

ALONE = ProcessGroup.start(torch.device("cpu"))
IMAGES = torch.rand(26, 2, 6, 6, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(IMAGES, torch.arange(26) % 3)
LEARNING = TrainingConfig(
    epochs=3,
    batch_size=8,
    warmup_epochs=1,
    augmentation=Augmentation(shift=1, flip=True),
)

MIXED = LEARNING.changed(
    ema=0.8, augmentation=LEARNING.augmentation.model_copy(update={"mixup": 0.3, "cutmix": 1.0})
)


class Net(nn.Module):
    """Spikes, batch norm and dropout, which draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.lif = lif(0.5)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(64, 3)
        self.twin = self.fc.bias  # a parameter with two names

    def forward(self, x: Tensor) -> Tensor:
        current = self.norm(self.conv(x))
        spikes = self.lif(torch.stack([current, current])).mean(0)
        return self.fc(self.drop(spikes.flatten(1)))  # type: ignore[no-any-return]


def loss(output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output, labels)


def loop(learning: TrainingConfig = LEARNING, **options: Any) -> TrainingLoop:
    torch.manual_seed(5)
    asked = {"loss": loss, "processes": ALONE, "fill": torch.zeros(1), "classes": 3} | options
    return TrainingLoop(Net(), DATA, learning, **asked)


def quiet(stage: str, done: int, total: int) -> None:
    pass


def trained(moving: TrainingLoop, best: BestWeights) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses at the end of whatever is left."""
    for _ in range(len(moving.losses), moving.learning.epochs):
        moving.epoch(quiet)
        best.offer(moving.model, -abs(len(moving.losses) - 2.0))
    return moving.model.state_dict(), moving.losses


@pytest.mark.parametrize("learning", [LEARNING, MIXED], ids=["plain", "mixed and averaged"])
def test_it_goes_on_from_every_step(learning: TrainingConfig, tmp_path) -> None:
    snapshots: list[Snapshot] = []
    moving, best = loop(learning), BestWeights()

    def keep() -> None:
        one, other = moving.snapshot(), best.snapshot()
        facts = {**one.facts, **other.facts}
        snapshots.append(Snapshot(tensors={**one.tensors, **other.tensors}, facts=facts))

    keep()
    for _ in range(3):
        moving.epoch(quiet, after_step=keep)
        best.offer(moving.result, -abs(len(moving.losses) - 2.0))
        keep()
    expected, losses = moving.model.state_dict(), moving.losses
    assert len(snapshots) == 1 + 3 * 4 and moving.batches.steps == 3
    assert best.epoch == 2

    for snapshot in snapshots:
        again, kept = loop(learning), BestWeights()
        torch.manual_seed(1234)
        stored = Snapshot.load(snapshot.save(tmp_path / "state.safetensors"))
        again.restore(stored)
        kept.restore(stored, torch.device("cpu"))
        assert again.done == stored.facts["step"] + 3 * len(stored.facts["losses"])
        epochs = range(len(again.losses), 3)
        for number in epochs:
            again.epoch(quiet)
            kept.offer(again.result, -abs(number + 1 - 2.0))
        assert again.losses == losses
        assert kept.accuracies == best.accuracies and kept.epoch == 2
        found, average = again.model.state_dict(), again.result.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert all(torch.equal(average[k], v) for k, v in moving.result.state_dict().items())
        assert all(torch.equal(kept.state[name], best.state[name]) for name in best.state)


def test_an_epoch_that_had_ended_is_only_closed() -> None:
    """Stopped between the last step and the end of the epoch."""
    moving = loop()
    last: list[Snapshot] = []
    moving.epoch(quiet, after_step=lambda: last.append(moving.snapshot()))
    again = loop()
    again.restore(last[-1])
    told: list[int] = []
    again.epoch(lambda stage, done, total: told.append(done))
    assert told == [] and again.losses == moving.losses


def test_workers_change_nothing() -> None:
    expected, losses = trained(loop(), BestWeights())
    found, others = trained(loop(workers=1), BestWeights())
    assert others == losses
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_progress_counts_all_steps() -> None:
    told: list[tuple[str, int, int]] = []
    moving = loop(stage="fine-tuning")
    for _ in range(3):
        moving.epoch(lambda *call: told.append(call))
    assert told == [("fine-tuning", step, 9) for step in range(1, 10)]


def test_bfloat16_is_close_and_not_the_same() -> None:
    learning = LEARNING.changed(epochs=1)
    _, exact = trained(loop(learning), BestWeights())
    _, rounded = trained(loop(learning, bf16=True), BestWeights())
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.1)


def test_the_average_follows_the_weights() -> None:
    """Written out once more: the first step's weights, then a tenth of every step's."""
    moving = loop(LEARNING.changed(epochs=1, ema=0.9))
    expected: dict[str, Tensor] = {}

    def follow() -> None:
        now = {k: v.detach().clone() for k, v in moving.model.named_parameters()}
        before = expected or now
        expected.update({k: 0.9 * before[k] + 0.1 * now[k] for k in now})

    moving.epoch(quiet, after_step=follow)
    found = moving.result.state_dict()
    assert moving.result is not moving.model
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        assert not torch.equal(found[name], moving.model.state_dict()[name])


def test_averaged_weights_have_statistics_of_their_own() -> None:
    """Over three batches of training images, those that the number of the epoch draws."""
    moving = loop(TrainingConfig(epochs=1, batch_size=8, warmup_epochs=0, ema=0.9))
    moving.epoch(quiet)
    drawn = torch.randperm(26, generator=torch.Generator().manual_seed(0))[:24]
    net = moving.result
    assert isinstance(net, Net)
    with torch.no_grad():
        activations = net.conv(IMAGES[drawn])
    torch.testing.assert_close(net.norm.running_mean, activations.mean((0, 2, 3)))
    assert net.norm.momentum == 0.1 and not net.training


def test_our_images_are_decoded_once_and_give_the_batches_of_a_loader() -> None:
    decoded: list[int] = []

    class Source:
        name, classes, num_classes = "few", None, 3
        labels = np.arange(26) % 3

        def sample(self, index: int) -> Tensor:
            decoded.append(index)
            return IMAGES[index]

        def check(self, index: int) -> None: ...

    images = ImageSet(Source(), lambda image: image, name="few", indices=np.arange(26))
    expected, losses = trained(loop(), BestWeights())
    torch.manual_seed(5)
    asked = {"loss": loss, "processes": ALONE, "fill": torch.zeros(1), "classes": 3}
    moving = TrainingLoop(Net(), images, LEARNING, **asked)
    found, others = trained(moving, BestWeights())
    assert others == losses
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sorted(decoded) == sorted([0, *range(1, 26)])


def test_images_too_many_for_memory_are_loaded_batch_by_batch(monkeypatch) -> None:
    monkeypatch.setattr("primesvt.training.loop.IN_MEMORY", 100)
    digits = load_data("digits").test
    asked = {"loss": loss, "processes": ALONE, "fill": torch.zeros(1), "classes": 10}
    assert isinstance(TrainingLoop(Net(), digits, LEARNING, **asked).batches._loader, DataLoader)


def test_the_callers_random_state_is_put_back() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with repeatable(3, 1, torch.device("cpu")):
        torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_damaged_state_is_named(tmp_path) -> None:
    path = loop().snapshot().save(tmp_path / "state.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged: .*; delete it"):
        Snapshot.load(path)


@pytest.mark.parametrize("asked", [False, True])
def test_compiling_is_asked_for(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    moving = loop(LEARNING.changed(epochs=1, compile=asked))
    moving.epoch(quiet)
    assert compiled == ([moving.model] if asked else [])


def test_many_networks_in_one_process_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch stops at eight versions of one ``forward``; a sweep trains more than that."""
    compiled = []
    compile = torch.compile

    def kernels(graph: Any, inputs: Any) -> Any:
        compiled[-1] += 1
        return graph

    monkeypatch.setattr(torch, "compile", lambda model, **_: compile(model, backend=kernels))
    for width in range(1, 11):
        compiled.append(0)
        net = nn.Sequential(nn.Conv2d(2, width, 3), nn.Flatten(), nn.Linear(16 * width, 3))
        learning = LEARNING.changed(epochs=1, batch_size=26, compile=True)
        asked = {"loss": loss, "processes": ALONE, "fill": torch.zeros(1), "classes": 3}
        TrainingLoop(net, DATA, learning, **asked).epoch(quiet)
    assert min(compiled) > 0


def test_a_loss_that_is_read_a_step_later_is_the_same() -> None:
    """A GPU computes the next step while the loss of one is read."""
    _, at_once = trained(loop(), BestWeights())
    later = loop()
    later._ahead = 1
    assert trained(later, BestWeights())[1] == at_once
    assert not later._unread


def test_the_step_whose_loss_is_not_finite_is_named_also_when_it_is_read_later() -> None:
    moving = loop(loss=lambda output, images, targets: output.sum() * float("nan"))
    moving._ahead = 1
    with pytest.raises(ValueError, match="the loss is nan in step 1: lower learning_rate"):
        moving.epoch(quiet)


def test_the_steps_are_those_of_a_plain_loop() -> None:
    """Order, augmentation, schedule, decay and clipping, written out once more, bit by bit."""
    moving = loop()
    expected, losses = trained(moving, BestWeights())
    torch.manual_seed(5)
    net, generator = Net(), torch.Generator().manual_seed(LEARNING.seed)
    loader = DataLoader(DATA, batch_size=8, shuffle=True, drop_last=True, generator=generator)
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, 3, 9)
    )
    found = []
    for _ in range(3):
        total = 0.0
        for images, labels in loader:
            images = LEARNING.augmentation(images, torch.zeros(1), generator)
            reset(net)
            value = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += value.item()
        found.append(total / 3)
    assert found == losses
    assert all(torch.equal(net.state_dict()[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("free", "kind"), [(400, "cuda"), (399, "cpu")])
def test_images_stay_on_a_gpu_that_has_room(free: int, kind: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1000))
    assert _with_room(torch.device("cuda:0"), 100).type == kind
    assert _with_room(torch.device("cpu"), 10**15).type == "cpu"
