"""Networks and parts of them as ONNX files, timed in onnxruntime: what an export will take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from primesvt.models import SpikingViT
from primesvt.profiling.timing import Pace, Seconds, batched, race

__all__ = ["Files"]


Runner = Callable[[Tensor], list[Tensor]]


class Files:
    """Makes files of networks and races them; those of the unpruned network are kept.

    Batch norms are folded and neurons written out, as ``primesvt.export`` does it.

    Args:
        model: the unpruned network.

    Raises:
        ValueError: a package that is missing, or a network that cannot be exported.
    """

    runtime = "onnxruntime"

    def __init__(self, model: nn.Module) -> None:
        from primesvt.exporting.onnx.model import check_onnx

        check_onnx()
        self._blocks = isinstance(model, SpikingViT)
        self._lasting = {id(module) for module in model.modules()}
        self._known: dict[int, Runner] = {}

    def race(
        self, parts: Mapping[str, tuple[nn.Module, tuple[Any, ...]]], pace: Pace
    ) -> dict[str, Seconds]:
        """Seconds of every file on its inputs, one tensor each, in every round."""
        runs = {name: self._run(model, *inputs) for name, (model, inputs) in parts.items()}
        return race(runs, pace, torch.device("cpu"))

    def _run(self, model: nn.Module, x: Tensor) -> Callable[[], Any]:
        runner = self._known.get(id(model)) or _file(model, x.cpu(), self._axis(model))
        if id(model) in self._lasting:
            self._known[id(model)] = runner
        return partial(runner, x.cpu())

    def _axis(self, model: nn.Module) -> int:
        """What counts samples: between its blocks a network has time steps in front of them."""
        return int(self._blocks and not isinstance(model, SpikingViT))


def _file(model: nn.Module, x: Tensor, axis: int) -> Runner:
    """A file for any number of samples; two of them show it."""
    from primesvt.exporting.deploy import deploy
    from primesvt.exporting.onnx.channel_padding import aligned
    from primesvt.exporting.onnx.model import onnx_model
    from primesvt.exporting.runtime import onnx_runner
    from primesvt.exporting.torch_export import export_program

    (two,) = batched((x.transpose(0, axis),), 2)
    example = two.transpose(0, axis).contiguous()
    graph = export_program(deploy(model, example), example, axis=axis)
    content = aligned(onnx_model(graph, input_name="input", about={}))
    return onnx_runner(content.SerializeToString())
