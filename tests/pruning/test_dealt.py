"""Networks dealt out among processes: each is made once, and all know what was measured."""

from __future__ import annotations

import copy
import threading
from typing import Any
from unittest import mock

import pytest
import torch

from primesvt.distributed import SINGLE_PROCESS, ProcessGroup
from primesvt.evaluation.divergence import OutputDivergence
from primesvt.evaluation.evaluator import Measurement, ScoreEvaluator
from primesvt.importance import find_importance
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning import variants as module
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.prober import Prober
from primesvt.pruning.variants import VariantBuilder
from primesvt.recovery import BatchNorm

from ..lively import Lively, free, lively, watched
from ..played_processes import play

SIZE = 3


class Clock:
    """Every look at it takes as long as the thread says."""

    def __init__(self) -> None:
        self.own = threading.local()

    def monotonic(self) -> float:
        self.own.now = getattr(self.own, "now", 0.0) + getattr(self.own, "step", 0.0)
        return self.own.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def own_copy() -> Lively:
    """A network that no other thread uses."""
    one = lively("sdt_v2")
    return watched(copy.deepcopy(one.model), one.x)


def prober(one: Lively, processes: ProcessGroup, importance: Any = None) -> Prober:
    size = parameter_bytes(one.model)
    measurement = Measurement(value=1.0)
    table = ProbeTable(Reference(context={}, measurement=measurement, parameter_bytes=size))
    return Prober(
        model=one.model,
        graph=one.graph,
        evaluate=lambda _: measurement,
        table=table,
        importance=importance or find_importance("activity"),
        evidence=one.evidence,
        recovery=BatchNorm(activity=one.activity),
        distance=OutputDivergence(one.model, one.activity.calibration),
        processes=processes,
    )


def wanted(one: Lively) -> tuple[list[dict[str, int]], dict[str, int]]:
    """Cuts, and a network from which all of them differ in few groups."""
    groups = [g for g in free(one.graph) if g.size > 2]
    around = {groups[0].name: groups[0].size - 1}
    return [{**around, g.name: g.size // 2} for g in groups], around


def measured(one: Lively, processes: ProcessGroup, clock: Clock, step: float) -> dict[str, Any]:
    made: list[int] = []
    at, (cuts, around) = prober(one, processes), wanted(one)

    def note(part: Any, common: Any, real: Any = at.builder._batch) -> Any:
        made.append(len(part))
        return real(part, common)

    clock.own.step = step
    told: list[int] = []
    with mock.patch.object(at.builder, "_batch", note):
        distances = at.distances(cuts, around=around, tell=lambda done, _: told.append(done))
    rows = [(dict(row.cuts), row.distance) for row in at.table._distances.values()]
    return {"distances": distances, "rows": rows, "made": made, "told": told}


def test_distances_are_those_of_one_process_in_the_same_order(clock: Clock) -> None:
    """Paces differ, so processes that went by their own would part here."""
    copies = [own_copy() for _ in range(SIZE)]
    alone = measured(own_copy(), SINGLE_PROCESS, clock, 1.0)
    each = play(SIZE, lambda p: measured(copies[p.rank], p, clock, (4.0, 900.0, 1e-9)[p.rank]))
    assert len(set(alone["distances"])) > 5
    for found in each:
        assert found["distances"] == alone["distances"]
        assert found["rows"] == alone["rows"]
        assert found["told"] == each[0]["told"]
    total = len(alone["rows"])
    assert sum(sum(found["made"]) for found in each) == total
    rounds = [found["made"] for found in each]
    assert [first[0] for first in rounds] == [1] * SIZE
    assert max(map(max, rounds)) > 1 and max(sum(made) for made in rounds) < total / 2


def test_a_process_without_a_network_goes_along(clock: Clock) -> None:
    copies = [own_copy() for _ in range(SIZE)]
    cuts = wanted(copies[0])[0][0]
    alone = prober(own_copy(), SINGLE_PROCESS).distance(cuts)
    assert play(SIZE, lambda p: prober(copies[p.rank], p).distance(cuts)) == [alone] * SIZE


def test_probed_networks_are_made_by_all(clock: Clock) -> None:
    """Only images are dealt out there; how many at once is the main process's word."""
    copies = [own_copy() for _ in range(SIZE)]

    def probed(processes: ProcessGroup) -> list[int]:
        at = prober(copies[processes.rank], processes)
        clock.own.step = (8.0, 900.0, 1e-9)[processes.rank]
        cuts, around = wanted(copies[processes.rank])
        return [len(t.networks) for _, t in at.builder.build_batches(cuts, around)]

    first, *others = play(SIZE, probed)
    assert sum(first) == len(wanted(copies[0])[0]) and max(first) > 1
    assert all(each == first for each in others)


def test_channels_are_agreed_upon() -> None:
    """Each group is scored by one process, as another might round in another way."""
    copies = [own_copy() for _ in range(SIZE)]
    groups = [g.name for g in free(copies[0].graph)]
    scored: list[str] = []

    def kept(processes: ProcessGroup) -> list[Any]:
        def noisy(evidence: Any, group: Any) -> Any:
            scored.append(group.name)
            generator = torch.Generator().manual_seed(processes.rank)
            return torch.rand(group.positions, group.size, generator=generator).numpy()

        at = prober(copies[processes.rank], processes, noisy)
        one = at.kept(groups[0], 1).tolist()
        list(at.builder.build_batches([{name: 1} for name in groups], deal=True))
        return [one, *(at.kept(name, 1).tolist() for name in groups)]

    first, *others = play(SIZE, kept)
    assert all(each == first for each in others)
    assert sorted(scored) == sorted(groups)


def test_a_score_of_one_process_counts_for_all(model) -> None:
    called: list[int] = []

    def scored(processes: ProcessGroup) -> float:
        def score(_: Any) -> float:
            called.append(processes.rank)
            return 0.5 + processes.rank

        place = torch.device("cpu")
        evaluate = ScoreEvaluator(score=score, device=place, processes=processes)
        return evaluate(copy.deepcopy(model)).value

    assert play(SIZE, scored) == [0.5] * SIZE
    assert sorted(called) == list(range(SIZE))


def test_a_score_that_fails_somewhere_fails_everywhere(model) -> None:
    def scored(processes: ProcessGroup) -> str:
        score = lambda _: float("nan") if processes.rank else 0.5  # noqa: E731
        place = torch.device("cpu")
        evaluate = ScoreEvaluator(score=score, device=place, processes=processes)
        with pytest.raises(ValueError, match="must be finite") as caught:
            evaluate(copy.deepcopy(model))
        return str(caught.value)

    assert len(set(play(SIZE, scored))) == 1


def test_cutters_need_no_processes(model, graph) -> None:
    at = VariantBuilder(model=model, graph=graph, importance=find_importance("l2"))
    name = graph.prunable()[0].name
    dealt = list(at.build_batches([{name: 1}], deal=True))
    assert [len(together.networks) for _, together in dealt] == [1]
