"""Outputs of the official code, reproduced entry by entry in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from primesvt.models import SpikingViT

from .cases import CASES
from .golden import Golden, official_table, official_tensors, recorded

FILES = [
    pytest.param(
        case,
        name,
        id=name if name.startswith(case.family) else f"{case.family}-{name}",
        marks=[pytest.mark.quick] if name == "sdt2-tiny" else [],
    )
    for case in CASES
    for name in case.goldens
]
SPOILED = [
    pytest.param(*file.values, spoiler, id=f"{file.id}-{spoiler}")
    for file in FILES
    for spoiler in ("batch norm eps", *file.values[0].spoilers)
]


@pytest.fixture(scope="session")
def folder(shared: Path) -> Path:
    return shared / "reference" / "golden"


def compare_outputs(golden: Golden, model: SpikingViT) -> None:
    """Logits, activations, every batch norm and every neuron of one forward."""
    outputs = recorded(model, golden.images, keeps_time=golden.keeps_time)
    golden.close("logits_f64", outputs[""], 1e-9)
    for key in golden.tensors:
        if key.startswith("act."):
            golden.close(key, outputs[key.removeprefix("act.")], 1e-6)
    for name, (total, norm, count) in golden.table("bn_outputs").items():
        output = outputs[name]
        assert output.numel() == count, name
        assert abs(output.norm().item() - norm) <= 1e-9 * norm, f"{name}: norm"
        assert abs(output.sum().item() - total) <= 1e-9 * norm, f"{name}: sum"
        golden.compared.add(f"bn_outputs.{name}")
    for name, neuron in golden.record["neurons"].items():
        spikes = outputs[name]
        assert spikes.sum().item() == neuron["spike_sum"], f"{name}: spikes"
        rate = (spikes != 0).double().mean().item()
        assert round(rate, 4) == pytest.approx(neuron["nonzero"], abs=1.1e-4), f"{name}: rate"
        golden.compared.add(f"neurons.{name}")


def compare_float32(golden: Golden) -> None:
    model = golden.model().float()
    with torch.no_grad():
        logits = model(golden.images.float(), time_steps_out=golden.keeps_time)
    tolerance = golden.record["tolerance"]["logits_fp32_abs"]
    assert (logits - golden.tensors["logits"]).abs().max() <= tolerance
    golden.compared.add("logits")


def compare_single_images(golden: Golden) -> None:
    """Image by image, where a batch gives something else."""
    key = "logits_single_f64"
    model, batch = golden.model(), golden.images
    with torch.no_grad():
        logits = [model(image[None], time_steps_out=golden.keeps_time) for image in batch]
    single = torch.cat(logits, dim=-2)
    if golden.record["batch_independent"]:
        golden.close("logits_f64", single, 1e-9)
    else:
        golden.close(key, single, 1e-9)
        assert (single - golden.tensors["logits_f64"]).abs().max() > 1e-3


def compare_training(golden: Golden) -> None:
    """One forward in training mode: logits, then the running statistics that it left."""
    model = golden.model().train()
    with torch.no_grad():
        output = model(golden.images, time_steps_out=golden.keeps_time)
    outputs = output if isinstance(output, tuple) else (output,)
    for key, logits in zip(("logits_train_f64", "logits_train_f64_kd"), outputs, strict=False):
        golden.close(key, logits, 1e-9)
    norms, tensors = official_table(model), official_tensors(model)
    for name, expected in golden.table("train_check").items():
        if name in norms:
            found = [norms[name].running_mean.norm(), norms[name].running_var.norm()]
        else:
            found = tensors[name].flatten().tolist()
        assert [float(f) for f in found] == pytest.approx(expected, rel=1e-9), name
        golden.compared.add(f"train_check.{name}")


def compare_gradients(golden: Golden) -> None:
    """Gradient norms of a weighted sum of the logits; parameters without one are named too."""
    model = golden.model()
    logits = model(golden.images, time_steps_out=golden.keeps_time)
    weights = torch.arange(logits.numel(), dtype=logits.dtype).cos().reshape(logits.shape)
    (logits * weights).sum().backward()
    tensors = official_tensors(model)
    for name, norm in golden.table("grad_check").items():
        gradient = tensors[name].grad
        if norm is None:
            assert gradient is None, name
        else:
            assert gradient is not None, name
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-8, abs=1e-12), name
        golden.compared.add(f"grad_check.{name}")


@pytest.mark.parametrize(("case", "name"), FILES)
def test_every_stored_entry_is_reproduced(
    case: object, name: str, folder: Path, record_property: Callable[[str, str], None]
) -> None:
    golden = Golden.read(folder, case, name)
    compare_outputs(golden, golden.model())
    compare_float32(golden)
    compare_single_images(golden)
    compare_training(golden)
    compare_gradients(golden)

    left_out = golden.entries() - golden.compared
    assert not left_out, f"never compared: {sorted(left_out)[:10]}"
    kinds = Counter(entry.split(".")[0] for entry in golden.compared)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    rates = [neuron["nonzero"] for neuron in golden.record["neurons"].values()]
    record_property(
        "said",
        f"{name}: {len(golden.compared)} entries compared: {counts};"
        f" neurons fire at {min(rates):.1%} to {max(rates):.1%}",
    )


def change_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-6


@pytest.mark.parametrize(("case", "name", "spoiler"), SPOILED)
def test_a_small_error_is_caught(case: object, name: str, spoiler: str, folder: Path) -> None:
    golden = Golden.read(folder, case, name)
    model = golden.model()
    try:
        {"batch norm eps": change_eps, **golden.case.spoilers}[spoiler](model)
    except LookupError as error:
        assert any_other_file_has_it(golden, spoiler, folder), f"no model to spoil: {error}"
        return
    with pytest.raises(AssertionError):
        compare_outputs(golden, model)


def any_other_file_has_it(golden: Golden, spoiler: str, folder: Path) -> bool:
    """Whether another file of the family has the module that a mistake needs."""
    for name in golden.case.goldens:
        try:
            golden.case.spoilers[spoiler](Golden.read(folder, golden.case, name).model())
        except LookupError:
            continue
        return True
    return False


def test_every_reference_file_belongs_to_a_family(folder: Path) -> None:
    found = {path.stem for path in folder.glob("*.json")}
    covered = [name for case in CASES for name in case.goldens]
    assert sorted(covered) == sorted(found), "each file exactly once"
    assert {path.stem for path in folder.glob("*.safetensors")} == found
