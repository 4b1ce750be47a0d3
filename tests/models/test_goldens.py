"""Outputs of the official SDT-V2 code, reproduced entry by entry in float64."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from primesvt.models import SpikingViT, from_official, official_modules

NAMES = ("sdt2-kd-tiny", "sdt2-tiny")


@dataclass
class Golden:
    """One reference file; ``compared`` collects the entries that a test has looked at."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]
    compared: set[str] = field(default_factory=set)

    def model(self) -> SpikingViT:
        prefix = "state."
        state = {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }
        heads = self.record["constructor_kwargs"]["num_heads"]
        model = from_official(state, num_heads=heads, time_steps=self.record["T"])
        self.compared |= {prefix + key for key in state}
        return model.double().eval()

    @property
    def images(self) -> Tensor:
        self.compared.add("input")
        return self.tensors["input"].double()

    def close(self, key: str, value: Tensor, tolerance: float) -> None:
        reference = self.tensors[key].to(value.dtype).reshape(value.shape)
        excess = (value - reference).abs() - tolerance * reference.abs().clamp(min=1)
        assert excess.max() <= 0, f"{key} is off by {(value - reference).abs().max():.2e}"
        self.compared.add(key)


def stored(record: dict[str, Any], kind: str) -> dict[str, Any]:
    path = {"bn_outputs": "values", "train_check": "bn", "grad_check": "norms"}
    values: dict[str, Any] = record[kind][path[kind]]
    return values


def expected_entries(golden: Golden) -> set[str]:
    names = {
        f"{kind}.{name}"
        for kind in ("bn_outputs", "train_check", "grad_check")
        for name in stored(golden.record, kind)
    }
    return names | set(golden.tensors)


def official_module_table(model: SpikingViT) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    return {official: modules[ours] for ours, official in official_modules(model).items()}


def recorded(model: SpikingViT, images: Tensor) -> dict[str, Tensor]:
    """Outputs of every module with an official name, under that name."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: output.detach()})
        )
        for name, module in official_module_table(model).items()
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return outputs


def compare_activations(golden: Golden) -> None:
    outputs = recorded(golden.model(), golden.images)
    for key in golden.tensors:
        if key.startswith("act."):
            golden.close(key, outputs[key.removeprefix("act.")], 1e-6)
    for name, (total, norm, count) in stored(golden.record, "bn_outputs").items():
        output = outputs[name]
        assert output.numel() == count, name
        assert abs(output.norm().item() - norm) <= 1e-9 * norm, f"{name}: norm"
        assert abs(output.sum().item() - total) <= 1e-9 * norm, f"{name}: sum"
        golden.compared.add(f"bn_outputs.{name}")


def compare_logits(golden: Golden) -> None:
    model = golden.model()
    with torch.no_grad():
        golden.close("logits_f64", model(golden.images), 1e-9)
        logits = model.float()(golden.images.float())
    tolerance = golden.record["tolerance"]["logits_fp32_abs"]
    assert (logits - golden.tensors["logits"]).abs().max() <= tolerance
    golden.compared.add("logits")


def compare_training(golden: Golden) -> None:
    model = golden.model().train()
    with torch.no_grad():
        output = model(golden.images)
    outputs = output if isinstance(output, tuple) else (output,)
    for key, logits in zip(("logits_train_f64", "logits_train_f64_kd"), outputs, strict=False):
        golden.close(key, logits, 1e-9)
    table = official_module_table(model)
    for name, (mean, var) in stored(golden.record, "train_check").items():
        norm = table[name]
        assert norm.running_mean.norm().item() == pytest.approx(mean, rel=1e-9), name
        assert norm.running_var.norm().item() == pytest.approx(var, rel=1e-9), name
        golden.compared.add(f"train_check.{name}")


def compare_gradients(golden: Golden) -> None:
    model = golden.model()
    logits = model(golden.images)
    weights = torch.arange(logits.numel(), dtype=logits.dtype).cos().reshape(logits.shape)
    (logits * weights).sum().backward()
    table = official_module_table(model)
    for name, norm in stored(golden.record, "grad_check").items():
        module, _, tensor = name.rpartition(".")
        gradient = getattr(table[module], tensor).grad
        if norm is None:
            assert gradient is None, name
        else:
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-8, abs=1e-12), name
        golden.compared.add(f"grad_check.{name}")


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    path = shared / "reference" / "golden" / request.param
    return Golden(
        record=json.loads(path.with_suffix(".json").read_text()),
        tensors=load_file(path.with_suffix(".safetensors")),
    )


def test_every_reference_file_of_the_family_is_compared(shared: Path) -> None:
    found = {path.stem for path in (shared / "reference" / "golden").glob("sdt2-*.*")}
    assert found == set(NAMES)


def test_every_stored_entry_is_reproduced(
    golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_logits(golden)
    compare_activations(golden)
    compare_training(golden)
    compare_gradients(golden)

    left_out = expected_entries(golden) - golden.compared
    assert not left_out, f"never compared: {sorted(left_out)[:10]}"
    kinds = Counter(entry.split(".")[0] for entry in golden.compared)
    with capsys.disabled():
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        print(f"\n{golden.record['name']}: {len(golden.compared)} entries compared: {counts}")


def test_firing_rates_match_the_record(golden: Golden) -> None:
    outputs = recorded(golden.model(), golden.images)
    for name, neuron in golden.record["neurons"].items():
        assert outputs[name].sum().item() == neuron["spike_sum"], name


def change_eps(model: SpikingViT) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-6


def pad_with_zeros(model: SpikingViT) -> None:
    for module in model.modules():
        if type(module).__name__ == "PaddedBN":
            module._of_zero = lambda: torch.zeros(1, 1, 1, 1)


def forget_attention_threshold(model: SpikingViT) -> None:
    model.blocks.block3_0.attn.attn_lif.v_threshold = 1.0


@pytest.mark.parametrize("spoil", [change_eps, pad_with_zeros, forget_attention_threshold])
def test_a_small_error_is_caught(
    golden: Golden, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Golden.model

    def spoiled(self: Golden) -> SpikingViT:
        model = original(self)
        spoil(model)
        return model

    monkeypatch.setattr(Golden, "model", spoiled)
    with pytest.raises(AssertionError):
        compare_activations(golden)
