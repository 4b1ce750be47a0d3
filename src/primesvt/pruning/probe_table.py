"""Probes: measured pruned networks, in a file from which a killed run goes on."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from primesvt._files import JsonlLog, parse_json, validated, write_text
from primesvt.channels.widths import Widths
from primesvt.evaluation.confidence import Outcomes
from primesvt.evaluation.evaluator import Measurement

__all__ = ["DistanceProbe", "Layer", "Point", "Probe", "ProbeTable", "Reference"]

FORMAT = 2  # 1 had batch norms re-estimated in another way
Kind = Literal["layer", "walk"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The measured unpruned network, which all probes are compared with.

    ``context`` holds everything a probe depends on beside the cut: model, data, batch size, device,
    time steps, importance, recovery.
    """

    context: Mapping[str, Any]
    measurement: Measurement
    parameter_bytes: int

    @property
    def accuracy(self) -> float:
        """The accuracy of the unpruned network: top-1 as a fraction, or the mean of a ``score``."""
        return self.measurement.value


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The measurement of one pruned network.

    Attributes:
        kind: ``layer`` (one group alone) or ``walk`` (all cuts so far).
        cuts: group -> channels kept at each front position; what the probe is known by.
        accuracy: mean outcome: top-1 as a fraction, or the score.
        saving: parameter bytes gone, as a fraction of the unpruned model's.
        parameter_bytes: what is left.
        samples: paired outcomes behind it; ``None`` where the score is one number.
        lost, gained: samples that only the unpruned, or only the pruned network gets right;
            ``None`` where outcomes are not right or wrong.
        deviation: standard deviation of the paired differences.
        seconds: what it took.
        rejected: the largest drop allowed when it was rejected early
            (``primesvt.evaluation.sequential_test``): then accuracy and counts are those of the
            ``samples`` until then.
        race_error: the chance of rejecting it wrongly, at most.
    """

    kind: Kind
    cuts: Widths
    accuracy: float
    saving: float
    parameter_bytes: int
    samples: int | None = None
    lost: int | None = None
    gained: int | None = None
    deviation: float | None = None
    seconds: float = 0.0
    rejected: float | None = None
    race_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class DistanceProbe:
    """How far the answers of one cut network are from the unpruned network's.

    Attributes:
        cuts: group -> channels kept at each front position.
        distance: mean divergence per input (``primesvt.evaluation.divergence``).
        seconds: what it took.
    """

    cuts: Widths
    distance: float
    seconds: float = 0.0


Key = frozenset[tuple[str, int]]


class OldFormatError(ValueError):
    """The probes of a file were made by an older version and cannot be compared with new ones."""


class ProbeTable:
    """All measured networks of a run, found by their cuts; with a path, kept in a file.

    Every probe is one line, on disk before the next ones start. The line that a kill cut short is
    dropped when the file is opened again.

    Args:
        reference: the unpruned network, which all probes are compared with.
        path: the file; a new one begins with the reference.

    Example:
        >>> whole = Reference(context={}, measurement=Measurement(value=0.92), parameter_bytes=100)
        >>> table = ProbeTable(whole)
        >>> table.add(Probe(kind="layer", cuts={"fc": 3}, accuracy=0.9, saving=0.1,
        ...                 parameter_bytes=90))
        >>> table.find({"fc": 3}).accuracy, table.find({"fc": 2})
        (0.9, None)
    """

    def __init__(self, reference: Reference, path: Path | None = None) -> None:
        self.reference = reference
        self.name = str(path.parent) if path is not None else "this table"
        self._log = None if path is None else JsonlLog(path)
        self._probes: dict[Key, Probe] = {}
        self._distances: dict[Key, DistanceProbe] = {}
        self._append(_reference_line(reference))

    @classmethod
    def read(cls, path: Path, *, read_only: bool = False) -> ProbeTable | None:
        """The table of a file; ``None`` where there is none, or nothing in it yet.

        Raises ``ValueError`` naming the first line that is no probe.
        """
        log = JsonlLog(path, read_only=read_only)
        table: ProbeTable | None = None
        for number, line in log.lines():
            try:
                row = validated(dict[str, Any], parse_json(line))
                if row["kind"] == "reference" and table is None:
                    table = cls(_read_reference(row, path))
                elif table is None:
                    raise ValueError("a probe of an unknown network")
                else:
                    table._take_line(row)
            except OldFormatError:
                raise
            except (ValueError, KeyError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else error
                raise ValueError(
                    f"line {number} of {path} is no probe: {reason}; delete the line, or the run"
                    " folder"
                ) from error
        if table is not None:
            table.name, table._log = str(path.parent), log
        return table

    def __iter__(self) -> Iterator[Probe]:
        return iter(self._probes.values())

    def __len__(self) -> int:
        return len(self._probes)

    def find(self, cuts: Widths) -> Probe | None:
        """The probe of exactly these cuts, if it was made."""
        return self._probes.get(frozenset(cuts.items()))

    def add(self, *probes: Probe) -> None:
        """Remember probes, and write them to the file."""
        self._probes.update({frozenset(probe.cuts.items()): probe for probe in probes})
        self._append(*map(_probe_line, probes))

    def find_distance(self, cuts: Widths) -> DistanceProbe | None:
        """The distance of exactly these cuts, if it was measured."""
        return self._distances.get(frozenset(cuts.items()))

    def add_distance(self, *probes: DistanceProbe) -> None:
        """Remember distances, and write them to the file."""
        self._distances.update({frozenset(probe.cuts.items()): probe for probe in probes})
        self._append(*map(_distance_line, probes))

    def check(self, context: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` where the probes belong to another model, data set or setting."""
        for name, value in context.items():
            there = self.reference.context.get(name)
            if there != value:
                raise ValueError(
                    f"{self.name} holds probes of another {name.replace('_', ' ')} "
                    f"({_short(there)}, here {_short(value)}); choose another run folder"
                )

    def take(self, other: ProbeTable) -> None:
        """Add the probes that another table has and this one lacks."""
        for probe in other:
            if self.find(probe.cuts) is None:
                self.add(probe)
        for distance in other._distances.values():
            if self.find_distance(distance.cuts) is None:
                self.add_distance(distance)

    def write(self, path: Path) -> None:
        """Write all lines to a new file."""
        lines = [_reference_line(self.reference)]
        lines += [*map(_distance_line, self._distances.values()), *map(_probe_line, self)]
        text = "".join(f"{line}\n" for line in lines)
        write_text(path, text)

    def write_nothing(self) -> None:
        """Keep what is added from now on in memory alone."""
        self._log = None

    def _append(self, *lines: str) -> None:
        if self._log is not None:
            self._log.append(*lines)

    def _take_line(self, row: dict[str, Any]) -> None:
        """Remember the probe or distance of one line of a file."""
        if row.pop("kind") == "distance":
            distance = validated(DistanceProbe, row)
            self._distances[frozenset(distance.cuts.items())] = distance
        else:
            cuts = validated(dict[str, int], row["cuts"])
            probe = validated(Probe, {**row, "kind": "layer" if len(cuts) == 1 else "walk"})
            self._probes[frozenset(probe.cuts.items())] = probe


def _probe_line(probe: Probe) -> str:
    row = asdict(replace(probe, cuts=dict(probe.cuts)))
    return json.dumps({name: value for name, value in row.items() if value is not None})


def _distance_line(probe: DistanceProbe) -> str:
    return json.dumps({"kind": "distance", **asdict(replace(probe, cuts=dict(probe.cuts)))})


def _reference_line(reference: Reference) -> str:
    """The unpruned network as the first line of a file; right or wrong outcomes take a bit each."""
    measurement, found = reference.measurement, reference.measurement.outcomes
    row = {
        "kind": "reference",
        "format": FORMAT,
        "context": dict(reference.context),
        "accuracy": measurement.value,
        "parameter_bytes": reference.parameter_bytes,
    }
    if found is not None:
        bits = np.packbits(found.astype(np.bool_)) if found.dtype == np.bool_ else found
        name = "right" if found.dtype == np.bool_ else "outcomes"
        row |= {"samples": len(found), name: base64.b64encode(bits.tobytes()).decode()}
    return json.dumps(row)


def _read_reference(row: Mapping[str, Any], path: Path) -> Reference:
    """The unpruned network from the first line of a file."""
    if row["format"] != FORMAT:
        raise OldFormatError(
            f"{path.parent} holds probes of format {row['format']}, measured in another way than"
            f" those of format {FORMAT}; choose another run folder"
        )
    found: Outcomes | None = None
    if "right" in row:
        bits = np.frombuffer(base64.b64decode(row["right"]), dtype=np.uint8)
        found = np.unpackbits(bits, count=row["samples"]).astype(np.bool_)
    elif "outcomes" in row:
        found = np.frombuffer(base64.b64decode(row["outcomes"]), dtype=np.float64)
    return Reference(
        context=row["context"],
        measurement=Measurement(value=row["accuracy"], outcomes=found),
        parameter_bytes=row["parameter_bytes"],
    )


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text


@dataclass(frozen=True, kw_only=True)
class Point:
    """One pruning rate of a layer cut alone, and the network measured at it.

    ``probe`` is ``None`` for a rate that was not measured because a higher one is tolerated.
    """

    rate: float
    kept: int
    probe: Probe | None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A channel group with its number of parameters and its probed pruning rates.

    ``points`` have ascending rates and different widths.
    """

    group: str
    positions: int
    size: int
    parameters: int
    points: tuple[Point, ...]
