"""Official state dicts in and out, and what is said of one that does not fit."""

from typing import Any

import pytest
import torch

from primesvt.models import SDTv2Config, build_model, create_model, from_official, to_official


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

    nearest = r"nearest is sdt_v2 \(Spike-driven Transformer V2\)"
    with pytest.raises(ValueError, match=nearest) as error:
        from_official(state)
    message = str(error.value)
    assert "1 missing (head.bias)" in message
    assert "12 extra" in message
    assert "surplus.9, and 2 more" in message
    assert "block3.0.attn.q_conv.1.weight is [7] instead of [32]" in message


@pytest.mark.parametrize("state", [{"weight": torch.zeros(1)}, {"model": {"downsample1_1": 1}}])
def test_foreign_state_dict_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the 1 tensors .* fit no family"):
        from_official(state)
    with pytest.raises(ValueError, match=r"do not fit the family sdt_v2 .*: .* missing"):
        from_official(state, family="sdt_v2")


def test_no_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        from_official({})


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown family 'sdt_v9'; known: .*sdt_v2"):
        from_official({}, family="sdt_v9")
