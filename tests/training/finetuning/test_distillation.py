"""The loss is what docs/finetuning.md says, term by term."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from primesvt.models import create_model
from primesvt.training.config import FinetuneRecipe
from primesvt.training.distillation import (
    Distillation,
    answer_distance,
    feature_distance,
)

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 9, 0, 9, 3, 3])


def loss_of(student: nn.Module, teacher: nn.Module | None, **asked: object) -> torch.Tensor:
    loss = Distillation(student, teacher, FinetuneRecipe(**asked))  # type: ignore[arg-type]
    with loss.watching():
        return loss(student(IMAGES), IMAGES, LABELS)


def test_answers_are_compared_at_a_temperature() -> None:
    logits, wanted = torch.randn(5, 4), torch.randn(5, 4)
    p, q = (wanted / 3).softmax(1), (logits / 3).softmax(1)
    by_hand = 9 * (p * (p / q).log()).sum(1).mean()
    assert answer_distance(logits, wanted, 3.0).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_features_are_compared_as_a_share() -> None:
    wanted = torch.randn(2, 3, 4)
    assert feature_distance(wanted * 1.5, wanted).item() == pytest.approx(0.25)
    assert feature_distance(torch.zeros(3), torch.zeros(3)).item() == 0


def test_terms_are_weighted(pruned, teacher) -> None:
    student = pruned.eval()
    with torch.no_grad():
        logits, answer = student(IMAGES), teacher(IMAGES)
        labels = F.cross_entropy(logits, LABELS, label_smoothing=0.2)
        distance = answer_distance(logits, answer, 4.0)
        asked = {"distillation": 0.25, "temperature": 4.0, "label_smoothing": 0.2}
        found = loss_of(student, teacher, **asked)
    assert distance > 0.01
    assert found.item() == pytest.approx((0.75 * labels + 0.25 * distance).item())


def test_block_outputs_are_those_of_the_teacher(pruned, teacher) -> None:
    student = pruned.eval()
    with torch.no_grad():
        plain = loss_of(student, teacher)
        found = loss_of(student, teacher, feature_weight=3.0)
        seen, wanted = student.enter(IMAGES), teacher.enter(IMAGES)
        shares = []
        for mine, theirs in zip(student.blocks, teacher.blocks, strict=True):
            seen, wanted = mine(seen), theirs(wanted)
            shares.append(feature_distance(seen, wanted))
    assert shares[-1] > 0.01
    assert (found - plain).item() == pytest.approx(3 * torch.stack(shares).mean().item(), rel=1e-4)


def test_gradients_reach_the_student_alone(pruned, teacher) -> None:
    theirs = copy.deepcopy(teacher)
    loss_of(pruned.train(), theirs, distillation=1.0, feature_weight=1.0).backward()
    assert all(p.grad is not None for p in pruned.parameters())
    assert all(p.grad is None for p in theirs.parameters())


def test_nothing_stays_in_the_networks(pruned, teacher) -> None:
    theirs = copy.deepcopy(teacher)
    loss = Distillation(pruned, theirs, FinetuneRecipe(feature_weight=1.0))
    loss.check(pruned.train(), IMAGES, LABELS)
    assert pruned.training
    assert not any(block._forward_hooks for block in (*pruned.blocks, *theirs.blocks))
    copy.deepcopy(pruned)


def test_two_heads_learn_alike() -> None:
    torch.manual_seed(0)
    student = create_model("sdt_v2_digits", distillation=True).train()
    teacher = create_model("sdt_v2_digits", pretrained=True)
    heads = student(IMAGES)
    loss = Distillation(student, teacher, FinetuneRecipe(distillation=0.5))
    each = [loss(head, IMAGES, LABELS).item() for head in heads]
    assert each[0] != each[1]
    assert loss(heads, IMAGES, LABELS).item() == pytest.approx(sum(each) / 2)


def test_no_teacher_where_one_is_needed(pruned) -> None:
    with pytest.raises(ValueError, match="distillation needs the unpruned model"):
        Distillation(pruned, None, FinetuneRecipe())
    assert Distillation(pruned, None, FinetuneRecipe(distillation=0)).teacher is None


def test_a_teacher_of_other_classes(pruned) -> None:
    other = create_model("sdt_v2_digits", num_classes=7).eval()
    with pytest.raises(
        ValueError, match=r"teacher answers \[6, 7\] and the pruned model \[6, 10\]"
    ):
        Distillation(pruned, other, FinetuneRecipe()).check(pruned, IMAGES, LABELS)


def test_streams_that_were_pruned_cannot_be_compared(pruned) -> None:
    wider = create_model("sdt_v2_digits", embed_dims=(48, 64, 72, 80)).eval()
    with pytest.raises(ValueError, match=r"so their outputs cannot be compared .*feature_weight"):
        loss = Distillation(pruned, wider, FinetuneRecipe(feature_weight=1.0))
        loss.check(pruned, IMAGES, LABELS)


def test_networks_whose_blocks_nobody_knows(pruned, teacher) -> None:
    asked = FinetuneRecipe(feature_weight=1.0)
    with pytest.raises(ValueError, match="models of the registry only"):
        Distillation(nn.Linear(2, 2), teacher, asked)
    with pytest.raises(ValueError, match="other blocks"):
        Distillation(pruned, create_model("spikformer_digits"), asked)
    with pytest.raises(ValueError, match="compiled model"):
        Distillation(pruned, teacher, asked.changed(compile=True))
