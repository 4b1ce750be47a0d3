"""Settings of ``primesvt.load`` that tensors do not tell: defaults, overrides, what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import primesvt
from primesvt.checkpoint.folder import save_model
from primesvt.models import SpikingViT, build_model, create_model, model_entry, to_official
from primesvt.models.families import FAMILIES
from primesvt.models.official.recognise import SETTINGS, recognise

from .official_files import FILES, GOLDENS, golden

Load = Callable[..., SpikingViT]


@pytest.fixture
def load(shared: Path, tmp_path: Path) -> Load:
    """Load one of the reference files by name, as it is published."""

    def run(name: str, **settings: Any) -> SpikingViT:
        file, make = FILES[name]
        torch.save(make(golden(shared / "reference", name)[0]), tmp_path / file)
        model: SpikingViT = primesvt.load(tmp_path / file, **settings)
        return model

    return run


def logits(model: SpikingViT, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def test_an_unknown_setting_is_a_type_error_that_lists_the_known(load):
    with pytest.raises(TypeError, match="unknown setting 'heads'") as error:
        load("spikformer-imagenet-tiny", heads=4)
    assert [name for name in SETTINGS if name in str(error.value)] == [
        "time_steps",
        "num_heads",
        "pooling_stat",
        "dvs_mode",
        "spike_mode",
        "img_size",
        "group_size",
        "spike_levels",
        "tau",
    ]


# A file and another value for every setting, and whether the logits must change with it.
OTHERWISE = {
    "time_steps": ("spikformer-imagenet-tiny", 2),
    "num_heads": ("sdt1-dvs-tiny", 4),
    "pooling_stat": ("sdt1-imagenet-tiny", "1110"),
    "dvs_mode": ("sdt1-dvs-tiny", False),
    "spike_mode": ("sdt1-plif-mlp1-tiny", "plif"),
    "img_size": ("spikingresformer-imagenet-tiny", 64),
    "group_size": ("spikingresformer-imagenet-tiny", 16),
    "spike_levels": ("sdt3-large-tiny", 8),
    "tau": ("spikingformer-imagenet-tiny", 1.5),
}
TOLD_BY_TENSORS = ("num_heads", "spike_mode", "group_size")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_given(name, load, shared):
    file, value = OTHERWISE[name]
    images = golden(shared / "reference", file)[1]["input"]
    usual, other = load(file), load(file, **{name: value})
    assert getattr(other.config, name) == other.loaded.given[name] == value
    assert getattr(other, "time_steps", None) == other.config.time_steps
    same = torch.equal(logits(usual, images), logits(other, images))
    assert same == (name in TOLD_BY_TENSORS)
    assert (name in usual.loaded.inferred) == (name in TOLD_BY_TENSORS)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("sdt1-dvs-tiny", {"num_heads": 2}, "the tensors of the checkpoint say num_heads=4"),
        ("spikingresformer-imagenet-tiny", {"group_size": 8}, "say group_size=16; leave it out"),
        ("sdt1-plif-mlp1-tiny", {"spike_mode": "lif"}, "say spike_mode='plif'"),
        ("sdt2-tiny", {"spike_levels": 8}, "has no setting 'spike_levels'; it has: "),
        ("spikformer-imagenet-tiny", {"num_heads": 5}, "5 heads"),
        ("spikformer-imagenet-tiny", {"time_steps": 0}, "time_steps is 0"),
        ("sdt1-imagenet-tiny", {"pooling_stat": "11"}, "four flags"),
        ("spikformer-imagenet-tiny", {"family": "sdt_v2"}, "do not fit the family sdt_v2 "),
    ],
)
def test_a_setting_that_cannot_be_is_refused(file, settings, message, load):
    with pytest.raises(ValueError, match=message):
        load(file, **settings)


def meta(shared: Path, manifest: str, **changed: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a published variant without their values, some of another shape."""
    path = shared / "reference" / "manifest" / f"{manifest}.json"
    shapes = json.loads(path.read_text())["state_dict"] | changed
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in shapes.items()}


def levels(state: dict[str, torch.Tensor]) -> int:
    config: Any = recognise(state, family=None, overrides={}).config
    return int(config.spike_levels)


@pytest.mark.parametrize("size", ["12-512-83M", "12-768-171M"])
@pytest.mark.parametrize("suffix", ["", "-kd"])
def test_the_published_large_models_have_eight_levels_and_no_others(size, suffix, shared):
    manifest = f"sdt3-imagenet-large-{size}{suffix}"
    assert levels(meta(shared, manifest)) == 8
    width = int(size.split("-")[1])
    heads = {"head.weight": (10, width), "head.bias": (10,)}
    if suffix:
        heads |= {"head_kd.weight": (10, width), "head_kd.bias": (10,)}
    assert levels(meta(shared, manifest, **heads)) == 4


@pytest.mark.parametrize("name", ["sdt3-base-tiny", "sdt3-large-tiny", "sdt3-large-1x8-tiny"])
def test_other_sizes_have_four_levels_unless_told(name, load):
    assert load(name).config.spike_levels == 4
    assert load(name, spike_levels=8).config.spike_levels == 8


def test_the_image_size_is_that_of_the_first_input_and_stays(load, shared, tmp_path):
    name = "spikingresformer-imagenet-tiny"
    images = golden(shared / "reference", name)[1]["input"]
    model = load(name)
    assert model.config.img_size is None
    logits(model, images)
    assert model.config.img_size == 32
    larger = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 4
    after = logits(model, larger)
    assert model.config.img_size == 32
    assert not torch.equal(after, logits(load(name, img_size=(64, 48)), larger))

    save_model(model, tmp_path / "saved")
    again = primesvt.load(tmp_path / "saved")
    assert again.config.img_size == 32
    assert torch.equal(after, logits(again, larger))
    save_model(load(name), tmp_path / "unused")
    assert primesvt.load(tmp_path / "unused").config.img_size is None


def test_the_published_83m_weights_load_without_their_broken_branch(load, shared, tmp_path, capsys):
    """768 entries of a norm behind 512 channels, as issue 9 there reports; here 48 behind 32."""
    name = "sdt3-large-base-tiny"
    state, tensors = golden(shared / "reference", name)
    norms = [key for key in state if ".rep_conv.conv1.1." in key and state[key].ndim]
    broken = state | {
        key: torch.cat([state[key], state[key][: len(state[key]) // 2]]) for key in norms
    }
    torch.save({"model": broken}, tmp_path / "83M-1x4_83_6.pth")
    model = primesvt.load(tmp_path / "83M-1x4_83_6.pth", **GOLDENS[name][1])
    told = " ".join(capsys.readouterr().err.split())
    assert "issue 9 of the official repository" in told
    assert "adds nothing; this was not tried on the real file" in told
    assert all(torch.equal(to_official(model)[key], broken[key]) for key in broken)

    without = build_model(replace(model.config, rep_ratio=None, rep_norm_ratio=None))
    known = without.state_dict()
    without.load_state_dict({key: model.state_dict()[key] for key in known})
    images = tensors["input"]
    assert torch.equal(logits(model, images), logits(without.eval(), images))
    assert not torch.equal(logits(model, images), logits(load(name, **GOLDENS[name][1]), images))


@pytest.mark.parametrize("suffix", ["", "-kd"])
def test_the_published_shapes_of_the_83m_weights_are_taken(suffix, shared):
    manifest = f"sdt3-imagenet-large-12-512-83M{suffix}"
    wrong = {
        f"block3.{block}.rep_conv.conv1.1.{name}": (768,)
        for block in range(12)
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    found = recognise(meta(shared, manifest, **wrong), family=None, overrides={})
    assert found.entry.name == f"sdt_v3_large_83m{suffix.replace('-', '_')}"
    assert not found.loaded.exact
    assert any("issue 9" in note for note in found.loaded.notes)


@pytest.mark.parametrize("kind", ["imagenet", "cifar", "dvs"])
def test_models_that_mix_the_images_of_a_batch_say_so(kind, load, shared, capsys):
    name = f"qkformer-{kind}-tiny"
    tensors = golden(shared / "reference", name)[1]
    settings = GOLDENS[name][1]
    mixed = load(name, **settings).double()
    told = " ".join(capsys.readouterr().err.split())
    assert "the images of a batch influence each other" in told
    assert 'proj_neuron="per_image" keeps them apart' in told

    apart = load(name, **settings, proj_neuron="per_image").double()
    assert "influence each other" not in capsys.readouterr().err
    images = tensors["input"].double()
    alone = tensors["logits_single_f64"]
    assert (logits(apart, images) - alone).abs().max() <= 1e-9
    assert (logits(mixed, images) - alone).abs().max() > 1e-3


@pytest.mark.parametrize("name", FILES)
def test_oddities_are_printed(name, load, capsys):
    model = load(name, **GOLDENS[name][1])
    told = " ".join(capsys.readouterr().err.split())
    oddities = FAMILIES[model.config.family].oddities(model.config)
    assert oddities
    for text in oddities:
        assert " ".join(text.split()) in told
    for name, value in model.loaded.assumed.items():
        assert f"{name}=" in told, value


def test_quiet_prints_nothing_and_keeps_the_report(load, capsys):
    model = load("sdt2-tiny", quiet=True)
    assert capsys.readouterr() == ("", "")
    assert model.loaded.assumed["time_steps"] == 4


def test_other_heads_are_assumed_aloud_where_the_usual_do_not_divide(load):
    loaded = load("qkformer-imagenet-tiny").loaded
    assert any("num_heads=4 is assumed" in note for note in loaded.notes)


def test_a_saved_model_keeps_its_settings(tmp_path):
    model = create_model("spikformer_digits")
    save_model(model, tmp_path / "model")
    again = primesvt.load(tmp_path, time_steps=5, num_heads=4, family="spikformer")
    assert again.time_steps == 5
    assert again.config == model.config
    for settings in ({"num_heads": 2}, {"tau": 1.5}, {"family": "sdt_v1"}):
        with pytest.raises(ValueError, match="load the original checkpoint with it instead"):
            primesvt.load(tmp_path, **settings)
    with pytest.raises(TypeError, match="unknown setting 'heads'"):
        primesvt.load(tmp_path, heads=2)


def test_registered_entries_of_the_nearest_variant_are_named(tmp_path):
    save_file(to_official(create_model("sdt_v2_small")), tmp_path / "small.safetensors")
    model = primesvt.load(tmp_path / "small.safetensors", quiet=True)
    assert model.loaded.nearest == "sdt_v2_small"
    assert model.provenance.data == model_entry("sdt_v2_small").data
