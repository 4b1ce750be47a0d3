"""PrimeSVT: automatic, memory-aware structured pruning for spiking vision transformers.

Every public name is imported on first use, so ``import primesvt`` itself costs next to nothing.

Example:
    >>> import primesvt
    >>> "sdt_v2_digits" in primesvt.list_models("sdt_v2_*")
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from primesvt import compat as compat
    from primesvt import recovery as recovery
    from primesvt._files import FolderInUse as FolderInUse
    from primesvt.channels import ChannelGraph as ChannelGraph
    from primesvt.channels import ChannelGroup as ChannelGroup
    from primesvt.channels import remove_channels as remove_channels
    from primesvt.channels import trace as trace
    from primesvt.channels import verify as verify
    from primesvt.channels.plan import Plan as Plan
    from primesvt.checkpoint.load import load as load
    from primesvt.config import Constraints as Constraints
    from primesvt.config import Limits as Limits
    from primesvt.config import PruneConfig as PruneConfig
    from primesvt.data import load_data as load_data
    from primesvt.evaluation.settings import find_settings as find_settings
    from primesvt.exporting import ExportResult as ExportResult
    from primesvt.exporting import export as export
    from primesvt.importance import criterion as criterion
    from primesvt.models import SpikingViT as SpikingViT
    from primesvt.models import create_model as create_model
    from primesvt.models import list_models as list_models
    from primesvt.models import reset as reset
    from primesvt.plugins import export_format as export_format
    from primesvt.plugins import family as family
    from primesvt.plugins import policy as policy
    from primesvt.pruning.pipeline import prune as prune
    from primesvt.pruning.result import PruneResult as PruneResult
    from primesvt.training.config import FinetuneRecipe as FinetuneRecipe
    from primesvt.training.finetuning import finetune as finetune

__version__ = "0.1.0"

_HOMES = {
    "ChannelGraph": "channels",
    "ChannelGroup": "channels",
    "Constraints": "config",
    "ExportResult": "exporting",
    "FinetuneRecipe": "training",
    "FolderInUse": "_files",
    "Limits": "config",
    "Plan": "channels.plan",
    "PruneConfig": "config",
    "PruneResult": "pruning.result",
    "SpikingViT": "models",
    "create_model": "models",
    "criterion": "importance",
    "export": "exporting",
    "find_settings": "evaluation.settings",
    "finetune": "training",
    "list_models": "models",
    "load": "checkpoint.load",
    "load_data": "data",
    "export_format": "plugins",
    "family": "plugins",
    "policy": "plugins",
    "prune": "pruning.pipeline",
    "remove_channels": "channels",
    "reset": "models",
    "trace": "channels",
    "verify": "channels",
}

# Functions that users call, with errors and random states as ``primesvt._guard`` says.
_GUARDED = frozenset(
    {
        "create_model",
        "export",
        "finetune",
        "load",
        "load_data",
        "prune",
        "remove_channels",
        "trace",
        "verify",
    }
)
_PACKAGES = ("compat", "recovery")  # public by themselves; the latter is a decorator too

__all__ = ["__version__", *_HOMES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _GUARDED:
        from primesvt._guard import guarded

        value = guarded(value, random_kept=name != "create_model")  # which draws by its seed
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
