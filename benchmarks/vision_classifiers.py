"""Torchvision's classifiers, which Torch-Pruning tests itself on, cut in half by both tools.

Run by ``against_torch_pruning.py --torchvision``; each model in a process of its own. Weights are
random and norms are set so that every layer tells its channels apart. Written to
results/against_torch_pruning_vision.json and .md:

- forward works: the network runs after half of the channels are gone.
- removal exact: in float64 the logits equal those of the original in which the layers that read a
  removed channel have weights of zero there. For PrimeSVT ``verify`` has accepted every group that
  is cut, too. Where silencing does not change the logits either, nothing is told.
- reached: parameters whose shapes change, of all; streams apart: PrimeSVT without the residual
  streams, which Torch-Pruning cuts along with the rest.
- saved: parameters that are gone.
- seconds: analysis, ranking and cut; the check of PrimeSVT (``verify``) apart.

A tool has 10 GiB and ``--minutes`` for a model. Torch-Pruning is told what its own test tells it
(``hints``): which layers stay, and the parameters of ViT and ConvNeXt that lie in no layer.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import RESULTS, described, save
from torch import Tensor, nn

import primesvt
from primesvt.channels.graph import ChannelGraph, ChannelGroup, kept_mask
from primesvt.importance import CriterionContext, keep
from primesvt.importance.magnitude import l2

RATE = 0.5
MEMORY = 10 * 2**30  # bytes for one tool on one model
NAME = "against_torch_pruning_vision"
LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
PIXELS = {"inception_v3": 75}  # the smallest that it takes; 64 for all others
SETTINGS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "vit_b_16": {"image_size": 64},
    "vit_b_32": {"image_size": 64},
    "maxvit_t": {"input_size": (224, 224)},
}
PIXELS["maxvit_t"] = 224  # its windows of 7 x 7 allow no other size
MODELS = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "densenet121",
    "efficientnet_b0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
    "googlenet",
    "inception_v3",
    "squeezenet1_0",
    "squeezenet1_1",
    "mnasnet1_0",
    "alexnet",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "mobilenet_v3_large",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_v2_s",
    "swin_v2_t",
    "maxvit_t",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A classifier with random weights that tell its channels apart, and images for it."""

    name: str
    model: nn.Module
    images: Tensor
    head: nn.Module
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def share(self, names: Iterable[str]) -> float:
        """The share of all parameters that those of some names hold."""
        return round(sum(self.sizes[n] for n in set(names) & self.sizes.keys()) / self.total, 4)


def subject(name: str) -> Subject:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **SETTINGS.get(name, {}))
    pixels = PIXELS.get(name, 64)
    images = torch.randn(4, 3, pixels, pixels)
    draw(model, images)
    last = [m for m in model.modules() if isinstance(m, LAYERS) and m.weight.shape[0] == 1000]
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    return Subject(name=name, model=model, images=images[:2], head=last[-1], sizes=sizes)


@torch.no_grad()
def draw(model: nn.Module, images: Tensor) -> None:
    """Random norms, with the statistics of one batch; fresh ones would hide a wrong cut."""
    for module in model.modules():
        if isinstance(module, NORMS):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            parameter.uniform_(0.5, 1.5)
    head = [m for m in model.modules() if isinstance(m, LAYERS)][-1]
    head.weight.normal_(0, 1 / math.sqrt(head.weight[0].numel()))  # some start at zero
    model.train()(images)
    model.eval()


# --- both tools ---------------------------------------------------------------------------------


def with_primesvt(case: Subject) -> Iterator[dict[str, Any]]:
    """Cut half of every group that the check accepts; first what is known before the check."""
    start = time.perf_counter()
    graph = primesvt.trace(case.model, case.images[:1])
    traced = time.perf_counter() - start
    free = [g for g in graph if g.status == "free" and g.kind != "heads"]
    yield {
        "seconds": round(traced, 2),
        "groups": len(graph),
        "listed": case.share(m.tensor for g in free for m in g.members),
    }
    start = time.perf_counter()
    refusals = primesvt.verify(case.model, graph)
    check = time.perf_counter() - start
    refused = {r.group for r in refusals}
    accepted = [g for g in free if g.name not in refused]
    small = copy.deepcopy(case.model)
    start = time.perf_counter()
    evidence = CriterionContext(model=small, graph=graph)
    cuts = {
        g.name: np.atleast_2d(keep(l2(evidence, g), max(1, math.floor(g.size * (1 - RATE) + 0.5))))
        for g in accepted
    }
    primesvt.remove_channels(small, graph, cuts)
    seconds = traced + time.perf_counter() - start
    held = {m.tensor for g in accepted for m in g.members}
    apart = {m.tensor for g in accepted if g.kind != "stream" for m in g.members}
    yield {
        **compared(case, small, silenced_by_graph(case, graph, cuts)),
        "reached": case.share(held),
        "reached_without_streams": case.share(apart),
        "seconds": round(seconds, 2),
        "seconds_of_check": round(check, 1),
        "groups": len(graph),
        "accepted": len(accepted),
        "problems": list(problems(case, graph, refusals, held)),
    }


def problems(
    case: Subject, graph: ChannelGraph, refusals: list[Any], held: set[str]
) -> Iterator[dict[str, Any]]:
    """Why groups are not cut, with the parameters that no accepted group holds because of it."""
    told = {
        r.group: f"refused: {r.reason} in a {type(case.model.get_submodule(r.module)).__name__}"
        for r in refusals
    }
    together: dict[str, list[ChannelGroup]] = {}
    for g in graph:
        why = f"frozen: {g.reason}" if g.status == "frozen" else told.get(g.name)
        if why is not None:
            why = re.sub(r"'[\w.]+'", "'...'", why)
            together.setdefault(re.sub(r"\b\d+\b", "#", why), []).append(g)
    for why, groups in together.items():
        lost = {m.tensor for g in groups for m in g.members} - held
        yield {"why": why, "groups": [g.name for g in groups], "lost": case.share(lost)}
    alone = {n for n in case.sizes if n not in {m.tensor for g in graph for m in g.members}}
    if alone:
        names = [n for n in case.sizes if n in alone]
        yield {"why": "in no group", "groups": names, "lost": case.share(alone)}


def with_torch_pruning(case: Subject) -> Iterator[dict[str, Any]]:
    """The same with Torch-Pruning's own pruner, group by group to see what it removes where."""
    import torch_pruning as tp

    small = copy.deepcopy(case.model)
    head = small.get_submodule(next(n for n, m in case.model.named_modules() if m is case.head))
    paths = {module: path for path, module in small.named_modules()}
    removed: list[tuple[str, bool, list[int]]] = []
    start = time.perf_counter()
    try:
        pruner = tp.pruner.BasePruner(
            small,
            case.images[:1],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=RATE,
            **hints(small, head),
            # Its own default dictionaries are shared by all pruners of a process.
            in_channel_groups={},
            out_channel_groups={},
        )
        for group in pruner.step(interactive=True):
            for dep, idxs in group:
                if dep.target.module in paths:
                    out = pruner.DG.is_out_channel_pruning_fn(dep.handler)
                    removed.append((paths[dep.target.module], out, [int(i) for i in idxs]))
            group.prune()
    except Exception as error:  # whatever it raises is the finding
        seconds = round(time.perf_counter() - start, 2)
        yield {"forward": f"no (step: {line(error)})", "seconds": seconds}
        return
    seconds = time.perf_counter() - start
    if hasattr(small, "hidden_dim"):  # its own test does so with ViT
        small.hidden_dim = small.conv_proj.out_channels
    shapes = dict(small.named_parameters())
    changed = [n for n, p in case.model.named_parameters() if shapes[n].shape != p.shape]
    yield {
        **compared(case, small, silenced_by_records(case, removed)),
        "reached": case.share(changed),
        "seconds": round(seconds, 2),
    }


def hints(model: nn.Module, head: nn.Module) -> dict[str, Any]:
    """What Torch-Pruning's own test of torchvision's models tells its pruner."""
    ignored: list[nn.Module] = [head]
    given: dict[str, Any] = {"ignored_layers": ignored}
    ignored += [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ]
    if type(model).__name__ == "VisionTransformer":
        given["round_to"] = model.encoder.layers[0].num_heads
        given["unwrapped_parameters"] = [(model.class_token, 2), (model.encoder.pos_embedding, 2)]
    if type(model).__name__ == "ConvNeXt":
        scales = [p for n, p in model.named_parameters() if n.endswith("layer_scale")]
        given["unwrapped_parameters"] = [(p, 0) for p in scales]
    return given


# --- what a removal should have left ------------------------------------------------------------


def compared(case: Subject, small: nn.Module, silenced: nn.Module) -> dict[str, Any]:
    """Run the smaller network, and compare it with the silenced original in double precision."""
    after = sum(p.numel() for p in small.parameters())
    found: dict[str, Any] = {"saved": round(1 - after / case.total, 4)}
    with torch.no_grad():
        try:
            small(case.images)
            logits = small.double()(case.images.double())
        except Exception as error:  # whatever a cut breaks is the finding
            return {**found, "forward": f"no ({line(error)})", "exact": "-"}
        wanted = silenced(case.images.double())
        before = copy.deepcopy(case.model).double()(case.images.double())
    scale = float(wanted.abs().max())
    alike = torch.allclose(logits, wanted, rtol=1e-7, atol=1e-9 * scale)
    tells = not torch.allclose(before, wanted, rtol=1e-3, atol=1e-3 * scale)
    exact = "no (other output)" if not alike else "yes" if tells else "not told"
    difference = float((logits - wanted).abs().max()) / scale
    return {**found, "forward": "yes", "exact": exact, "difference": difference}


@torch.no_grad()
def silenced_by_graph(case: Subject, graph: ChannelGraph, cuts: dict[str, np.ndarray]) -> nn.Module:
    """A copy in which the layers that read removed channels have weights of zero there.

    What a product in the forward reads (queries and keys) is zero where it is made.
    """
    silent = copy.deepcopy(case.model).double()
    for name, kept in cuts.items():
        group = graph[name]
        gone = ~kept_mask(group, graph.kept(name, kept))
        linear = all(isinstance(silent.get_submodule(m.module), nn.Linear) for m in group.producers)
        in_heads = linear and group.positions > 1
        for member in (*group.readers, *(group.producers if in_heads or not group.readers else ())):
            weight = silent.get_parameter(member.tensor)
            ids = graph.ids(group, member)
            blocks = getattr(silent.get_submodule(member.module), "groups", 1)
            if member.role == "reader" and member.axis == 1 and blocks > 1:
                rows = np.repeat(gone, weight.shape[0] // group.positions, axis=0)[:, ids]
                weight[torch.from_numpy(rows)] = 0.0
                continue
            dead = (ids >= 0) & gone.reshape(-1)[np.maximum(ids, 0)]
            index = torch.from_numpy(np.flatnonzero(dead))
            weight.index_fill_(member.axis, index, 0.0)
            bias = getattr(silent.get_submodule(member.module), "bias", None)
            if member.role == "producer" and bias is not None:
                bias.index_fill_(0, index, 0.0)
    return silent


@torch.no_grad()
def silenced_by_records(case: Subject, removed: list[tuple[str, bool, list[int]]]) -> nn.Module:
    """The same from the inputs of layers that Torch-Pruning says it has removed, in its order."""
    silent = copy.deepcopy(case.model).double()
    left: dict[str, list[int]] = {}
    for path, out, idxs in removed:
        layer = silent.get_submodule(path)
        if out or not isinstance(layer, LAYERS):
            continue
        blocks = getattr(layer, "groups", 1)
        weight: Tensor = layer.weight
        inputs = left.setdefault(path, list(range(weight.shape[1] * blocks)))
        for i in sorted(set(idxs), reverse=True):
            block, column = divmod(inputs.pop(i), weight.shape[1])
            rows = weight.shape[0] // blocks
            weight[block * rows : (block + 1) * rows, column] = 0.0
    return silent


def line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:70]}{'...' * (len(first) > 70)}"


# --- the table ----------------------------------------------------------------------------------


def measured(name: str, tool: str, answer: Path) -> None:
    """All that is known about a tool on a model, written whenever something is added."""
    warnings.simplefilter("ignore")  # Torch-Pruning warns of every tensor it cannot follow
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    images, sizes = torch.randn(2, 3, 4, 4), {n: p.numel() for n, p in first.named_parameters()}
    trial = Subject(name="", model=first.eval(), images=images, head=first[-1], sizes=sizes)
    list(TOOLS[tool](trial))  # first calls are not timed
    case = subject(name)
    found = {"parameters": case.total, "pixels": case.images.shape[-1]}
    answer.write_text(json.dumps(found))
    for row in TOOLS[tool](case):
        answer.write_text(json.dumps(found | row))


TOOLS: dict[str, Callable[[Subject], Iterator[dict[str, Any]]]] = {
    "PrimeSVT": with_primesvt,
    "Torch-Pruning": with_torch_pruning,
}


def row(script: str, name: str, tool: str, minutes: float) -> dict[str, Any]:
    """One tool on one model in a process of its own, which may crash or run too long."""
    failed = ""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "row.json"
        words = [sys.executable, script, "--worker", name, tool, str(answer)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60 * minutes)
            if done.returncode:
                failed = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        except subprocess.TimeoutExpired:
            failed = f"not done after {minutes:g} minutes"
        known = json.loads(answer.read_text()) if answer.exists() else {}
    return {"model": name, "tool": tool, "forward": "", **known, "failed": failed}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the machine in front."""
    lines = [
        "# Torchvision's classifiers: Torch-Pruning 1.6.1 beside PrimeSVT",
        "",
        "Made by `python benchmarks/against_torch_pruning.py --torchvision`; what the columns mean"
        " stands in `benchmarks/vision_classifiers.py`. Random weights, half of every group.",
        "",
        f"{described()}.",
        "",
        *summary(rows),
        "",
        "| model | pixels | parameters | tool | forward works | removal exact | reached"
        " | streams apart | saved | seconds | check s |",
        "|" + "---|" * 11,
    ]
    for r in rows:
        shares = ("reached", "reached_without_streams", "saved")
        cells = " | ".join(f"{r[k]:.1%}" if k in r else "" for k in shares)
        lines.append(
            f"| {r['model']} | {r.get('pixels', '')} | {r.get('parameters', '')} | {r['tool']} |"
            f" {r['forward'] or r['failed']} | {r.get('exact', '-')} | {cells} |"
            f" {r.get('seconds', '')} | {r.get('seconds_of_check', '')} |"
        )
    lines += ["", "## What PrimeSVT does not cut", ""]
    lines += ["Shares of the parameters that no accepted group holds for that reason.", ""]
    for r in rows:
        for p in r.get("problems", ()):
            count, what = len(p["groups"]), "tensor" if p["why"] == "in no group" else "group"
            lines.append(
                f"- {r['model']}: {count} {what}{'s' * (count > 1)}, such as"
                f" `{p['groups'][0]}`, {p['lost']:.1%}: {p['why'].replace('|', '/')}"
            )
    return "\n".join([*lines, ""])


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How often a tool works and is exact, its shares, and its seconds where both tools work."""
    columns = "forward works | removal exact | reached, median of these | least"
    yield f"| tool | {columns} | seconds, mean where both work |"
    ran = Counter(r["model"] for r in rows if r["forward"] == "yes")
    yield "|" + "---|" * 6
    for tool in TOOLS:
        own = [r for r in rows if r["tool"] == tool]
        works = [t for t in own if t["forward"] == "yes"]
        exact = sum(t["exact"] == "yes" for t in works)
        shares = [t["reached"] for t in works] or [0.0]
        mean = np.mean([r["seconds"] for r in works if ran[r["model"]] == 2] or [math.nan])
        yield (
            f"| {tool} | {len(works)} of {len(own)} | {exact} of {len(own)}"
            f" | {np.median(shares):.1%} | {min(shares):.1%} | {mean:.2f} |"
        )


def compare(script: str, only: list[str], minutes: float) -> None:
    """Measure those models that are named, or that have no row yet, and write after each."""
    path = RESULTS / f"{NAME}.json"
    known: dict[tuple[str, str], dict[str, Any]] = {}
    if path.exists():
        known = {(r["model"], r["tool"]): r for r in json.loads(path.read_text())["rows"]}
    for name, tool in itertools.product(only or MODELS, TOOLS):
        if only or (name, tool) not in known:
            made = known[name, tool] = row(script, name, tool, minutes)
            print({k: v for k, v in made.items() if k != "problems"}, flush=True)
            names = dict.fromkeys([*MODELS, *(m for m, _ in known)])
            rows = [known[key] for key in itertools.product(names, TOOLS) if key in known]
            save(NAME, rows)
            (RESULTS / f"{NAME}.md").write_text(table(rows))
