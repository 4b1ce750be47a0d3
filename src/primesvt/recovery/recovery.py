"""Which recovery a run uses, applied around every cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from primesvt.calibration import ActivationStatistics, Consumer
from primesvt.channels.graph import Ids
from primesvt.channels.plan import NOTHING
from primesvt.channels.surgery import kept_along
from primesvt.models.shared_prefix import VariantBatch
from primesvt.recovery.batchnorm import reestimate
from primesvt.recovery.refit import refit

__all__ = ["RECOVERIES", "Recovery"]

RECOVERIES = ("none", "bn", "refit")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Refit in front of a cut, batch norms behind it; statistics are those of the unpruned network.

    Args:
        kind: ``none``; ``bn``: batch norms follow what the cut changed; ``refit``: before that, the
            layers that read the cut channels are solved again by least squares.
        activity: what calibration inputs show; may be ``None`` for ``none`` only.

    Raises:
        ValueError: an unknown kind, or no calibration inputs for one that needs them.

    Example:
        >>> Recovery(kind="none").kind
        'none'
    """

    kind: str
    activity: ActivationStatistics | None = None

    def __post_init__(self) -> None:
        if self.kind not in RECOVERIES:
            raise ValueError(f"unknown recovery {self.kind!r}; known: {', '.join(RECOVERIES)}")
        if self.kind != "none" and self.activity is None:
            raise ValueError(
                f"recovery {self.kind!r} needs calibration inputs; give calibration=, or choose"
                " recovery='none'"
            )

    def before(self, model: nn.Module, cuts: Mapping[str, Ids]) -> None:
        """Prepare a copy of the unpruned network, in place, for a cut."""
        if self.kind == "refit" and self.activity is not None:
            refit(model, self.activity, cuts)

    def after(
        self,
        together: VariantBatch,
        cuts: Sequence[Mapping[str, Ids]],
        common: Mapping[str, Ids] | None = None,
    ) -> None:
        """Adapt smaller networks, in place; blocks that they share with a common one stay.

        ``common`` are the cuts of a common network that is cut, and not adapted yet.
        """
        if self.kind == "none" or self.activity is None:
            return
        reestimate(
            together,
            self.activity.calibration,
            self.activity.norms,
            [self._kept(rows) for rows in cuts],
            common=self._kept(common) if common else None,
        )

    def _kept(self, cuts: Mapping[str, Ids]) -> dict[str, Tensor]:
        """Norm -> the channels that are left of it."""
        assert self.activity is not None
        graph = self.activity.graph
        names = {norm: f"{norm}.running_mean" for norm in self.activity.norms[0]}
        return {
            norm: torch.from_numpy(kept_along(graph, tensor, 0, cuts))
            for norm, tensor in names.items()
            if tensor in graph.tensors
        }

    def describe(self, group: str) -> str:
        """What makes up for a cut of this group, for the plan.

        Returns such as ``least squares (mlp.fc2), batch norm``.
        """
        if self.activity is None or self.kind == "none":
            return NOTHING
        parts = []
        if self.kind == "refit":
            names = [self._named(r) for r in self.activity.readers[group]]
            parts += [f"least squares ({', '.join(names)})"] if names else []
        if self.activity.wiring.norms:
            parts.append("batch norm" if parts else "batch norm only")
        return ", ".join(parts) or NOTHING

    def _named(self, reader: Consumer) -> str:
        """A reader; of a grouped or very wide one only channels are mixed."""
        assert self.activity is not None
        spatial = reader.layer(self.activity.model).weight.shape[2:].numel() > 1
        return f"{reader.module}, channel mixing" if spatial and reader.taps == 1 else reader.module
