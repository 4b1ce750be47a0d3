"""The prioritized policy of PrimeSVT: from the largest layer to the smallest, within the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from primesvt.channels.widths import WidthGrid, Widths
from primesvt.config import OptionGroup
from primesvt.pruning.policies.base import (
    LayerCut,
    NetworkProbe,
    Policy,
    PolicyResult,
    TargetLayer,
    cuts_of,
)
from primesvt.pruning.probe_table import Layer, Point, Probe
from primesvt.pruning.sensitivity import probe_layers, unprobed
from primesvt.registry import POLICIES

__all__ = ["Prime", "PrimeOptions"]

SHARES = tuple(step / 100 for step in range(1, 101))
Measure = Callable[[Widths, Widths], Probe]


class PrimeOptions(OptionGroup):
    """The reading of ``prime`` where the paper's abstract leaves room (docs/method.md)."""

    reading: Literal["A", "B"] = "A"
    """A: a layer's highest tolerated rate, then down to what passes. B: its best."""
    target_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Targets reach at least this fraction of the best benefit score; 0 deselects no layer."""
    full_curves: bool = False
    """Measure every rate of every layer, for plots and for solving again with --from."""


@POLICIES("prime")
@dataclass(frozen=True, kw_only=True)
class Prime(Policy):
    """The paper's policy: layers from the largest to the smallest, each pruned as far as passes.

    Reading ``A`` takes a layer's highest tolerated rate, then goes down to the first whose network
    passes; ``B`` takes its rate of best benefit if that passes.

    Source: PrimeSVT (arXiv 2606.03428), abstract: sort by size, target layers by robustness under
    different pruning rates, compress from large to small within the limits.
    """

    options: PrimeOptions = field(default_factory=PrimeOptions)

    Options = PrimeOptions

    @classmethod
    def needs_curves(cls, options: Mapping[str, Any], *, exact: bool) -> bool:
        """Whether benefits are compared or curves asked for; pruning itself does without them."""
        asked = cls.Options(**options)
        return exact or asked.full_curves or asked.reading == "B" or asked.target_threshold > 0

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Probe the layers alone where that is needed, then prune them one by one."""
        curves = self.needs_curves(self.options.model_dump(), exact=prober.exact)
        layers = probe_layers(prober, grids) if curves else unprobed(grids)
        return self.prune_layers(
            layers, lambda cuts, around: prober.probe(cuts, around=around), tell=prober.tell
        )

    def targets(self, layers: Sequence[Layer]) -> tuple[TargetLayer, ...]:
        """All layers by falling size (ties in forward order), and which of them are targets."""
        ordered = sorted(layers, key=lambda layer: -layer.parameters)
        targets = [self._target(layer) for layer in ordered]
        largest = max((target.benefit for target in targets if target.best), default=0.0)
        for place, target in enumerate(targets):
            if target.best and target.benefit < self.options.target_threshold * largest:
                reason = (
                    f"its best benefit score {target.benefit:.4g} is below "
                    f"{self.options.target_threshold:g} x the largest, {largest:.4g}"
                )
                targets[place] = replace(target, chosen=False, reason=reason)
        return tuple(targets)

    def prune_layers(
        self,
        layers: Sequence[Layer],
        measure: Measure,
        tell: Callable[[str, int, int], None] = lambda *_: None,
    ) -> PolicyResult:
        """Prune the target layers one after another, each as far as the whole network passes.

        Args:
            layers: all layers with their probes.
            measure: gives the probe of a network by its cuts, and by those before the last one.
            tell: called as ``tell(stage, done, total)``.
        """
        targets = self.targets(layers)
        chosen = [target for target in targets if target.chosen]
        choices: list[LayerCut] = []
        refused, bound, stopped = 0, False, False
        for number, target in enumerate(chosen, start=1):
            choice, tried = self._visit(target, cuts_of(choices), measure)
            refused += tried
            top = target.layer.points[-1]
            bound |= (
                choice is None
                or (self.options.reading == "A" and choice.kept != top.kept)
                or tried > 0
            )
            if choice is not None:
                choices.append(choice)
            tell("walk", number, len(chosen))
            if choice is not None and choice.probe is not None and self.target_bytes is not None:
                saved = self.gate.reference.parameter_bytes - choice.probe.parameter_bytes
                if saved >= self.target_bytes:
                    stopped = True
                    break
        bound |= any(target.layer.points and not target.tolerated for target in targets)
        last = choices[-1] if choices else None
        return PolicyResult(
            choices=tuple(choices),
            refused=refused,
            accuracy_bound=bound,
            stopped=stopped,
            probe=last.probe if last else None,
            verdict=last.verdict if last else None,
            targets=targets,
            alternatives=_milder(choices, {t.layer.group: t.layer.points for t in chosen}),
        )

    def _target(self, layer: Layer) -> TargetLayer:
        """A layer as a target by its own tolerance, whatever the benefits of others are."""
        tolerated = tuple(
            p for p in layer.points if p.probe is None or self.gate.judge(p.probe).passed
        )
        if not layer.points:
            reason = f"none of the rates removes one of its {layer.size} channels"
        else:
            reason = "" if tolerated else "no probed rate is within the accuracy limit"
        best = max(tolerated, key=lambda p: (_benefit(p.probe), p.rate), default=None)
        return TargetLayer(
            layer=layer,
            tolerated=tolerated,
            best=best,
            benefit=_benefit(best.probe) if best else 0.0,
            chosen=best is not None,
            reason=reason,
        )

    def _visit(
        self, target: TargetLayer, cuts: dict[str, int], measure: Measure
    ) -> tuple[LayerCut | None, int]:
        """One layer's cut at the highest rate whose network passes, and how many were refused."""
        assert target.best is not None
        downwards = self.options.reading == "A"
        points = target.tolerated[::-1] if downwards else (target.best,)
        layer = target.layer
        for refused, point in enumerate(points):
            probe = measure({**cuts, layer.group: point.kept}, cuts)
            verdict = self.gate.judge(probe)
            if verdict.passed:
                choice = LayerCut(
                    group=layer.group,
                    positions=layer.positions,
                    size=layer.size,
                    rate=point.rate,
                    kept=point.kept,
                    probe=probe,
                    verdict=verdict,
                )
                return choice, refused
        return None, len(points)


def _milder(
    choices: Sequence[LayerCut], points: Mapping[str, Sequence[Point]]
) -> tuple[tuple[LayerCut, ...], ...]:
    """Milder plans to fall back on: all cuts at the same share of their rates, share by share.

    Not the plan as it grew: its first layers alone already lose nearly all that may be lost.
    """
    found = {}
    for share in SHARES:
        network = []
        for choice in choices:
            highest = share * choice.rate + 1e-9  # or the next lower rate that the layer has
            fitting = [point for point in points[choice.group] if point.rate <= highest]
            if fitting:
                rate, kept = fitting[-1].rate, fitting[-1].kept
                network.append(replace(choice, rate=rate, kept=kept, probe=None, verdict=None))
        found[frozenset(cuts_of(network).items())] = tuple(network)
    found[frozenset(cuts_of(choices).items())] = tuple(choices)
    return tuple(filter(None, found.values()))


def _benefit(probe: Probe | None) -> float:
    """The benefit score, accuracy x memory saving; 0 where a rate was not measured."""
    return probe.accuracy * probe.saving if probe is not None else 0.0
