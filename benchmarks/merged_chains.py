"""What goes without loss where linear layers with no neuron in between are merged.

    python benchmarks/merged_chains.py          # results/merged_chains.{md,json}, about 3 minutes

SDT-V3 large in its published shapes, with random weights and norms that shift and scale: parameters
of the whole network before and after, and how far what each merged pair gives to the neuron behind
it moves, in double and in single precision, relative to its largest value. Both networks get the
same inputs there, as they would otherwise differ by spikes too; then the logits of both as wholes.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from machine import RESULTS, described, save
from torch import nn

from primesvt import create_model
from primesvt.models import SpikingViT, reset
from primesvt.models.strip import merge_chain, mergeable_chains, strip_unused
from primesvt.profiling.memory import parameter_count

SHAPES = ("sdt_v3_large_83m", "sdt_v3_large_171m")


def network(name: str) -> SpikingViT:
    """A network in evaluation mode whose norms are not trivial."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    draw = torch.Generator().manual_seed(1)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(tensor.shape, generator=draw) * (high - low) + low

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.copy_(uniform(module.running_mean, -0.2, 0.2))
            module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
            module.weight.data.copy_(uniform(module.weight, 0.75, 1.25))
            module.bias.data.copy_(uniform(module.bias, -0.2, 0.2))
    return model


def differences(model: SpikingViT, images: torch.Tensor) -> tuple[float, float, bool]:
    """Of the pairs' outputs, of the logits (both relative), and whether predictions agree."""
    merged = copy.deepcopy(model)
    for path in mergeable_chains(merged):
        merge_chain(merged, path)
    worst = 0.0

    def compare(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            nonlocal worst
            other = merged.get_submodule(path)(*args)
            worst = max(worst, float((other - out).abs().max() / out.abs().max()))

        return hook

    for path in mergeable_chains(model):
        model.get_submodule(path).register_forward_hook(compare(path))
    with torch.no_grad():
        reset(model)
        one = model(images)
        reset(merged)
        other = merged(images)
    apart = float((one - other).abs().max() / one.abs().max())
    return worst, apart, bool((one.argmax(1) == other.argmax(1)).all())


def row(name: str, images: torch.Tensor) -> dict[str, Any]:
    """The figures of one shape."""
    model = network(name)
    whole = parameter_count(model)
    unused = strip_unused(model)
    pairs = mergeable_chains(model)
    merged = copy.deepcopy(model)
    for path in pairs:
        merge_chain(merged, path)
    gone = parameter_count(model) - parameter_count(merged)
    del merged
    single = differences(copy.deepcopy(model), images)
    double = differences(model.double(), images.double())
    return {
        "model": name,
        "parameters": whole,
        "unused": unused,
        "pairs": len(pairs),
        "merged_away": gone,
        "share": gone / whole,
        "after": whole - unused - gone,
        "double": {"pair": double[0], "logits": double[1], "same": double[2]},
        "single": {"pair": single[0], "logits": single[1], "same": single[2]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=96)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(2)
    images = torch.rand(asked.images, 3, asked.pixels, asked.pixels, generator=draw)
    rows = [row(name, images) for name in SHAPES]
    save("merged_chains", {"images": asked.images, "pixels": asked.pixels, "rows": rows})
    lines = [
        "# Linear layers merged without loss\n",
        f"`python benchmarks/merged_chains.py`, {asked.images} images of {asked.pixels} pixels, "
        "random weights.\n",
        "| Model | Parameters | Pairs | Go for nothing | Left | Pairs apart, float64 | "
        "float32 | Logits apart, float64 | float32 | Same predictions |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        one, two = r["double"], r["single"]
        lines.append(
            f"| `{r['model']}` | {r['parameters']:,} | {r['pairs']} | "
            f"{r['merged_away']:,} ({r['share']:.1%}) | {r['after']:,} | {one['pair']:.1e} | "
            f"{two['pair']:.1e} | {one['logits']:.1e} | {two['logits']:.1e} | "
            f"{'yes' if one['same'] and two['same'] else 'no'} |"
        )
    text = "\n".join([*lines, "", described()])
    (RESULTS / "merged_chains.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
