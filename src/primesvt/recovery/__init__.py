"""Recovery: what is left of a network makes up for what was cut, without training or with it."""

from typing import TYPE_CHECKING, Any

from primesvt.recovery.recovery import RECOVERIES, Recovery

if TYPE_CHECKING:
    from primesvt.recovery.finetuning import finetune as finetune

__all__ = ["RECOVERIES", "Recovery", "finetune"]


def __getattr__(name: str) -> Any:
    """``finetune`` on first use: it builds on all that builds on this package."""
    if name != "finetune":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from primesvt.recovery.finetuning import finetune

    globals()[name] = finetune
    return finetune
