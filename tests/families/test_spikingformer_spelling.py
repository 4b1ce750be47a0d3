"""Spikingformer weights under the key names that an old log of the authors shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from primesvt.models import from_official
from primesvt.models.families.spikingformer import infer, modernise

STEMS = {"imagenet": "proj4", "cifar": "block4", "dvs": "proj4"}


def official(shared: Path, name: str) -> dict[str, Tensor]:
    tensors = load_file(shared / "reference" / "golden" / f"{name}-tiny.safetensors")
    return {key.removeprefix("state."): t for key, t in tensors.items() if key[:6] == "state."}


def as_in_the_log(state: dict[str, Tensor], last: str) -> dict[str, Tensor]:
    def spelled(key: str) -> str:
        return key.replace(f".{last}_", ".rpe_").replace(".mlp1_", ".fc1_")

    renamed = {spelled(key).replace(".mlp2_", ".fc2_"): t for key, t in state.items()}
    assert len(renamed) == len(state) and renamed.keys() != state.keys()
    return renamed


@pytest.mark.parametrize("variant", STEMS)
def test_old_names_become_the_present_ones(shared: Path, variant: str) -> None:
    state = official(shared, f"spikingformer-{variant}")
    old = as_in_the_log(state, STEMS[variant])
    found = modernise(old)
    assert list(found) == list(state)
    assert all(found[key] is state[key] for key in state)
    assert modernise(state) is state
    with pytest.raises(KeyError):
        infer(old)


def test_a_checkpoint_with_old_names_loads(shared: Path) -> None:
    state = official(shared, "spikingformer-cifar")
    old = as_in_the_log(state, "block4")
    models = [from_official(each, family="spikingformer", num_heads=4) for each in (state, old)]
    x = torch.rand(1, 3, 16, 16)
    first, second = (model.eval()(x) for model in models)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "missing",
    [
        "patch_embed.proj3_conv.weight",
        "patch_embed.rpe_conv.weight",
        "patch_embed.rpe_bn.weight",
        "block.0.mlp.fc1_conv.weight",
        "block.0.mlp.fc2_bn.weight",
    ],
)
def test_names_stay_unless_all_the_old_ones_are_there(shared: Path, missing: str) -> None:
    old = as_in_the_log(official(shared, "spikingformer-imagenet"), "proj4")
    del old[missing]
    assert modernise(old) is old


@pytest.mark.parametrize("variant", STEMS)
def test_spikformer_is_not_mistaken_for_it(shared: Path, variant: str) -> None:
    state = official(shared, f"spikformer-{variant}")
    assert modernise(state) is state
    with pytest.raises(KeyError):
        infer(modernise(state))
