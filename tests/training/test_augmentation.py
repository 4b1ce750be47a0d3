"""Images are changed and mixed as asked; processes that share a batch draw as one would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


IMAGES = torch.rand(5, 2, 6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 2, 0])


def mixed(seed: int, **amounts: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return Augmentation(**amounts).mix(IMAGES, LABELS, 3, generator)


@given(seed=st.integers(0, 2**31), alpha=st.floats(0.1, 3))
@settings(max_examples=25, deadline=None)
def test_mixup_blends_images_and_labels_by_one_share(seed: int, alpha: float) -> None:
    images, targets = mixed(seed, mixup=alpha)
    kept = targets[1, 2].item()  # of image 1, class 2, and of its partner 3, class 2
    assert kept == pytest.approx(1)
    share = targets[0, 0].item()  # of image 0 and its partner 4, both class 0
    assert share == pytest.approx(1)
    one_hot = torch.nn.functional.one_hot(LABELS, 3).float()
    partner = IMAGES.flip(0)
    difference = (IMAGES - partner)[0]
    k = ((images[0] - partner[0]) * difference).sum() / difference.square().sum()
    torch.testing.assert_close(images, k * IMAGES + (1 - k) * partner, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(targets, k * one_hot + (1 - k) * one_hot.flip(0), atol=1e-4, rtol=0)


@given(seed=st.integers(0, 2**31), alpha=st.floats(0.1, 3))
@settings(max_examples=25, deadline=None)
def test_cutmix_pastes_one_rectangle_and_counts_its_pixels(seed: int, alpha: float) -> None:
    labels = torch.tensor([0, 1, 2, 1, 2])
    generator = torch.Generator().manual_seed(seed)
    images, targets = Augmentation(cutmix=alpha).mix(IMAGES, labels, 3, generator)
    pasted = (images != IMAGES).any(1)[0]  # of image 0 out of image 4
    rows, columns = pasted.any(1), pasted.any(0)
    assert torch.equal(pasted, rows[:, None] & columns[None])
    torch.testing.assert_close(images[0][:, pasted], IMAGES[4][:, pasted])
    share = pasted.float().mean().item()
    assert targets[0].tolist() == pytest.approx([1 - share, 0, share], abs=1e-6)


def test_with_both_a_coin_decides() -> None:
    pasted = 0
    for seed in range(40):
        images, _ = mixed(seed, mixup=1.0, cutmix=1.0)
        pasted += bool(((images == IMAGES) | (images == IMAGES.flip(0))).all())
    assert 8 < pasted < 32


def test_mixing_alone_moves_nothing_and_draws_no_transforms() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert Augmentation(mixup=0.2, cutmix=1.0)(IMAGES, torch.zeros(1), generator) is IMAGES
    assert torch.equal(generator.get_state(), before)
    assert not Augmentation(shift=2).mixes
