"""Time networks and parts of them in onnxruntime, as ONNX files."""

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
    """Writes networks as ONNX files and times them in turn; the unpruned network's are kept.

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
        # Between the blocks of a network, time steps stand in front of the axis of samples.
        axis = int(self._blocks and not isinstance(model, SpikingViT))
        runner = self._known.get(id(model)) or _file(model, x.cpu(), axis)
        if id(model) in self._lasting:
            self._known[id(model)] = runner
        return partial(runner, x.cpu())


def _file(model: nn.Module, x: Tensor, axis: int) -> Runner:
    """A network as an ONNX file for any number of samples, and as a function of a batch."""
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
