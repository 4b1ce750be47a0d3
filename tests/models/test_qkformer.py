"""QKFormer beyond the tables: the neuron that mixes images, every official configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from primesvt.models import build_model, create_model, from_official, to_official
from primesvt.models.families import FAMILIES
from primesvt.models.families.qkformer import QKFormerConfig, oddities

from ..channels.firing import excite

HEADS = {"imagenet": 2, "cifar": 8, "dvs": 16}


@pytest.mark.parametrize("name", HEADS)
def test_images_kept_apart_equal_batches_of_one(name: str, shared: Path) -> None:
    """The official outputs for each image alone, from a whole batch."""
    path = shared / "reference" / "golden" / f"qkformer-{name}-tiny"
    tensors = load_file(path.with_suffix(".safetensors"))
    state = {k.removeprefix("state."): t for k, t in tensors.items() if k.startswith("state.")}
    images, single = tensors["input"].double(), tensors["logits_single_f64"]
    settings: dict[str, Any] = {"num_heads": HEADS[name]}
    settings["time_steps"] = json.loads(path.with_suffix(".json").read_text())["T"]

    def logits(proj_neuron: str, *batches: torch.Tensor) -> torch.Tensor:
        model = from_official(state, family="qkformer", proj_neuron=proj_neuron, **settings)
        with torch.no_grad():
            return torch.cat([model.double().eval()(batch) for batch in batches])

    assert (logits("mixed", *images.split(1)) - single).abs().max() <= 1e-9
    assert (logits("per_image", images) - single).abs().max() <= 1e-9
    assert (logits("mixed", images) - tensors["logits_f64"]).abs().max() <= 1e-9
    assert (logits("mixed", images) - single).abs().max() > 1e-2


def firing(**settings: Any) -> tuple[nn.Module, torch.Tensor]:
    """A small network that really fires, and a batch of three for it."""
    config = QKFormerConfig(
        **{"embed_dims": (16, 32), "depths": (1, 1), "num_heads": 4, "num_classes": 7} | settings
    )
    torch.manual_seed(1)
    model = build_model(config).double()
    images = torch.randn(3, config.in_channels, 32, 32, dtype=torch.float64)
    assert excite(model, images, seed=3, low=0.001, high=0.99)
    return model, images


def test_an_image_depends_on_those_before_it_alone_where_there_is_one_time_step() -> None:
    model, images = firing(time_steps=1)
    with torch.no_grad():
        whole, first = model(images), model(images[:1])
        swapped = model(images[[1, 0, 2]])
    assert torch.equal(whole[:1], first)
    assert not torch.equal(whole[1], swapped[0])


def test_later_images_reach_earlier_ones_through_later_time_steps() -> None:
    model, images = firing(time_steps=3)
    with torch.no_grad():
        assert not torch.equal(model(images)[:1], model(images[:1]))
        assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("layout", HEADS)
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (33, 47)])
def test_images_of_any_shape(layout: str, size: tuple[int, int]) -> None:
    model, _ = firing(layout=layout, time_steps=2)
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        turned = model(images.transpose(-2, -1))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    assert turned.shape == (3, 7)


@pytest.mark.parametrize("layout", HEADS)
def test_turning_the_image_with_the_kernels_changes_nothing(layout: str) -> None:
    """Height and width mean the same: nothing is read in the order of the other."""
    model, _ = firing(layout=layout, proj_neuron="per_image", time_steps=2)
    images = torch.randn(2, 3, 40, 24, dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.transpose(-2, -1).clone())
        turned = model(images.transpose(-2, -1))
    assert torch.allclose(logits, turned, atol=1e-9)


CONFIGS: list[dict[str, Any]] = [
    {"embed_dims": (5, 10, 20), "num_heads": 5, "depths": (1, 2, 0)},
    {"embed_dims": (6, 12, 24), "num_heads": 3, "depths": (1, 1, 3), "mlp_ratio": 2.7},
    {"embed_dims": (6, 12, 24), "num_heads": 3, "depths": (1, 1, 1), "mlp_ratio": (2.7, 2, 0.5)},
    {"layout": "dvs", "embed_dims": (10, 20), "num_heads": 5, "depths": (1, 1), "in_channels": 2},
    {"layout": "cifar", "embed_dims": (8, 16), "num_heads": 1, "depths": (2, 3), "in_channels": 1},
]


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_every_configuration_is_read_off_its_own_state_dict(settings: dict[str, Any]) -> None:
    model = build_model(QKFormerConfig(**settings, num_classes=7))
    state = to_official(model)
    told = {"num_heads": settings["num_heads"]}
    again = from_official(state, family="qkformer", **told)
    assert again.config.depths == model.config.depths
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    images = torch.randn(3, model.config.in_channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))


def test_hidden_widths_that_the_official_code_rounds_down_are_kept() -> None:
    """``int(8 * 2.7)`` and ``int(16 * 2.7)`` are no multiple of each other."""
    config = QKFormerConfig(
        embed_dims=(8, 16), depths=(1, 1), num_heads=2, mlp_ratio=(21 / 8, 43 / 16)
    )
    found = FAMILIES["qkformer"].infer(to_official(build_model(config)))
    assert found["mlp_ratio"] == (21 / 8, 43 / 16)
    assert [QKFormerConfig(**found, num_heads=2).hidden(stage) for stage in (0, 1)] == [21, 43]


BAD = {
    "embed_dims": ((96, 192), "one entry per stage"),
    "layout": ("imagenet1k", "allowed: 'imagenet', 'cifar', 'dvs'"),
    "proj_neuron": ("corrected", "allowed: 'mixed', 'per_image'"),
    "num_heads": (7, "7 heads do not divide"),
    "mlp_ratio": ((4, 4), "one per stage"),
    "depths": ((1, -1, 1), "at least 0"),
    "tau": (1.0, "above 1"),
}


@pytest.mark.parametrize("field", BAD)
def test_a_mistake_is_named(field: str) -> None:
    value, message = BAD[field]
    with pytest.raises(ValueError, match=message):
        QKFormerConfig(**{field: value})


@pytest.mark.parametrize("ratio", [0, 0.0, -1])
def test_a_ratio_without_channels_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="must leave a channel"):
        QKFormerConfig(mlp_ratio=ratio)


def test_an_event_stem_needs_eight_channels() -> None:
    with pytest.raises(ValueError, match="give 8 or more"):
        QKFormerConfig(layout="dvs", embed_dims=(4, 8), depths=(1, 1), num_heads=2)


def test_only_full_blocks_with_the_official_neuron_mix_images() -> None:
    assert create_model("qkformer_digits").batch_dependent
    assert not create_model("qkformer_digits", proj_neuron="per_image").batch_dependent
    assert not create_model("qkformer_digits", depths=(1, 0)).batch_dependent
    assert not create_model("sdt_v2_digits").batch_dependent


def test_oddities_name_the_setting() -> None:
    official = oddities(QKFormerConfig())
    corrected = oddities(QKFormerConfig(proj_neuron="per_image"))
    assert any('proj_neuron="per_image"' in line for line in official)
    assert not any("proj_neuron" in line for line in corrected)
    assert all("rectangular" in lines[-1] for lines in (official, corrected))
