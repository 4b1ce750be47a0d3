"""Fine-tuning of a pruned network, with its unpruned self as teacher."""

from primesvt.recovery.finetuning.recipe import FinetuneRecipe
from primesvt.recovery.finetuning.record import FinetuneRecord, FinetuneResult
from primesvt.training.finetuning import finetune

__all__ = ["FinetuneRecipe", "FinetuneRecord", "FinetuneResult", "finetune"]
