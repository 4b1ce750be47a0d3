"""The recoveries: what is done before and after every cut to make up for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from primesvt.calibration import ActivationStatistics, Consumer
from primesvt.channels.graph import Ids
from primesvt.channels.plan import NOTHING
from primesvt.channels.surgery import kept_along
from primesvt.models.shared_prefix import VariantBatch
from primesvt.recovery.batchnorm import reestimate
from primesvt.recovery.match import match
from primesvt.recovery.refit import refit
from primesvt.registry import RECOVERIES

__all__ = ["BatchNorm", "Match", "Recovery", "Refit", "find_recovery"]


@RECOVERIES("none")
@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Base class of recoveries, which make up for a cut without training; this one does nothing.

    Statistics are those of the unpruned network.

    Args:
        activity: what calibration inputs show; ``None`` where none are used.

    Raises:
        ValueError: no calibration inputs for a recovery that needs them.

    Example:
        >>> Recovery().describe("fc1")
        'nothing'
    """

    activity: ActivationStatistics | None = None
    needs_inputs: ClassVar[bool] = False
    shares_blocks: ClassVar[bool] = True  # ``after`` leaves blocks alone that networks share

    def __post_init__(self) -> None:
        if self.needs_inputs and self.activity is None:
            raise ValueError(
                f"recovery {type(self).__name__} needs calibration inputs; give calibration=, or "
                "choose recovery='none'"
            )

    def before(self, model: nn.Module, cuts: Mapping[str, Ids]) -> None:
        """Prepare a copy of the unpruned network, in place, for a cut."""

    def after(
        self,
        batch: VariantBatch,
        cuts: Sequence[Mapping[str, Ids]],
        common: Mapping[str, Ids] | None = None,
    ) -> None:
        """Adapt smaller networks, in place; blocks that they share with a common one stay.

        ``common`` are the cuts of a common network that is cut, and not adapted yet.
        """

    @property
    def adapts(self) -> bool:
        """Whether ``after`` changes a network once it is cut."""
        return type(self).after is not Recovery.after

    def describe(self, group: str) -> str:
        """What makes up for a cut of this group, in words for the plan."""
        return NOTHING


@RECOVERIES("bn")
class BatchNorm(Recovery):
    """Re-estimate the running statistics of batch norms that follow a cut.

    See ``primesvt.recovery.batchnorm``.
    """

    needs_inputs = True

    @property
    def _activity(self) -> ActivationStatistics:
        assert self.activity is not None
        return self.activity

    def after(
        self,
        batch: VariantBatch,
        cuts: Sequence[Mapping[str, Ids]],
        common: Mapping[str, Ids] | None = None,
    ) -> None:
        """Re-estimate the batch norms behind the cuts."""
        reestimate(
            batch,
            self._activity.calibration,
            self._activity.norms,
            [self._kept(rows) for rows in cuts],
            common=self._kept(common) if common else None,
        )

    def describe(self, group: str) -> str:
        """What makes up for a cut, such as ``batch norm only``."""
        return "batch norm only" if self._activity.wiring.norms else NOTHING

    def _kept(self, cuts: Mapping[str, Ids]) -> dict[str, Tensor]:
        """Indices of the channels that are left of every norm."""
        graph = self._activity.graph
        names = {norm: f"{norm}.running_mean" for norm in self._activity.norms[0]}
        return {
            norm: torch.from_numpy(kept_along(graph, tensor, 0, cuts))
            for norm, tensor in names.items()
            if tensor in graph.tensors
        }


@RECOVERIES("refit")
class Refit(BatchNorm):
    """Refits layers that read cut channels by least squares, then re-estimates batch norms.

    See ``primesvt.recovery.refit``.
    """

    def before(self, model: nn.Module, cuts: Mapping[str, Ids]) -> None:
        """Fold what the removed channels contribute into the weights of those that stay."""
        refit(model, self._activity, cuts)

    def describe(self, group: str) -> str:
        """What makes up for a cut, such as ``least squares (mlp.fc2), batch norm``."""
        names = [self._named(reader) for reader in self._activity.readers[group]]
        if not names:
            return super().describe(group)
        norms = ["batch norm"] if self._activity.wiring.norms else []
        return ", ".join([f"least squares ({', '.join(names)})", *norms])

    def _named(self, reader: Consumer) -> str:
        """The name of a refitted layer; of a grouped or very wide one only channels are mixed."""
        spatial = reader.layer(self._activity.model).weight.shape[2:].numel() > 1
        return f"{reader.module}, channel mixing" if spatial and reader.taps == 1 else reader.module


@RECOVERIES("match")
class Match(Refit):
    """Refits readers of cut channels, then fits every layer to what it gives in the dense network.

    See ``primesvt.recovery.match``. Every network takes several forwards of the calibration inputs.
    """

    shares_blocks: ClassVar[bool] = False

    def after(
        self,
        batch: VariantBatch,
        cuts: Sequence[Mapping[str, Ids]],
        common: Mapping[str, Ids] | None = None,
    ) -> None:
        """Fit the layers of every pruned network; none of them shares a block with another."""
        for network, rows in zip(batch.networks, cuts, strict=True):
            match(network, self._activity, rows)

    def describe(self, group: str) -> str:
        """What makes up for a cut."""
        return f"{super().describe(group)}, all layers fitted to the dense network"


def find_recovery(name: str) -> type[Recovery]:
    """A recovery by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> find_recovery("bn").__name__
        'BatchNorm'
    """
    found: type[Recovery] = RECOVERIES.find_class(name, Recovery)
    return found
