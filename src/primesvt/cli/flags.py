"""Flags that several commands share: their type, their name in the usage, their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["BatchSize", "Data", "Device", "Json", "Model", "Out", "Seed", "TimeSteps", "Workers"]

_arg = tyro.conf.arg

Model = Annotated[
    str,
    tyro.conf.Positional,
    _arg(metavar="MODEL", help="Registry name, checkpoint (.pth, .safetensors) or saved folder."),
]
Data = Annotated[
    str,
    _arg(
        metavar="DATA",
        help="'digits', or a folder: train/CLASS/*.png beside val/, or train.parquet and "
        "test.parquet.",
    ),
]
TimeSteps = Annotated[
    int | None,
    _arg(
        metavar="T",
        help="Time steps per image; the model's own when not given.",
        help_behavior_hint="",
    ),
]
Device = Annotated[str, _arg(metavar="DEVICE", help="Device such as cpu, cuda or cuda:1.")]
BatchSize = Annotated[int, _arg(metavar="N", help="Images per forward pass.")]
Workers = Annotated[
    int, _arg(metavar="N", help="Processes that decode images; 0 decodes in this one.")
]
Seed = Annotated[int, _arg(metavar="N", help="Seed of the split into selection and test.")]
Out = Annotated[Path | None, _arg(metavar="DIR", help_behavior_hint="")]
Json = Annotated[bool, _arg(help="Print one JSON object instead of tables.")]
