"""Flags that several commands share: their type, their name in the usage, their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from primesvt.config import DATA

__all__ = [
    "BatchSize",
    "Container",
    "Data",
    "Device",
    "Family",
    "Json",
    "KeyMap",
    "Model",
    "Out",
    "Override",
    "Seed",
    "TimeSteps",
    "Workers",
]

_arg = tyro.conf.arg

Model = Annotated[
    str,
    tyro.conf.Positional,
    _arg(metavar="MODEL", help="Registry name, checkpoint (.pth, .safetensors) or saved folder."),
]
Into = Annotated[
    str | None,
    _arg(
        metavar="MODULE:CLASS",
        help="A network of your own: its class, made without arguments.",
        help_behavior_hint="",
    ),
]
InputSize = Annotated[
    str | None,
    _arg(
        metavar="C,H,W",
        help="With --into: the sizes of one input, such as 3,32,32; a run folder knows them.",
        help_behavior_hint="",
    ),
]
Data = Annotated[str | None, DATA]
TimeSteps = Annotated[
    int | None,
    _arg(
        metavar="T",
        help="Time steps per image; the model's own when not given.",
        help_behavior_hint="",
    ),
]
Family = Annotated[
    str | None,
    _arg(
        metavar="NAME",
        help="Family of an official checkpoint; its tensors decide when not given.",
        help_behavior_hint="",
    ),
]
Override = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    _arg(
        metavar="NAME=VALUE",
        help="A setting that the tensors of an official checkpoint do not tell, such as "
        "num_heads=12; may be given several times.",
        help_behavior_hint="",
    ),
]
Container = Annotated[
    str | None,
    _arg(
        metavar="KEY",
        help="Key under which a checkpoint file has the weights, where it has several sets.",
        help_behavior_hint="",
    ),
]
KeyMap = Annotated[
    Path | None,
    _arg(
        metavar="FILE",
        help="Official names for tensors that have others (YAML or JSON), such as "
        "'layers.*.fc: block.*.fc'; null leaves tensors out.",
        help_behavior_hint="",
    ),
]
Device = Annotated[str, _arg(metavar="DEVICE", help="Device such as cpu, cuda or cuda:1.")]
BatchSize = Annotated[int, _arg(metavar="N", help="Images per forward pass.")]
Workers = Annotated[
    int, _arg(metavar="N", help="Processes that decode images; 0 decodes in this one.")
]
Seed = Annotated[
    int | None,
    _arg(
        metavar="N",
        help="Seed of the split into selection and test; the run's, or 0, when not given.",
        help_behavior_hint="",
    ),
]
Out = Annotated[Path | None, _arg(metavar="DIR", help_behavior_hint="")]
Json = Annotated[bool, _arg(help="Print one JSON object instead of tables.")]
