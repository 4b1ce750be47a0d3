"""``SpikingViT``: the model class of all families."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from primesvt.models.config import ModelConfig
from primesvt.models.fast_paths import forgetting
from primesvt.models.provenance import CheckpointReport, Provenance
from primesvt.models.state import memories

__all__ = ["SpikingViT"]

Logits = Tensor | tuple[Tensor, ...]


class SpikingViT(nn.Module):
    """A spiking vision transformer: named blocks on ``[T, B, C, H, W]``, then a head.

    ``config`` describes the unpruned model; ``time_steps`` may be changed at any time. A forward
    never depends on the one before: neuron state is reset before and after it. ``loaded`` says what
    was inferred and what assumed of a model that came from an official checkpoint.

    Example:
        >>> import torch
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v2_digits").eval()
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source: Yao et al., "Spike-driven Transformer V2" (arXiv 2404.03663), Meta-SpikeFormer.
    """

    resets_itself: ClassVar[bool] = True
    """A forward leaves nothing behind, and draws no random numbers in evaluation mode."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.resets_itself = cls.__module__.startswith("primesvt.")  # a user's may do anything

    def __init__(
        self, config: ModelConfig, blocks: Iterable[tuple[str, nn.Module]], head: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.time_steps = config.time_steps
        self.provenance: Provenance | None = None
        self.loaded: CheckpointReport | None = None
        self.blocks = nn.Sequential(OrderedDict(blocks))
        self.head = head

    @property
    def batch_dependent(self) -> bool:
        """Whether the images of a batch influence each other in evaluation mode.

        Results then depend on the order and the size of the batches.

        Example:
            >>> from primesvt.models import create_model
            >>> create_model("qkformer_digits").batch_dependent
            True
        """
        return bool(self.config.batch_mixing)

    def forward(self, x: Tensor, time_steps_out: bool = False) -> Logits:
        """Classify images ``[B, C, H, W]`` or event frames ``[B, T, C, H, W]``.

        Returns logits ``[B, classes]``, the mean over time, or ``[T, B, classes]`` with
        ``time_steps_out``. In training mode a model with a distillation head returns the pair
        ``(logits, logits_kd)``. Raises ``ValueError`` for another number of axes or channels.

        Example:
            >>> import torch
            >>> from primesvt.models import create_model
            >>> model = create_model("sdt_v2_digits").eval()
            >>> model(torch.zeros(1, 5, 1, 8, 8), time_steps_out=True).shape
            torch.Size([5, 1, 10])
        """
        return self.resume(self.enter(x), 0, time_steps_out=time_steps_out)

    def resume(self, x: Tensor, block: int, *, time_steps_out: bool = False) -> Logits:
        """Run the model from a block on, with the input ``[T, B, C, H, W]`` of that block.

        Example:
            >>> import torch
            >>> from primesvt.models import create_model
            >>> model = create_model("sdt_v2_digits").eval()
            >>> images = torch.zeros(1, 1, 8, 8)
            >>> first = model.blocks[0](model.enter(images))
            >>> torch.equal(model.resume(first, 1), model(images))
            True
        """
        later = self.blocks[block:] if block else self.blocks
        remembering = memories(later, self.head)
        try:
            for module in remembering:
                module.reset()
            with forgetting():
                logits: Logits = self.head(later(x))
        finally:
            # A membrane that is part of an autograd graph would break copy.deepcopy(model).
            for module in remembering:
                module.reset()
        if time_steps_out:
            return logits
        if isinstance(logits, tuple):
            return tuple(part.mean(0) for part in logits)
        return logits.mean(0)

    def enter(self, x: Tensor) -> Tensor:
        """Bring images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` to ``[T, B, C, H, W]``."""
        if not isinstance(x, Tensor):
            raise TypeError(f"the input is a {type(x).__name__}, but must be a tensor of images")
        if x.ndim not in (4, 5):
            raise ValueError(
                f"the input has shape {list(x.shape)}; give images [batch, channels, height, width]"
                " or event frames [batch, time steps, channels, height, width]"
            )
        if x.shape[-3] != self.config.in_channels:
            raise ValueError(
                f"the input has {x.shape[-3]} channels (shape {list(x.shape)}), but this model"
                f" reads {self.config.in_channels}"
            )
        if x.ndim == 5:
            return x.transpose(0, 1)
        return x.unsqueeze(0).expand(self.time_steps, -1, -1, -1, -1)
