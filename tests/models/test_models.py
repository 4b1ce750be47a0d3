"""The contract of SpikingViT and of the registry."""

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from primesvt.models import (
    SDTv2Config,
    SpikingViT,
    build_model,
    create_model,
    list_models,
    listing,
    load_state,
    model_entry,
    registry,
    reset,
)
from primesvt.registry import FAMILIES

SMALL: dict[str, Any] = {
    "embed_dims": (8, 16, 24, 32),
    "num_heads": 4,
    "conv_depths": (1, 1, 1),
    "depths": (1, 1),
    "stem_kernel": 3,
    "strides": (1, 1, 2, 1, 1),
    "num_classes": 7,
    "time_steps": 3,
}


def lively(model: SpikingViT, seed: int = 0) -> SpikingViT:
    """Random norms with positive biases, so that neurons in every layer fire."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            module.running_mean.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model.eval()


def small_model(**overrides: Any) -> SpikingViT:
    torch.manual_seed(0)
    return lively(build_model(SDTv2Config(**SMALL | overrides)))


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def membranes(model: nn.Module) -> list[Any]:
    return [module.v for module in model.modules() if hasattr(module, "v_threshold")]


@torch.no_grad()
def test_forward_shapes_and_time_mean() -> None:
    model = small_model()
    x = images(2, 3, 8, 8)
    over_time = model(x, time_steps_out=True)
    assert over_time.shape == (3, 2, 7)
    assert torch.equal(model(x), over_time.mean(0))
    assert not torch.equal(over_time[0], over_time[1])


@torch.no_grad()
def test_forward_does_not_depend_on_the_one_before() -> None:
    model = small_model()
    x = images(2, 3, 8, 8)
    first = model(x)
    model(images(5, 3, 16, 8, seed=2))
    assert torch.equal(model(x), first)
    model.blocks(x.unsqueeze(0))
    assert torch.equal(model(x), first)


@torch.no_grad()
def test_images_of_a_batch_are_independent() -> None:
    model = small_model().double()
    x = images(3, 3, 8, 8).double()
    singles = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x), singles, rtol=1e-12, atol=1e-12)


def test_state_is_reset_and_the_model_copies_after_training() -> None:
    model = small_model().train()
    model(images(2, 3, 8, 8)).sum().backward()
    assert all(v == 0.0 for v in membranes(model))
    clone = copy.deepcopy(model)
    assert clone.blocks.down1a.conv.weight is not model.blocks.down1a.conv.weight


def test_state_is_reset_when_a_forward_fails() -> None:
    model = small_model()
    model.head.fc = nn.Linear(5, 7)
    with pytest.raises(RuntimeError):
        model(images(1, 3, 8, 8))
    copy.deepcopy(model)


def test_reset_reaches_neurons_in_any_module() -> None:
    model = small_model()
    model.blocks(images(1, 2, 3, 8, 8))
    assert any(isinstance(v, Tensor) for v in membranes(model))
    reset(nn.ModuleDict({"inside": nn.Sequential(model)}))
    assert all(v == 0.0 for v in membranes(model))


@torch.no_grad()
def test_event_frames_are_time_steps() -> None:
    model = small_model()
    x = images(2, 3, 8, 8)
    repeated = x.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    assert torch.equal(model(repeated), model(x))
    assert model(images(2, 5, 3, 8, 8), time_steps_out=True).shape == (5, 2, 7)


@torch.no_grad()
def test_time_steps_can_be_changed() -> None:
    model = small_model()
    x = images(1, 3, 8, 8)
    model.time_steps = 5
    assert model(x, time_steps_out=True).shape[0] == 5
    assert model.config.time_steps == 3


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 8, 8), "give images"), ((1, 2, 8, 8), "has 2 channels"), ((1, 3, 4, 8, 8), "reads 3")],
)
def test_wrong_input_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape))


@torch.no_grad()
def test_distillation_head() -> None:
    model = small_model(distillation=True)
    x = images(2, 3, 8, 8)
    averaged = model(x)
    assert averaged.shape == (2, 7)
    model.head.training = True
    logits, distilled = model(x)
    torch.testing.assert_close(averaged, (logits + distilled) / 2)
    logits, distilled = model(x, time_steps_out=True)
    assert logits.shape == distilled.shape == (3, 2, 7)


@torch.no_grad()
def test_float64_membranes() -> None:
    model = small_model().double()
    seen: list[torch.dtype] = []
    model.head.lif.register_forward_hook(lambda neuron, *_: seen.append(neuron.v.dtype))
    assert model(images(1, 3, 8, 8).double()).dtype == torch.float64
    assert seen == [torch.float64]


@torch.no_grad()
def test_float32_and_float64_agree() -> None:
    model = small_model()
    x = images(4, 3, 8, 8)
    single = model(x)
    double = model.double()(x.double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(4, 13),
    width=st.integers(4, 13),
    steps=st.integers(1, 4),
    heads=st.sampled_from((1, 2, 4, 8)),
)
def test_any_image_size(batch: int, height: int, width: int, steps: int, heads: int) -> None:
    model = small_model(num_heads=heads, time_steps=steps)
    with torch.no_grad():
        logits = model(torch.zeros(batch, 3, height, width), time_steps_out=True)
    assert logits.shape == (steps, batch, 7)


@torch.no_grad()
def test_rectangles_keep_their_orientation() -> None:
    model = small_model()
    streams: list[Tensor] = []
    model.blocks.register_forward_hook(lambda *args: streams.append(args[-1]))
    model(images(1, 3, 8, 12))
    assert streams[0].shape == (3, 1, 32, 4, 6)


def test_every_parameter_gets_a_gradient() -> None:
    model = small_model(distillation=True)
    model(images(2, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_padding_follows_running_statistics_without_gradient() -> None:
    from primesvt.models.attention import PaddedBN

    pad = PaddedBN(2).eval()
    with torch.no_grad():
        pad.bn.weight.copy_(torch.tensor([1.0, -2.0]))
        pad.bn.bias.copy_(torch.tensor([0.5, 0.25]))
        pad.bn.running_mean.copy_(torch.tensor([1.0, 3.0]))
    out = pad(torch.zeros(1, 2, 3, 3))
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))
    out[..., 0, :].sum().backward()
    assert pad.bn.bias.grad is not None
    assert pad.bn.bias.grad.abs().max() == 0


@pytest.mark.parametrize("name", list_models())
def test_config_round_trip(name: str) -> None:
    config = model_entry(name).config
    stored = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(stored) == config
    with torch.device("meta"):
        assert build_model(stored).config == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 3}, "3 heads do not divide"),
        ({"embed_dims": (8, 16)}, "needs 4 integers"),
        ({"embed_dims": (9, 16, 24, 32)}, "must be even"),
        ({"time_steps": 0}, "time_steps is 0"),
        ({"depths": (1, -1)}, "at least 0"),
        ({"strides": (1, 1, 1, 1, 0)}, "strides"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ({"conv_depths": (27, 1, 1)}, "26 blocks"),
    ],
)
def test_impossible_sizes_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SDTv2Config(**SMALL | overrides)


def test_stages_may_be_empty_or_deep() -> None:
    model = small_model(conv_depths=(0, 2, 3), depths=(0, 2))
    names = [name for name, _ in model.blocks.named_children()]
    assert names == [
        *("down1a", "down1b", "conv1b", "conv1b_1", "down2", "conv2a", "conv2b", "conv2c"),
        *("down3", "down4", "block4_0", "block4_1"),
    ]
    with torch.no_grad():
        assert model(images(1, 3, 8, 8)).shape == (1, 7)


def test_names_and_aliases() -> None:
    assert list_models("sdt_v2_??m") == ["sdt_v2_15m", "sdt_v2_31m", "sdt_v2_55m"]
    assert list_models("nothing*") == []
    assert model_entry("metaspikformer_8_512") is model_entry("sdt_v2_55m")
    with pytest.raises(ValueError, match=r"unknown model 'sdt_v2_51m'; did you mean sdt_v2_\d"):
        model_entry("sdt_v2_51m")
    with pytest.raises(ValueError, match="primesvt models"):
        create_model("qqqqqqqq")


def test_unverified_figures_are_not_presented() -> None:
    assert model_entry("sdt_v2_15m").published is None
    for name in list_models():
        published = model_entry(name).published
        if published is not None:
            assert published.source
            assert published.autocast == "float16"


def test_overrides() -> None:
    model = create_model("sdt_v2_digits", num_classes=4, embed_dims=[8, 8, 16, 16])
    assert isinstance(model.config, SDTv2Config)
    assert model.config.embed_dims == (8, 8, 16, 16)
    with pytest.raises(TypeError, match=r"unknown setting 'width'.*allowed: in_channels"):
        create_model("sdt_v2_digits", width=4)


@pytest.mark.parametrize("size", [16, 32])
@torch.no_grad()
def test_small_variant_reads_small_images(size: int) -> None:
    model = create_model("sdt_v2_small", embed_dims=(8, 16, 16, 24)).eval()
    assert model(images(1, 3, size, size)).shape == (1, 10)


def test_digits_size() -> None:
    model = create_model("sdt_v2_digits")
    assert 80_000 < sum(parameter.numel() for parameter in model.parameters()) < 120_000
    assert model.time_steps >= 2


def test_pretrained_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sdt_v2_15m has no weights in the package.*digits"):
        create_model("sdt_v2_15m", pretrained=True)


def test_pretrained_with_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="trained with num_classes=10, not 4"):
        create_model("sdt_v2_digits", pretrained=True, num_classes=4)


def test_pretrained_with_unreadable_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "files", lambda _package: tmp_path)
    with pytest.raises(ValueError, match="cannot be read from the package"):
        create_model("sdt_v2_digits", pretrained=True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sdt_v2_digits.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cannot be read from the package"):
        create_model("sdt_v2_digits", pretrained=True)


@torch.no_grad()
def test_pretrained_digits_load() -> None:
    model = create_model("sdt_v2_digits", pretrained=True, time_steps=3).eval()
    assert model.time_steps == 3
    assert model(images(2, 1, 8, 8)).shape == (2, 10)


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    model = small_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {key: torch.ones_like(tensor) for key, tensor in before.items()}
    state["head.fc.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"the file does not fit: 1 of another shape \(head.fc"):
        load_state(model, state, source="the file")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_listing_in_the_package_is_that_of_the_models() -> None:
    """Renew it with PRIMESVT_UPDATE_GOLDEN=1."""
    file = Path(__file__).resolve().parents[2] / "src/primesvt/models/listing.json"
    if os.environ.get("PRIMESVT_UPDATE_GOLDEN"):
        rows = ",\n".join(f" {json.dumps(row)}" for row in listing())
        file.write_text(f"[\n{rows}\n]\n")
    assert json.loads(file.read_text()) == listing()


def test_a_family_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAMILIES, "_registered", dict(FAMILIES._registered))
    known = FAMILIES["sdt_v2"]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(SDTv2Config):
        family: ClassVar[str] = "own"

    entry = next(each for each in known.entries() if each.name == "sdt_v2_digits")
    values = {f.name: getattr(entry.config, f.name) for f in dataclasses.fields(OwnConfig)}
    config = OwnConfig(**values)
    own = dataclasses.replace(entry, name="own_digits", config=config, weights=None)
    FAMILIES("own")(dataclasses.replace(known, config=OwnConfig, entries=lambda: [own]))
    assert "own_digits" in list_models() and model_entry("own_digits").family == "own"
    assert create_model("own_digits").config.family == "own"
    assert listing()[-1]["parameters"] == 116122
