"""Fine-tuning of a pruned network, with its unpruned self as teacher."""

from primesvt.training.config import FinetuneRecipe
from primesvt.training.finetuning import finetune
from primesvt.training.record import FinetuneRecord, FinetuneResult

__all__ = ["FinetuneRecipe", "FinetuneRecord", "FinetuneResult", "finetune"]
