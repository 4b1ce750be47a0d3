"""What a search costs for a network of somebody's own, which has no blocks that we know.

    python benchmarks/own_network.py [--images 1000] [--dim 96]     # results/own_network.json

The network is SpikingJelly's own Spikformer, at T = 4 and 32 x 32 pixels, with random weights and
its own predictions as labels: only time is measured here. Three searches, of the same defaults and
limits, one after another in one process: with ``score=`` on the images that ``data=`` selects with,
with ``data=``, and with ``data=`` where no output of a module is reused. Processor seconds.

What rewritten sizes cost: SpikingJelly's Spike-driven Transformer V1, whose attention writes its
width, at its own widths with and without the adapters that a pruned one has; forwards of both in
turn, the ratio of the medians and the middle half of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from machine import described, save
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import nn
from torch.utils.data import TensorDataset

import primesvt
from primesvt.channels.adapter import Adapted, install
from primesvt.models.stored_outputs import StoredOutputs
from primesvt.profiling.memory import parameter_count


class Averaged(nn.Module):
    """A network whose logits are those of all time steps, averaged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, classes]``."""
        out: torch.Tensor = self.net(x)
        return out.mean(0) if out.ndim == 3 else out


def network(dim: int) -> nn.Module:
    """A Spikformer whose neurons fire: its norms saw noise."""
    torch.manual_seed(0)
    net = Spikformer(
        T=4,
        num_classes=10,
        embed_dims=dim,
        num_heads=4,
        depths=2,
        img_size_h=32,
        img_size_w=32,
        patch_size=4,
    )
    net = Averaged(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
            nn.init.constant_(module.bias, 0.3)
    for _ in range(10):
        net(torch.randn(32, 3, 32, 32))
        functional.reset_net(net)
    return net.eval()


def answers(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Predictions for images, 100 at a time."""
    found = []
    with torch.no_grad():
        for batch in images.split(100):
            functional.reset_net(net)
            found.append(net(batch).argmax(1))
    functional.reset_net(net)
    return torch.cat(found)


def timed(run: Callable[[], Any]) -> dict[str, Any]:
    """Processor and wall seconds of one search, and how many networks it measured."""
    begin, wall = time.process_time(), time.monotonic()
    result = run()
    return {
        "processor_seconds": time.process_time() - begin,
        "seconds": time.monotonic() - wall,
        "networks": len(result.probes),
        "refused": len(result.refusals),
        "saving": result.metrics.saving,
    }


def adapters(batch: int, *, turns: int = 30) -> dict[str, Any]:
    """How much longer a forward takes whose sizes are rewritten, at the same widths."""
    torch.manual_seed(0)
    settings = {"num_classes": 10, "embed_dims": 256, "num_heads": 8, "depths": 2}
    plain = SpikeDrivenTransformer(T=4, pooling_stat="0011", **settings).eval()
    images = torch.randn(batch, 3, 32, 32)
    graph = primesvt.trace(plain, images[:1])
    rewritten = copy.deepcopy(plain)
    install(rewritten, graph.rewrites, graph.seen, graph.sizes)
    took: dict[str, list[float]] = {"plain": [], "rewritten": []}
    with torch.no_grad():
        for _ in range(turns):
            for name, net in (("plain", plain), ("rewritten", rewritten)):
                begin = time.process_time()
                net(images)
                took[name].append(time.process_time() - begin)
                functional.reset_net(net)
    ratios = sorted(b / a for a, b in zip(took["plain"], took["rewritten"], strict=True))
    return {
        "batch": batch,
        "adapted modules": sum(isinstance(m, Adapted) for m in rewritten.modules()),
        "milliseconds": 1000 * statistics.median(took["plain"]),
        "ratio": statistics.median(took["rewritten"]) / statistics.median(took["plain"]),
        "middle half": [ratios[turns // 4], ratios[-turns // 4]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="to search with")
    parser.add_argument("--dim", type=int, default=96, help="of the network's streams")
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = network(given.dim)
    images = torch.randn(given.images, 3, 32, 32)
    labels = answers(net, images)
    data = TensorDataset(images, labels)
    common: dict[str, Any] = {"max_accuracy_drop": 3.0, "seed": 0, "example_input": images[:2]}

    def score(model: nn.Module) -> torch.Tensor:
        return (answers(model, images) == labels).float()

    rows: dict[str, Any] = {"parameters": parameter_count(net), "images": given.images}
    rows["score"] = timed(
        lambda: primesvt.prune(net, score=score, **{**common, "max_accuracy_drop": 0.03})
    )
    rows["data"] = timed(lambda: primesvt.prune(net, data=data, **common))
    with mock.patch.object(StoredOutputs, "_key", lambda *_: None):
        rows["data, nothing reused"] = timed(lambda: primesvt.prune(net, data=data, **common))
    rows["adapters"] = [adapters(batch) for batch in (1, 16)]
    save("own_network", rows)
    for row in rows["adapters"]:
        print("adapters:", row)
    for name in ("score", "data", "data, nothing reused"):
        share = rows[name]["processor_seconds"] / rows["score"]["processor_seconds"]
        print(f"{name}: {rows[name]} ({share:.2f} of the score's)")
    print(described())


if __name__ == "__main__":
    main()
