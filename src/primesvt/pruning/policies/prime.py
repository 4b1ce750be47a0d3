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
        """Benefits are compared, or curves are asked for; the walk alone can do without them."""
        asked = cls.Options(**options)
        return exact or asked.full_curves or asked.reading == "B" or asked.target_threshold > 0

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Probe the layers alone where that is needed, then visit them one by one."""
        curves = self.needs_curves(self.options.model_dump(), exact=prober.exact)
        layers = probe_layers(prober, grids) if curves else unprobed(grids)
        return self.walk(
            layers, lambda cuts, around: prober.probe(cuts, around=around), tell=prober.tell
        )

    def targets(self, layers: Sequence[Layer]) -> tuple[TargetLayer, ...]:
        """Layers by falling size (ties in forward order), each with its benefit score."""
        ordered = sorted(layers, key=lambda layer: -layer.parameters)
        drafts = [self._target(layer) for layer in ordered]
        largest = max((draft.benefit for draft in drafts if draft.best), default=0.0)
        return tuple(self._select(draft, largest) for draft in drafts)

    def walk(
        self,
        layers: Sequence[Layer],
        measure: Measure,
        tell: Callable[[str, int, int], None] = lambda *_: None,
    ) -> PolicyResult:
        """Visit every target once.

        ``measure`` gives the whole network for a set of cuts, and is told those that it goes out
        from.
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
            if choice is not None and self._enough(choice):
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

    @property
    def _goes_down(self) -> bool:
        """Lower rates of a layer are tried where a higher one does not pass (reading A)."""
        return self.options.reading == "A"

    def _target(self, layer: Layer) -> TargetLayer:
        tolerated = tuple(
            p for p in layer.points if p.probe is None or self.gate.judge(p.probe).passed
        )
        best = max(tolerated, key=lambda p: (_benefit(p.probe), p.rate), default=None)
        return TargetLayer(
            layer=layer,
            tolerated=tolerated,
            best=best,
            benefit=_benefit(best.probe) if best else 0.0,
            chosen=best is not None,
            reason="" if best else _why_not(layer),
        )

    def _select(self, draft: TargetLayer, largest: float) -> TargetLayer:
        if draft.best is None or draft.benefit >= self.options.target_threshold * largest:
            return draft
        reason = (
            f"its best benefit score {draft.benefit:.4g} is below "
            f"{self.options.target_threshold:g} x the largest, {largest:.4g}"
        )
        return TargetLayer(
            layer=draft.layer,
            tolerated=draft.tolerated,
            best=draft.best,
            benefit=draft.benefit,
            chosen=False,
            reason=reason,
        )

    def _visit(
        self, target: TargetLayer, cuts: dict[str, int], measure: Measure
    ) -> tuple[LayerCut | None, int]:
        """The highest rate whose network passes, and how many were refused."""
        assert target.best is not None
        points = target.tolerated[::-1] if self._goes_down else (target.best,)
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

    def _enough(self, choice: LayerCut) -> bool:
        assert choice.probe is not None
        saved = self.gate.reference.parameter_bytes - choice.probe.parameter_bytes
        return self.target_bytes is not None and saved >= self.target_bytes


def _milder(
    choices: Sequence[LayerCut], points: Mapping[str, Sequence[Point]]
) -> tuple[tuple[LayerCut, ...], ...]:
    """All cuts at the same share of their rates, share by share, up to the cuts themselves.

    Not the walk as it grew: its first layers alone already lose nearly all that may be lost.
    """
    found = {}
    for share in SHARES:
        shrunk = (_at(choice, points[choice.group], share) for choice in choices)
        network = tuple(choice for choice in shrunk if choice is not None)
        found[frozenset(cuts_of(network).items())] = network
    found[frozenset(cuts_of(choices).items())] = tuple(choices)
    return tuple(filter(None, found.values()))


def _at(choice: LayerCut, points: Sequence[Point], share: float) -> LayerCut | None:
    """A cut at a share of its rate, or at the next lower one that the layer has."""
    fitting = [point for point in points if point.rate <= share * choice.rate + 1e-9]
    if not fitting:
        return None
    return replace(choice, rate=fitting[-1].rate, kept=fitting[-1].kept, probe=None, verdict=None)


def _why_not(layer: Layer) -> str:
    if not layer.points:
        return f"none of the rates removes one of its {layer.size} channels"
    return "no probed rate is within the accuracy limit"


def _benefit(probe: Probe | None) -> float:
    """B = accuracy x memory saving; 0 where a rate was not measured."""
    return probe.accuracy * probe.saving if probe is not None else 0.0
