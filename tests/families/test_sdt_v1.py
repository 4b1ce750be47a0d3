"""What only SDT-V1 has: flags for pooling, heads that play no part, dead parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given

from primesvt.models import build_model, from_official, to_official
from primesvt.models.families import FAMILIES
from primesvt.models.families._sdt_v1_network import SpikeDrivenAttention
from primesvt.models.families.sdt_v1 import SDTv1Config

from .drawn import SEEDS, build, examples
from .sdt_v1 import CASE, configs

SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 4, "depth": 1, "num_classes": 3}


@examples(10)
@given(config=configs(), seed=SEEDS)
def test_what_shapes_cannot_tell_is_all_one_has_to_say(config: SDTv1Config, seed: int) -> None:
    model = build(config, seed)
    untold = ("time_steps", "pooling_stat", "dvs_mode", "tau")
    again = from_official(
        to_official(model), family="sdt_v1", **{name: getattr(config, name) for name in untold}
    )
    widths = config.hidden / config.embed_dim  # of several ratios that round to the same widths
    assert again.config == replace(config, mlp_ratio=widths)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert FAMILIES["sdt_v1"].infer(to_official(model)).keys().isdisjoint(untold)


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_heads_matter_to_event_pooling_alone(pooled: bool) -> None:
    torch.manual_seed(0)
    two, four = (SpikeDrivenAttention(16, heads=heads, pooled=pooled).eval() for heads in (2, 4))
    two.load_state_dict({**four.state_dict(), "unused.talking_heads": torch.zeros(2, 2, 1)})
    rates: list[float] = []
    stream = torch.randn(3, 2, 16, 3, 4) * 3
    for attention in (two, four):
        for norm in (attention.q.bn, attention.k.bn, attention.v.bn):
            norm.weight.fill_(6.0)
        attention.gate_lif.register_forward_hook(lambda *args: rates.append(args[-1].mean().item()))
    assert torch.equal(two(stream), four(stream)) is not pooled
    assert all(0.1 < rate < 0.9 for rate in rates), rates


@pytest.mark.parametrize(("flags", "size"), [("0000", 9), ("1000", 5), ("0011", 3), ("1111", 1)])
@torch.no_grad()
def test_every_flag_halves_the_image(flags: str, size: int) -> None:
    stem = build_model(SDTv1Config(**SMALL, pooling_stat=flags)).eval().blocks.stem
    assert stem(torch.zeros(1, 1, 3, 9, 9)).shape == (1, 1, 16, size, size)


@pytest.mark.parametrize("mode", ["lif", "plif"])
def test_dead_parameters_get_no_gradient(mode: str) -> None:
    model = build_model(SDTv1Config(**SMALL, spike_mode=mode))
    model(torch.rand(2, 3, 32, 16) * 4).square().sum().backward()
    dead = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    leaks = {"blocks.stem.unused.rpe_lif", "blocks.block0.attn.unused.attn_lif"}
    talking = "blocks.block0.attn.unused.talking_heads"
    assert dead == {talking} | (leaks if mode == "plif" else set())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pooling_stat": "011"}, r"pooling_stat is '011', but needs four flags"),
        ({"pooling_stat": "0012"}, "four flags"),
        ({"pooling_stat": 1111}, "four flags"),
        ({"spike_mode": "if"}, "spike_mode is 'if'; allowed: 'lif', 'plif'"),
        ({"dvs_mode": "yes"}, "dvs_mode is 'yes'"),
        ({"num_heads": 3}, "3 heads do not divide"),
        ({"embed_dim": 4}, "at least 8"),
        ({"mlp_ratio": 0}, "must leave a channel"),
        ({"tau": 1}, "tau is 1"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_impossible_settings_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SDTv1Config(**SMALL | overrides)


def test_other_families_are_not_taken(shared: Any) -> None:
    from safetensors import safe_open

    files = sorted((shared / "reference" / "golden").glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as golden:
            keys = [key for key in golden.keys() if key.startswith("state.")]  # noqa: SIM118
            state = {key.removeprefix("state."): golden.get_tensor(key) for key in keys}
        if path.stem in CASE.goldens:
            assert FAMILIES["sdt_v1"].infer(state)["num_classes"] == 10
        else:
            with pytest.raises(KeyError):
                FAMILIES["sdt_v1"].infer(state)
    assert len(files) == 22


def test_oddities_follow_the_settings() -> None:
    tell = FAMILIES["sdt_v1"].oddities
    assert not any("dvs_mode" in told for told in tell(SDTv1Config()))
    assert any("dvs_mode=False" in told for told in tell(SDTv1Config(dvs_mode=True)))
    assert any("mlp_ratio=1" in told for told in tell(SDTv1Config(mlp_ratio=1)))
