"""Uniform structured pruning of every family: PrimeSVT beside Torch-Pruning 1.6.1.

    pip install -e '.[compare]'
    python benchmarks/against_torch_pruning.py   # results/torch_pruning.json and .md

Both tools get the same untrained networks in evaluation mode, the same rates and the L2 norm, and
leave the residual streams and the classifier out as far as they let one. Torch-Pruning also gets
what it cannot find: the layers of q, k and v with their head counts (``heads told``), and one time
step, since it takes time for channels otherwise.

- forward works: the model runs on the images after the cut.
- removal exact: in float64 the output equals that of the original in which every reader ignores
  the removed channels. For PrimeSVT that is ``graph.check``; for Torch-Pruning the channels it kept
  are read off the batch norms behind each layer, and the cut they describe is made on the original.
- attention inner widths: how much narrower q, k and v became in all attentions together.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from machine import RESULTS, machine, save
from torch import Tensor, nn

from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels, trace
from primesvt.importance import keep, l2
from primesvt.models import create_model, reset

MODELS = (
    "sdt_v1_small",
    "sdt_v2_small",
    "sdt_v3_small",
    "sdt_v3_large_small",
    "spikformer_small",
    "spikingformer_small",
    "qkformer_small",
    "spikingresformer_small",
)
RATES = (0.25, 0.5)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tool on one model at one rate."""

    model: str
    time_steps: int
    tool: str
    rate: float
    forward: str
    exact: str
    attention: float | None
    saved: float | None
    seconds: float


def network(name: str, time_steps: int) -> tuple[nn.Module, Tensor]:
    """A network whose batch norms tell channels apart, and images for it."""
    torch.manual_seed(0)
    model = create_model(name, time_steps=time_steps).eval()
    for module in model.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.4, 0.4)
    config = model.config
    return model, torch.rand(2, config.in_channels, 32, 32)


def runs(model: nn.Module, images: Tensor) -> tuple[str, Tensor | None]:
    """Whether the forward works, and its output in float64."""
    try:
        with torch.no_grad():
            model(images)
            return "yes", copied(model).double()(images.double())
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        return f"no ({type(error).__name__}: {line[:90]})", None


def copied(model: nn.Module) -> nn.Module:
    reset(model)
    return copy.deepcopy(model)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def attention_width(model: nn.Module) -> int:
    """Channels of q, k and v (SpikingResformer: of the layers W and Wproj) in all attentions."""
    return sum(
        layer.weight.shape[0] for path, layer in last_layers(model) if path.split(".")[-1] in "qkv"
    )


def last_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Per module named q, k or v: the layer that writes its output."""
    for path, module in model.named_modules():
        if path.split(".")[-1] in ("q", "k", "v"):
            yield path, [m for m in module.modules() if isinstance(m, LAYERS)][-1]


def with_primesvt(name: str, time_steps: int, rate: float) -> Row:
    """Cut every prunable group to the same share, smallest L2 norm first."""
    model, images = network(name, time_steps)
    small = copied(model)
    start = time.perf_counter()
    graph = trace(small, images[:1])
    cuts = {
        group.name: keep(l2(small, graph, group), max(1, math.floor(group.size * (1 - rate) + 0.5)))
        for group in graph.prunable()
    }
    remove_channels(small, graph, cuts)
    seconds = time.perf_counter() - start
    forward, _ = runs(small, images)
    refusals = graph.check(model)
    exact = "yes" if not refusals else f"no ({len(refusals)} groups refused)"
    return row(name, time_steps, "PrimeSVT", rate, forward, exact, model, small, seconds)


def row(
    name: str,
    time_steps: int,
    tool: str,
    rate: float,
    forward: str,
    exact: str,
    model: nn.Module,
    small: nn.Module,
    seconds: float,
) -> Row:
    before = attention_width(model)
    narrower = 1 - attention_width(small) / before if before else None
    return Row(
        model=name,
        time_steps=time_steps,
        tool=tool,
        rate=rate,
        forward=forward,
        exact=exact,
        attention=narrower,
        saved=1 - parameters(small) / parameters(model),
        seconds=round(seconds, 2),
    )


def with_torch_pruning(name: str, time_steps: int, rate: float, *, heads: bool) -> Row:
    """The same with Torch-Pruning's own pruner."""
    import torch_pruning as tp

    model, images = network(name, time_steps)
    small = copied(model)
    told = {}
    for path, layer in last_layers(small) if heads else ():
        count = getattr(small.get_submodule(path.rpartition(".")[0]), "heads", None)
        if count:
            told[layer] = count
    tool = "Torch-Pruning, heads told" if heads else "Torch-Pruning"
    start = time.perf_counter()
    try:
        tp.pruner.BasePruner(
            small,
            images[:1],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=rate,
            ignored_layers=[small.head],
            num_heads=told,
            prune_head_dims=True,
        ).step()
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        text = f"no (step fails, {type(error).__name__}: {line[:90]})"
        seconds = round(time.perf_counter() - start, 2)
        return Row(
            model=name,
            time_steps=time_steps,
            tool=tool,
            rate=rate,
            forward=text,
            exact="-",
            attention=None,
            saved=None,
            seconds=seconds,
        )
    seconds = time.perf_counter() - start
    forward, logits = runs(small, images)
    exact = "-" if logits is None else equals_removal(model, small, images, logits)
    return row(name, time_steps, tool, rate, forward, exact, model, small, seconds)


def equals_removal(model: nn.Module, small: nn.Module, images: Tensor, logits: Tensor) -> str:
    """Whether the pruned model computes what the original does without the removed channels."""
    graph = trace(model, images[:1])
    cuts = {}
    for group in graph:
        if group.status != "free" or group.kind == "heads":
            continue
        kept = kept_channels(model, small, graph, group)
        if isinstance(kept, str):
            return f"no ({group.name}: {kept})"
        if kept is not None:
            cuts[group.name] = kept
    reference = copied(model)
    remove_channels(reference, graph, cuts)
    shapes = {n: p.shape for n, p in reference.named_parameters()}
    odd = [n for n, p in small.named_parameters() if p.shape != shapes[n]]
    if odd:
        return f"no ({odd[0]} has another width than its group)"
    with torch.no_grad():
        wanted = reference.double()(images.double())
    return "yes" if torch.allclose(logits, wanted, rtol=1e-9, atol=1e-12) else "no (other output)"


def kept_channels(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, group: ChannelGroup
) -> Any:
    """Kept indices ``[positions][k]`` of a group from its batch norms, or how they differ."""
    found = None
    for member in group.followers:
        path, _, tensor = member.tensor.rpartition(".")
        if tensor != "weight" or not isinstance(model.get_submodule(path), NORMS):
            continue
        before = model.get_parameter(member.tensor).tolist()
        left = set(small.get_parameter(member.tensor).tolist())
        ids = graph.ids(group, member)
        kept = {int(i) for i, value in zip(ids, before, strict=True) if value in left and i >= 0}
        if found is not None and kept != found:
            return "its layers keep different channels"
        found = kept
    if found is None:
        return None
    rows = [
        [i % group.size for i in sorted(found) if i // group.size == p]
        for p in range(group.positions)
    ]
    if len({len(r) for r in rows}) > 1 or not rows[0]:
        return "heads keep different numbers of channels"
    return np.array(rows)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with the machine in front."""
    lines = [
        "# Torch-Pruning 1.6.1 beside PrimeSVT",
        "",
        "Made by `python benchmarks/against_torch_pruning.py`; what the columns mean is said there."
        " Untrained networks, uniform rates, L2 norm.",
        "",
        ", ".join(f"{key} {value}" for key, value in machine().items()),
        "",
        "| model | T | rate | tool | forward works | removal exact | q, k, v narrower"
        " | parameters saved | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        narrower, saved = (f"{v:.0%}" if v is not None else "-" for v in (r.attention, r.saved))
        lines.append(
            f"| {r.model} | {r.time_steps} | {r.rate:.0%} | {r.tool} | {r.forward} | {r.exact}"
            f" | {narrower} | {saved} | {r.seconds:.2f} |"
        )
    return "\n".join([*lines, "", summary(rows), ""])


def summary(rows: list[Row]) -> str:
    """How often each tool's forward works and its removal is exact."""
    parts = []
    for tool in dict.fromkeys(r.tool for r in rows):
        own = [r for r in rows if r.tool == tool]
        works, exact = (
            sum(v == "yes" for v in column)
            for column in zip(*((r.forward, r.exact) for r in own), strict=True)
        )
        parts.append(
            f"{tool}: the forward works in {works} of {len(own)}, removal is exact in {exact}"
        )
    return ". ".join(parts) + "."


def main() -> None:
    warnings.simplefilter("ignore")  # Torch-Pruning warns of every tensor it cannot follow
    torch.set_num_threads(1)
    rows = []
    for name in MODELS:
        for time_steps in (1, 2):
            for rate in RATES:
                rows.append(with_primesvt(name, time_steps, rate))
                rows += [with_torch_pruning(name, time_steps, rate, heads=h) for h in (False, True)]
                for r in rows[-3:]:
                    print(r, flush=True)
    (RESULTS / "torch_pruning.md").write_text(table(rows))
    print("written to", save("torch_pruning", [asdict(r) for r in rows]).name)


if __name__ == "__main__":
    main()
