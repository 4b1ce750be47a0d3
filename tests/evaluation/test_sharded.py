"""Batches dealt out among processes: outcomes, order and races are those of one process."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from primesvt.data import Splits
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup
from primesvt.evaluation.evaluator import DataEvaluator, _outcomes, outcomes
from primesvt.evaluation.sequential_test import SequentialTest
from primesvt.models.shared_prefix import VariantBatch
from primesvt.models.stored_outputs import ActivationCache

from ..played_processes import Played, play

CPU = torch.device("cpu")
SAMPLES, CLASSES = 150, 4
STAYS = (1, 4, 5, 23, 20)  # batches of 22 after which networks leave a race, within a round or not


class Mixing(nn.Module):
    """Linear, of images as they stand out of their batch: its answers depend on the batch."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) @ self.weight


def world() -> tuple[TensorDataset, Tensor]:
    """Images, and the weight of a network that mostly gets their labels right."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 6, generator=generator)
    weight = torch.randn(6, CLASSES, generator=generator)
    noise = 0.3 * torch.randn(SAMPLES, CLASSES, generator=generator)
    return TensorDataset(images, (images @ weight + noise).argmax(1)), weight


def networks() -> list[Mixing]:
    """From one that is as good as any to one that guesses."""
    _, weight = world()
    generator = torch.Generator().manual_seed(1)
    noises = [torch.randn(weight.shape, generator=generator) for _ in range(5)]
    return [
        Mixing(weight + far * noise)
        for far, noise in zip((0, 0.2, 0.6, 1.2, 9), noises, strict=True)
    ]


def found(processes: ProcessGroup, total: int, batch: int, **options: Any) -> list[list[bool]]:
    data = Subset(world()[0], range(total))
    told: dict[str, Any] = {"workers": 0, "progress": None, "stage": "here"} | options
    right = _outcomes(
        VariantBatch(networks=networks()), data, CPU, batch_size=batch, processes=processes, **told
    )
    return [each.tolist() for each in right]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize(("total", "batch"), [(150, 7), (40, 8), (9, 4), (3, 2)])
def test_outcomes_are_those_of_one_process(size: int, total: int, batch: int) -> None:
    """The last batch incomplete, on any process; some without a batch at all."""
    alone = found(SINGLE_PROCESS, total, batch)
    assert [len(right) for right in alone] == [total] * 5
    for each in play(size, lambda processes: found(processes, total, batch)):
        assert each == alone


def test_the_batches_matter() -> None:
    """So that the test above could fail."""
    assert found(SINGLE_PROCESS, 150, 7) != found(SINGLE_PROCESS, 150, 8)


def test_without_a_race_answers_come_together_once() -> None:
    def meetings(processes: Played, **options: Any) -> int:
        found(processes, 150, 7, **options)
        return processes.meeting.held

    assert play(3, meetings) == [1, 1, 1]
    assert play(3, lambda p: meetings(p, leaves=lambda *_: False)) == [8, 8, 8]  # 22 batches


def test_in_a_race_all_hear_of_every_batch_in_order() -> None:
    def raced(processes: ProcessGroup) -> tuple[list[Any], list[list[bool]]]:
        calls: list[Any] = []

        def leaves(number: int, right: Any) -> bool:
            calls.append((number, right.tolist()))
            return sum(each == number for each, _ in calls) == STAYS[number]

        return calls, found(processes, 150, 7, leaves=leaves)

    calls, alone = raced(SINGLE_PROCESS)
    assert [len(right) for right in alone] == [7, 28, 35, 150, 140]
    for size in (2, 3, 4):
        assert play(size, raced) == [(calls, alone)] * size


def evaluator(processes: ProcessGroup) -> DataEvaluator:
    data, _ = world()
    splits = Splits(name="world", selection=data, test=data, calibration=data)
    return DataEvaluator(splits=splits, batch_size=7, device=CPU, processes=processes)


@pytest.mark.parametrize("size", [2, 4])
def test_networks_are_rejected_as_by_one_process(size: int) -> None:
    def measured(processes: ProcessGroup) -> list[Any]:
        evaluate, race = (
            evaluator(processes),
            SequentialTest(limit=0.05, total=SAMPLES, gate="point"),
        )
        before = evaluate(networks()[0]).outcomes
        several = evaluate.together(VariantBatch(networks=networks()), race, before)
        assert all(each.outcomes is not None for each in several)
        return [(each.value, each.outcomes.tolist(), each.rejected) for each in several]

    alone = measured(SINGLE_PROCESS)
    seen = [len(right) for _, right, _ in alone]
    assert seen[0] == SAMPLES and len({*seen}) >= 3 and min(seen) < SAMPLES / 2
    assert [rejected for *_, rejected in alone] == [each < SAMPLES for each in seen]
    assert play(size, measured) == [alone] * size


def test_a_single_network_on_any_set() -> None:
    data, _ = world()
    alone = outcomes(networks()[1], data, batch_size=7)
    shared = play(3, lambda p: outcomes(networks()[1], data, batch_size=7, processes=p))
    on = play(3, lambda p: evaluator(p).on(data, networks()[1]).outcomes)
    assert all((each == alone).all() for each in (*shared, *on))


def test_progress_counts_the_samples_of_all() -> None:
    def heard(processes: ProcessGroup, **options: Any) -> list[Any]:
        calls: list[Any] = []
        found(processes, 40, 8, progress=lambda *call: calls.append(call), **options)
        return calls

    steps = [("here", done, 40) for done in (16, 32, 40)]
    assert play(2, heard) == [steps, steps]
    assert heard(SINGLE_PROCESS, leaves=lambda *_: True) == [("here", 40, 40)]
    assert play(2, lambda p: heard(p, leaves=lambda *_: True)) == [[("here", 40, 40)]] * 2


@pytest.mark.parametrize("race", [False, True])
def test_a_mistake_in_one_batch_is_raised_by_all(race: bool) -> None:
    images, labels = world()[0].tensors
    labels = labels.clone()
    labels[11] = 7  # in the second batch, which falls to the second process

    def refused(processes: ProcessGroup) -> str:
        with pytest.raises(ValueError, match="label 7") as caught:
            _outcomes(
                VariantBatch(networks=networks()), TensorDataset(images, labels), CPU, batch_size=7,
                processes=processes, workers=0, progress=None, stage="here",
                leaves=(lambda *_: False) if race else None,
            )  # fmt: skip
        return str(caught.value)

    assert play(3, refused) == [refused(SINGLE_PROCESS)] * 3


def test_every_process_has_its_own_batches_in_front_of_blocks(model, digits) -> None:
    """What is kept of a batch is found under its own number, whoever runs it."""

    def run(processes: ProcessGroup) -> tuple[list[list[bool]], list[int]]:
        own = copy.deepcopy(model)
        kept = ActivationCache(ceiling=10**8)
        pair = VariantBatch(networks=[own, own], common=own, starts=[0, 3], prefixes=kept)
        right = [
            [
                each.tolist()
                for each in _outcomes(
                    pair, digits.selection, CPU, batch_size=16, processes=processes,
                    workers=0, progress=None, stage="here", data="selection",
                )
            ]
            for _ in range(2)
        ]  # fmt: skip
        assert right[0] == right[1]
        numbers = {number for place in kept._kept.values() for number in place}
        return right[0], sorted(numbers)

    (first, even), (second, odd) = play(2, run)
    assert first == second == run(SINGLE_PROCESS)[0]
    assert (even, odd) == ([0, 2], [1, 3])


def test_a_race_needs_something_to_race_against() -> None:
    """Without outcomes of the unpruned network, all see all images."""
    race = SequentialTest(limit=0.0, total=SAMPLES, gate="point")
    several = evaluator(SINGLE_PROCESS).together(VariantBatch(networks=networks()), race)
    assert not any(each.rejected for each in several)
    assert [np.shape(each.outcomes) for each in several] == [(SAMPLES,)] * 5
