"""The prioritized policy of PrimeSVT: from the largest layer to the smallest, within the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from primesvt.channels.widths import Widths
from primesvt.evaluation.evaluator import Progress
from primesvt.pruning.gate import AccuracyGate
from primesvt.pruning.policies.base import LayerCut, PolicyResult, TargetLayer, cuts_of
from primesvt.pruning.probe_table import Layer, Point, Probe

__all__ = ["ORDERS", "READINGS", "Prime"]

READINGS = ("A", "B")
ORDERS = ("producer", "group")
SHARES = tuple(step / 100 for step in range(1, 101))
Measure = Callable[[Widths, Widths], Probe]


@dataclass(frozen=True, kw_only=True)
class Prime:
    """The policy and its reading where the paper's abstract leaves room (docs/method.md).

    Args:
        gate: decides on every network.
        reading: ``A`` takes a layer's highest tolerated rate, then goes down to the first whose
            network passes; ``B`` takes its rate of best benefit if that passes.
        target_threshold: targets reach this fraction of the largest benefit; 0 deselects none.
        stop_at_bytes: end as soon as so few parameter bytes are left.

    Source: PrimeSVT (arXiv 2606.03428), abstract: sort by size, target layers by robustness under
    different pruning rates, compress from large to small within the limits.
    """

    gate: AccuracyGate
    reading: str = "A"
    target_threshold: float = 0.0
    stop_at_bytes: int | None = None
    progress: Progress | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise ValueError(f"unknown reading {self.reading!r}; known: {', '.join(READINGS)}")
        if not 0 <= self.target_threshold <= 1:
            raise ValueError(f"target_threshold is {self.target_threshold}, but must lie in 0 .. 1")

    def targets(self, layers: Sequence[Layer]) -> tuple[TargetLayer, ...]:
        """Layers by falling size (ties in forward order), each with its benefit score."""
        ordered = sorted(layers, key=lambda layer: -layer.parameters)
        drafts = [self._target(layer) for layer in ordered]
        largest = max((draft.benefit for draft in drafts if draft.best), default=0.0)
        return tuple(self._select(draft, largest) for draft in drafts)

    def walk(self, layers: Sequence[Layer], measure: Measure) -> PolicyResult:
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
                choice is None or (self.reading == "A" and choice.kept != top.kept) or tried > 0
            )
            if choice is not None:
                choices.append(choice)
            if self.progress is not None:
                self.progress("walk", number, len(chosen))
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
        if draft.best is None or draft.benefit >= self.target_threshold * largest:
            return draft
        reason = (
            f"its best benefit score {draft.benefit:.4g} is below {self.target_threshold:g} x "
            f"the largest, {largest:.4g}"
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
        points = target.tolerated[::-1] if self.reading == "A" else (target.best,)
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
        left = choice.probe.parameter_bytes
        return self.stop_at_bytes is not None and left <= self.stop_at_bytes


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
