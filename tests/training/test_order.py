"""Every image comes once an epoch, in an order that the seed draws, shared by all processes."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

from primesvt.training.loop import ResumableBatchSampler


def order(images: int, batch: int, seed: int = 0, **place: int) -> ResumableBatchSampler:
    return ResumableBatchSampler(images, batch, torch.Generator().manual_seed(seed), **place)


@pytest.mark.parametrize(("images", "batch"), [(10, 3), (12, 4), (5, 64)])
def test_the_order_is_that_of_a_shuffling_loader(images: int, batch: int) -> None:
    """Bit by bit, so that trainings on record repeat: also what is drawn in between."""
    generator = torch.Generator().manual_seed(7)
    loader = DataLoader(
        range(images),  # type: ignore[arg-type]
        batch_size=min(batch, images),
        shuffle=True,
        drop_last=True,
        generator=generator,
    )
    ours = ResumableBatchSampler(images, batch, torch.Generator().manual_seed(7))
    for _ in range(3):
        expected, found = [], []
        for each in loader:
            expected.append((each.tolist(), torch.rand(2, generator=generator).tolist()))
        ours.begin()
        for mine in ours:
            found.append((mine, torch.rand(2, generator=ours.generator).tolist()))
        ours.end()
        assert found == expected
    assert ours.steps == len(expected)


def test_processes_share_every_batch() -> None:
    whole, parts = order(23, 6), [order(23, 6, rank=rank, size=3) for rank in range(3)]
    for each in (whole, *parts):
        each.begin()
    shares = list(zip(*parts, strict=True))
    assert [[*chain(*each)] for each in shares] == list(whole)
    assert all(len(share) == 2 for each in shares for share in each)


def test_an_epoch_goes_on_from_any_step() -> None:
    first = order(11, 2)
    first.begin()
    torch.rand(3, generator=first.generator)
    first.end()
    first.begin()
    for step in range(6):
        later = order(11, 2, seed=99)
        later.again(first.state)
        later.skip(step)
        assert list(later) == list(first)[step:]
        assert len(later) == 5 - step
