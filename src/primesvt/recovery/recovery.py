"""Which recovery a run uses, applied around every cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from primesvt.calibration import Activity
from primesvt.channels.graph import Ids
from primesvt.plan import NOTHING
from primesvt.recovery.batchnorm import reestimate
from primesvt.recovery.refit import refit

__all__ = ["RECOVERIES", "Recovery"]

RECOVERIES = ("none", "bn", "refit")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Refit in front of a cut, batch norms behind it; statistics are those of the unpruned network.

    Args:
        kind: ``none``; ``bn``: batch norms behind the cut are re-estimated; ``refit``: before that,
            the layers that read the cut channels are solved again by least squares.
        activity: what calibration inputs show; may be ``None`` for ``none`` only.

    Raises:
        ValueError: an unknown kind, or no calibration inputs for one that needs them.

    Example:
        >>> Recovery(kind="none").kind
        'none'
    """

    kind: str
    activity: Activity | None = None

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

    def after(self, model: nn.Module, cuts: Mapping[str, Ids]) -> None:
        """Adapt the smaller network, in place."""
        if self.kind != "none" and self.activity is not None and cuts:
            norms = self.activity.wiring.norms_from(self._start(cuts))
            reestimate(model, self.activity.calibration, norms)

    def describe(self, group: str) -> str:
        """What makes up for a cut of this group, for the plan.

        Returns such as ``least squares (mlp.fc2), batch norm``.
        """
        if self.activity is None or self.kind == "none":
            return NOTHING
        parts = []
        if self.kind == "refit":
            names = [self._named(r.module) for r in self.activity.readers[group]]
            parts += [f"least squares ({', '.join(names)})"] if names else []
        if self.activity.wiring.norms:
            parts.append("batch norm" if parts else "batch norm only")
        return ", ".join(parts) or NOTHING

    def _named(self, reader: str) -> str:
        """A reader; with a larger kernel only its channels are mixed."""
        assert self.activity is not None
        weight = self.activity.model.get_parameter(f"{reader}.weight")
        spatial = weight.shape[2:].numel() > 1
        return f"{reader}, channel mixing" if spatial else reader

    def _start(self, cuts: Mapping[str, Ids]) -> int:
        """Where in the order of modules the first difference arises.

        At the readers of a cut group; behind its last member, where only a product reads it.
        """
        assert self.activity is not None
        order = self.activity.wiring.order
        places = []
        for name in cuts:
            members = self.activity.graph[name].members
            readers = [m.module for m in members if m.role == "reader"]
            found = [order.index(m) for m in readers or (x.module for x in members) if m in order]
            places.append((min(found) if readers else max(found)) if found else 0)
        return min(places, default=0)
