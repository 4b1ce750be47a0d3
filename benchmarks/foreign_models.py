"""Official code of spiking transformers, not edited: how much of it can be cut, and what cannot.

    pip install timm einops torchinfo opencv-python-headless  # which the official files import
    python benchmarks/foreign_models.py FOLDER [--only NAME ...] [--minutes 10]

FOLDER holds clones of the public repositories that ``MODELS`` names, each under its own name, such
as FOLDER/spikformer; those that are not there are said. Each model is imported inside of
``primesvt.compat`` in a process of its own, built at the widths of its authors' smallest
configuration for few time steps, traced on one small input, and checked by ``primesvt.verify``: in
double precision, every group that may be cut, streams too.

Written to results/foreign_models.json and .md. Shares are of all parameters:

- listed: lie in some group that a trace says is free to be cut (residual streams included).
- accepted: lie in some group that is free and that the check has not refused; with streams, and
  without.
- in no group: are read by the forward and lie in no group at all (single numbers, such as a leak
  that is learned, have no channels and are left out); unread: no forward reads them.

A parameter lies in a group if one of its axes carries the group's channels. With ``--only``, the
other models' rows in results/foreign_models.json stay.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, described, save
from torch import nn

import primesvt
from primesvt import compat

SMALL = {"img_size_h": 32, "img_size_w": 32, "in_channels": 3, "num_classes": 10}
CIFAR = {**SMALL, "patch_size": 4, "mlp_ratios": 4, "sr_ratios": 1, "T": 2}
SDT = {**CIFAR, "embed_dims": 256, "num_heads": 8, "depths": 2, "pooling_stat": "0011"}
IMAGE, LARGER, FRAMES = (1, 3, 32, 32), (1, 3, 64, 64), (1, 4, 2, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A class in somebody's repository, and how to build it."""

    name: str
    repository: str  # OWNER/NAME
    inside: str  # the folder that its imports start from
    make: str  # MODULE:CALLABLE
    settings: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = IMAGE


MODELS = (
    Model(
        name="Spikformer, CIFAR",
        repository="ZK-Zhou/spikformer",
        inside="cifar10",
        make="model:Spikformer",
        settings={**CIFAR, "embed_dims": 384, "num_heads": 12, "depths": 4},
    ),
    Model(
        name="Spikformer, DVS",
        repository="ZK-Zhou/spikformer",
        inside="cifar10dvs",
        make="model:spikformer",
        shape=FRAMES,
    ),
    Model(
        name="SDT-V1, CIFAR",
        repository="BICLab/Spike-Driven-Transformer",
        inside="",
        make="model.spikeformer:sdt",
        settings=SDT,
    ),
    Model(
        name="SDT-V1, CIFAR, PLIF",
        repository="BICLab/Spike-Driven-Transformer",
        inside="",
        make="model.spikeformer:sdt",
        settings={**SDT, "spike_mode": "plif"},
    ),
    Model(
        name="SDT-V2, 15M",
        repository="BICLab/Spike-Driven-Transformer-V2",
        inside="classification",
        make="models:Spiking_vit_MetaFormer",
        settings={
            **SMALL,
            "embed_dim": [64, 128, 256, 360],
            "num_heads": 8,
            "mlp_ratios": 4,
            "depths": 8,
            "num_classes": 1000,
            "sr_ratios": 1,
        },
        shape=LARGER,
    ),
    Model(
        name="SDT-V3, 5M",
        repository="BICLab/Spike-Driven-Transformer-V3",
        inside="SDT_V3/Classification/Model_Base",
        make="models:Efficient_Spiking_Transformer_s",
        shape=LARGER,
    ),
    Model(
        name="QKFormer, CIFAR",
        repository="zhouchenlin2096/QKFormer",
        inside="cifar10",
        make="model:QKFormer",
        settings={**CIFAR, "embed_dims": 384, "num_heads": 8, "depths": 4},
    ),
    Model(
        name="QKFormer, ImageNet 10-384",
        repository="zhouchenlin2096/QKFormer",
        inside="imagenet",
        make="qkformer:QKFormer_10_384",
        shape=LARGER,
    ),
    Model(
        name="Max-Former, CIFAR",
        repository="bic-L/MaxFormer",
        inside="cifar10-100",
        make="max_former:max_former",
        settings={"in_channels": 3, "num_classes": 10, "embed_dims": 384, "depths": 4, "T": 2},
    ),
    Model(
        name="MS-QKFormer, CIFAR",
        repository="bic-L/MaxFormer",
        inside="cifar10-100",
        make="ms_qkformer:ms_qkformer",
        settings={"in_channels": 3, "num_classes": 10, "embed_dims": 384, "depths": 4, "T": 2},
    ),
    Model(
        name="Max-ResNet-18, CIFAR",
        repository="bic-L/MaxFormer",
        inside="cifar10-100",
        make="max_resnet:max_resnet18",
        settings={"T": 2},
    ),
    Model(
        name="SGLFormer, CIFAR",
        repository="ZhangHanN1/SGLFormer",
        inside="cifar10",
        make="sglformer:sglformer",
        settings={**CIFAR, "embed_dims": 384, "num_heads": 16, "depths": 1, "T": 4},
    ),
    Model(
        name="STAtten, CIFAR",
        repository="Intelligent-Computing-Lab-Yale/STAtten",
        inside="",
        make="model.spikeformer:sdt",
        settings=SDT,
    ),
    Model(
        name="Spikingformer, CIFAR",
        repository="zhouchenlin2096/Spikingformer",
        inside="cifar10",
        make="model:Spikingformer",
        settings={**CIFAR, "embed_dims": 384, "num_heads": 12, "depths": 4},
    ),
    Model(
        name="Spikformer-CML, CIFAR",
        repository="zhouchenlin2096/Spikingformer-CML",
        inside="cifar10",
        make="CML_Spikformer:CML_Spikformer",
        settings={**CIFAR, "embed_dims": 384, "num_heads": 12, "depths": 4},
    ),
    Model(
        name="SpikingResformer, CIFAR",
        repository="xyshi2000/SpikingResformer",
        inside="",
        make="models.spikingresformer:spikingresformer_cifar",
        settings={"img_size": 32, "num_classes": 10, "T": 2},
    ),
    Model(
        name="TP-Spikformer, QKFormer 10-384",
        repository="xlzhou126/TP-Spikformer-Token-Pruned-Spiking-Transformer",
        inside="qk_drop",
        make="qkformer:QKFormer_10_384",
        shape=LARGER,
    ),
    Model(
        name="SpikeYOLO, nano",
        repository="BICLab/SpikeYOLO",
        inside="",
        make="ultralytics.nn.tasks:DetectionModel",
        settings={"cfg": "ultralytics/cfg/models/v8/snn_yolov8.yaml", "verbose": False},
        shape=LARGER,
    ),
)


def built(model: Model, folder: Path) -> nn.Module:
    """Import a class as its own training script would, and make the network."""
    place = folder / model.repository.partition("/")[2]
    sys.path.insert(0, str(place / model.inside))
    module, _, name = model.make.partition(":")
    given = {
        key: str(place / value) if key == "cfg" else value for key, value in model.settings.items()
    }
    if not torch.cuda.is_available():  # SpikeYOLO moves itself to a GPU when it is made
        nn.Module.cuda = torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    network: nn.Module = getattr(importlib.import_module(module), name)(**given)
    return network.eval()


def measured(model: Model, folder: Path) -> Iterator[dict[str, Any]]:
    """Build, trace and check one model: what is known after the trace, and after the check."""
    compat.install()
    torch.manual_seed(0)
    network = built(model, folder)
    x = torch.rand(model.shape)
    start = time.perf_counter()
    graph = primesvt.trace(network, x)
    traced = time.perf_counter()
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    total = sum(sizes.values())

    def share(groups: Iterable[primesvt.ChannelGroup]) -> float:
        names = {m.tensor for g in groups for m in g.members} & sizes.keys()
        return round(sum(sizes[n] for n in names) / total, 4)

    free = [g for g in graph if g.status == "free" and g.kind != "heads"]
    frozen = [g for g in graph if g.status == "frozen"]
    within = {m.tensor for g in graph for m in g.members} | set(graph.unread)
    outside = [n for n in sizes if n not in within and sizes[n] > 1]
    problems = [
        {"group": g.name, "why": f"frozen: {g.reason}", "share": share([g])} for g in frozen
    ]
    found = {
        "parameters": total,
        "groups": len(graph),
        "free": len(free),
        "frozen": len(frozen),
        "listed": share(free),
        "in_no_group": round(sum(sizes[n] for n in outside) / total, 4),
        "unread": round(sum(sizes.get(n, 0) for n in graph.unread) / total, 4),
        "outside": outside,
        "seconds_of_trace": round(traced - start, 1),
        "notes": list(graph.notes),
        "problems": problems,
    }
    yield found
    refusals = primesvt.verify(network, graph)
    names = {r.group for r in refusals}
    accepted = [g for g in free if g.name not in names]
    yield found | {
        "refused": len(names),
        "accepted": share(accepted),
        "accepted_without_streams": share(g for g in accepted if g.kind != "stream"),
        "seconds_of_check": round(time.perf_counter() - traced, 1),
        "problems": [*problems, *(_told(r, network, share([graph[r.group]])) for r in refusals)],
    }


def _told(refusal: Any, network: nn.Module, share: float) -> dict[str, Any]:
    kind = type(network.get_submodule(refusal.module)).__name__
    return {
        "group": refusal.group,
        "why": f"refused: {refusal.reason} in a {kind}",
        "share": share,
    }


def row(model: Model, folder: Path, minutes: float) -> dict[str, Any]:
    """The same in a process of its own, as repositories share names of modules."""
    made: dict[str, Any] = {"name": model.name, "repository": model.repository, "failed": ""}
    place = folder / model.repository.partition("/")[2]
    if not place.is_dir():
        return {**made, "failed": f"no folder {place.name}"}
    made["commit"] = subprocess.run(
        ["git", "-C", str(place), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "row.json"
        words = [sys.executable, __file__, str(folder), "--worker", model.name, str(answer)]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=60 * minutes, cwd=scratch
            )
        except subprocess.TimeoutExpired:
            late = {"failed": f"not done after {minutes:g} minutes"}
            return made | (json.loads(answer.read_text()) if answer.exists() else {}) | late
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return {**made, "failed": last.replace(str(folder), "FOLDER")[:300]}
        return made | json.loads(answer.read_text())


def summary(problems: list[dict[str, Any]]) -> Iterator[tuple[int, float, str, str]]:
    """Like reasons together: how many groups, their share at most, the reason, one group."""
    together: dict[str, list[dict[str, Any]]] = {}
    for problem in problems:
        why = re.sub(r"'[\w.]*\d[\w.]*'", "'...'", problem["why"])
        together.setdefault(re.sub(r"\b\d+\b", "#", why), []).append(problem)
    for why, those in together.items():
        yield len(those), max(p["share"] for p in those), why, those[0]["group"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the machine in front."""
    lines = [
        "# Official code, not edited",
        "",
        "Made by `python benchmarks/foreign_models.py FOLDER`, where the columns are explained.",
        "",
        f"{described()}.",
        "",
        "| model | commit | parameters | groups | free | refused | frozen | listed | accepted"
        " | accepted, streams apart | in no group | unread | trace s | check s |",
        "|" + "---|" * 14,
    ]
    for r in rows:
        name = f"[{r['name']}](https://github.com/{r['repository']})"
        if "parameters" not in r:
            lines.append(f"| {name} | {r.get('commit', '')} | {r['failed']} |" + " |" * 11)
            continue
        refused = r.get("refused", r["failed"])
        counts = " | ".join(f"{r[k]:,}" for k in ("parameters", "groups", "free"))
        shares = ("listed", "accepted", "accepted_without_streams", "in_no_group", "unread")
        lines.append(
            f"| {name} | {r['commit']} | {counts} | {refused} | {r['frozen']} | "
            + " | ".join(f"{r[k]:.1%}" if k in r else "" for k in shares)
            + f" | {r['seconds_of_trace']} | {r.get('seconds_of_check', '')} |"
        )
    lines += ["", "## What cannot be cut", ""]
    for r in rows:
        found = list(summary(r.get("problems", [])))
        if not found and not r.get("outside") and not r.get("notes"):
            continue
        lines += [f"{r['name']}:", ""]
        lines += [
            f"- {count} group{'s' * (count > 1)}, {most:.1%} of the parameters each at most, such"
            f" as `{group}`: {why.replace('|', '/')}"
            for count, most, why, group in found
        ]
        lines += [f"- note: {note}" for note in r.get("notes", ())]
        outside = r.get("outside", ())
        if outside:
            more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
            lines.append(f"- in no group: {', '.join(f'`{n}`' for n in outside[:3])}{more}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="part of a model's name")
    parser.add_argument("--minutes", type=float, default=10, help="for one model")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.worker:
        warnings.simplefilter("ignore")
        name, answer = args.worker
        chosen = next(m for m in MODELS if m.name == name)
        for found in measured(chosen, folder):
            Path(answer).write_text(json.dumps(found))
        return
    path = RESULTS / "foreign_models.json"
    known = {r["name"]: r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for model in MODELS:
        if not args.only or any(part.lower() in model.name.lower() for part in args.only):
            known[model.name] = row(model, folder, args.minutes)
            print({k: v for k, v in known[model.name].items() if k != "problems"}, flush=True)
            rows = [known[m.name] for m in MODELS if m.name in known]
            save("foreign_models", rows)
            (RESULTS / "foreign_models.md").write_text(table(rows))


if __name__ == "__main__":
    main()
