"""Runners: exported files and networks as functions from a batch to their outputs."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from primesvt.exporting.deploy import spiking_modules
from primesvt.models import reset
from primesvt.models.forward import hooked

__all__ = ["Runner", "model_runner", "module_runner", "onnx_runner", "program_runner"]

# A batch to the outputs of a file in their order: logits first.
Runner = Callable[[Tensor], list[Tensor]]


def onnx_runner(content: bytes) -> Runner:
    """Run an ONNX file in onnxruntime on the CPU, with as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: Tensor) -> list[Tensor]:
        found = session.run(None, {name: batch.contiguous().numpy()})
        return [torch.from_numpy(each) for each in found]

    return run


def program_runner(content: bytes) -> Runner:
    """Run a file of ``torch.export``."""
    return module_runner(torch.export.load(io.BytesIO(content)).module())


def module_runner(module: Callable[[Tensor], Any]) -> Runner:
    """Run an exported program that was not written to a file."""

    def run(batch: Tensor) -> list[Tensor]:
        with torch.no_grad():
            found = module(batch)
        return list(found) if isinstance(found, tuple | list) else [found]

    return run


def model_runner(model: nn.Module, *, axis: int = 0, alone: bool = False) -> Runner:
    """Run a network itself: its logits, then the spikes of every neuron layer.

    Args:
        model: in evaluation mode; its neurons are reset around every forward.
        axis: of the input that counts samples.
        alone: give it one sample at a time.
    """

    def once(batch: Tensor) -> list[Tensor]:
        outputs: dict[str, list[Tensor]] = {name: [] for name in spiking_modules(model)}

        def note(_module: nn.Module, _args: Any, out: Tensor, *, name: str) -> None:
            outputs[name].append(out)

        handles = (
            model.get_submodule(name).register_forward_hook(partial(note, name=name))
            for name in outputs
        )
        reset(model)
        try:
            with hooked(handles), torch.no_grad():
                logits = model(batch)
        finally:
            reset(model)
        return [logits, *(spike for spikes in outputs.values() for spike in spikes)]

    def each(batch: Tensor) -> list[Tensor]:
        found = [once(sample) for sample in batch.split(1, axis)]
        logits, *spikes = zip(*found, strict=True)
        return [torch.cat(logits), *(torch.cat(parts, 1) for parts in spikes)]

    return each if alone else once
