"""Names, shapes and parameter counts of every official SDT-V2 size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from primesvt.models import SDTv2Config, build_model, create_model, from_official, to_official

MODELS = {
    "sdt2-imagenet-8-256-15M": "sdt_v2_15m",
    "sdt2-imagenet-8-256-15M-kd": "sdt_v2_15m_kd",
    "sdt2-imagenet-8-384-31M": "sdt_v2_31m",
    "sdt2-imagenet-8-384-31M-kd": "sdt_v2_31m_kd",
    "sdt2-imagenet-8-512-55M": "sdt_v2_55m",
    "sdt2-imagenet-8-512-55M-kd": "sdt_v2_55m_kd",
    "sdt2-imagenet-8-768": "sdt_v2_124m",
    "sdt2-imagenet-8-768-kd": "sdt_v2_124m_kd",
}


@pytest.fixture(params=MODELS)
def manifest(request: pytest.FixtureRequest, shared: Path) -> dict[str, Any]:
    path = shared / "reference" / "manifest" / f"{request.param}.json"
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_every_manifest_of_the_family_is_compared(shared: Path) -> None:
    found = {path.stem for path in (shared / "reference" / "manifest").glob("sdt2-*.json")}
    assert found == set(MODELS)


def test_names_shapes_and_counts(manifest: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = create_model(MODELS[manifest["variant"]])
    shapes = {key: list(tensor.shape) for key, tensor in to_official(model).items()}

    assert shapes == manifest["state_dict"]
    assert len(shapes) == len(model.state_dict())
    assert sum(tensor.numel() for tensor in model.parameters()) == manifest["num_params"]
    assert sum(tensor.numel() for tensor in model.buffers()) == manifest["num_buffer_elements"]
    assert len(list(model.parameters())) == manifest["parameter_keys"]


def test_config_is_inferred_from_shapes(manifest: dict[str, Any]) -> None:
    from primesvt.models.families.sdt_v2.official import infer

    state = {key: torch.empty(s, device="meta") for key, s in manifest["state_dict"].items()}
    with torch.device("meta"):
        model = create_model(MODELS[manifest["variant"]])
    assert SDTv2Config(**infer(state)) == model.config


def test_official_state_dict_round_trip() -> None:
    model = build_model(
        SDTv2Config(
            embed_dims=(8, 12, 16, 24),
            num_heads=4,
            num_classes=5,
            mlp_ratio=3,
            conv_ratio=2,
            conv_depths=(2, 1, 3),
            depths=(2, 1),
            distillation=True,
        )
    )
    again = from_official(to_official(model), num_heads=4)
    assert again.config == model.config
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)


def test_one_error_lists_what_does_not_fit() -> None:
    state = to_official(create_model("sdt_v2_digits"))
    for index in range(12):
        state[f"surplus.{index}"] = torch.zeros(1)
    del state["head.bias"]
    state["block3.0.attn.q_conv.1.weight"] = torch.zeros(7)

    with pytest.raises(ValueError, match="sdt_v2 state dict does not fit") as error:
        from_official(state, num_heads=4)
    message = str(error.value)
    assert "1 missing (head.bias)" in message
    assert "12 unexpected" in message
    assert "surplus.9, and 2 more" in message
    assert "block3.0.attn.q_conv.1.weight is [7] instead of [32]" in message


@pytest.mark.parametrize("state", [{}, {"weight": torch.zeros(1)}, {"model": {"downsample1_1": 1}}])
def test_foreign_state_dict_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no sdt_v2 state dict"):
        from_official(state)


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown family 'sdt_v9'; known: sdt_v2"):
        from_official({}, family="sdt_v9")
