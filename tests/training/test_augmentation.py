"""Processes that share a batch change its images as one would."""

from __future__ import annotations

import torch

from primesvt.training import Augmentation


def test_shares_are_changed_as_the_whole() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    change, fill = Augmentation(shift=2, rotate=20, scale=0.1, flip=True), torch.zeros(1)
    whole = torch.Generator().manual_seed(3)
    expected = change(images, fill, whole)
    for rank, part in enumerate(images.split(2)):
        generator = torch.Generator().manual_seed(3)
        found = change(part, fill, generator, rank=rank, size=3)
        assert torch.equal(found, expected[2 * rank : 2 * rank + 2])
        assert torch.equal(generator.get_state(), whole.get_state())
