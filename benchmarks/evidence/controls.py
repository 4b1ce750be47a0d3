"""Controls: the whole network tuned as long, zeros instead of cuts, a narrow one from scratch."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from checkpoints import Case
from torch import nn

from evidence.rows import PUBLISHED
from evidence.unstructured import sparse_costs, unstructured
from primesvt.data import Splits
from primesvt.evaluation.confidence import accuracy_of
from primesvt.models import SpikingViT, create_model
from primesvt.profiling.memory import parameter_count
from primesvt.profiling.timing import Pace
from primesvt.training import TrainRecipe, train
from primesvt.training.finetuning import finetune
from primesvt.training.record import recorded_recipe

__all__ = ["narrow", "sparse", "tested", "unpruned"]


def unpruned(case: Case, splits: Splits, tuning: dict[str, Any]) -> dict[str, Any]:
    """The whole network, fine-tuned as the pruned ones are, by itself as teacher."""
    record = finetune(
        case.model, teacher=case.source, data=splits, recipe=tuning, batch_size=case.batch_size
    ).record.to_dict()
    return {"saving": 0.0, "after": {"test": record["before"]["test"]}, "tuned": record}


def sparse(case: Case) -> dict[str, Any]:
    """The smallest weights zeroed, as many as the paper saves: storage and time stay."""
    zeroed = unstructured(case.model, case.graph, case.groups, PUBLISHED)
    images = torch.stack([case.test_images[number][0] for number in range(32)])
    costs = sparse_costs(
        zeroed, case.model, case.graph, case.groups, (images,), pace=Pace(seconds=20)
    )
    return {
        "saving": 0.0,
        "after": {"test": tested(case, zeroed)},
        "sparsity": costs.sparsity,
        "dense_bytes": costs.dense_bytes,
        "csr_bytes": costs.csr_bytes,
        "time_ratio": costs.time_ratio,
    }


def tested(case: Case, network: nn.Module) -> dict[str, Any]:
    """Top-1 on the test set, with its interval."""
    right = case.test(network)
    found = accuracy_of(float(right.mean()), len(right))
    assert found is not None
    return dataclasses.asdict(found)


def narrow(case: Case, parameters: int, folder: Path) -> dict[str, Any]:
    """A network of the same recipe, its widths scaled down to a number of parameters, trained."""
    recipe = recorded_recipe(case.source)
    assert recipe is not None
    widths = _widths(case.model, recipe, parameters)
    recipe = recipe.changed(
        model_options={**recipe.model_options, "embed_dims": widths}, data=str(case.data)
    )
    record = train(recipe, out_dir=folder).to_dict()
    record["recipe"]["data"] = case.name  # not where it lay
    shutil.rmtree(folder / "model")
    saving = 1 - record["parameters"] / parameter_count(case.model)
    return {"saving": saving, "after": record, "widths": widths}


def _widths(model: SpikingViT, recipe: TrainRecipe, parameters: int) -> list[int]:
    """The widest ones that stay within a number of parameters, all in proportion."""
    whole, step = list(model.config.embed_dims), _step(model)
    for share in range(100, 0, -1):
        widths = [max(step, round(width * share / 100 / step) * step) for width in whole]
        made = create_model(recipe.model, **{**recipe.model_options, "embed_dims": widths})
        if parameter_count(made) <= parameters:
            return widths
    raise ValueError(f"no {recipe.model} is as small as {parameters:,} parameters")


def _step(model: SpikingViT) -> int:
    """Widths are multiples of the number of heads."""
    heads = model.config.num_heads
    return max(heads) if isinstance(heads, tuple | list) else int(heads)
