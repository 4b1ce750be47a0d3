"""Where a model's weights come from, and which settings were inferred when they were loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from primesvt._files import validated
from primesvt.data.config import DataConfig

__all__ = ["CheckpointReport", "Provenance"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a model's images are prepared, and whether its selection images were held out.

    ``held_out``: ``primesvt train`` made the weights, so the images that it holds out were never
    trained on and may serve as selection set.

    Example:
        >>> data = DataConfig(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
        >>> made = Provenance(data=data, held_out=True)
        >>> Provenance.from_dict(made.to_dict()) == made
        True
    """

    data: DataConfig
    held_out: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Provenance:
        """Read what ``to_dict`` gave; raises ``ValueError`` where it is damaged."""
        try:
            return validated(cls, content)
        except ValueError as error:
            raise ValueError(f"damaged provenance ({error}); save the model again") from error


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """Where a model's settings come from; kept as ``model.loaded``.

    Attributes:
        source: the file.
        family: name of the family, ``title`` the name people use.
        nearest: the registered variant that is most alike; ``exact`` if the tensors are its own.
        inferred: settings that names and shapes of the tensors gave away.
        given: settings that the caller named.
        assumed: settings that leave no trace in the tensors, mostly as ``nearest`` has them.
        found: settings that were tried on data, with the values that were best.
        tried: a sentence on how they were found; empty where nothing was tried.
        notes: what else a person should know, one sentence each: oddities of the official code
            that are reproduced, choices made in reading the file.

    Example:
        >>> from primesvt.models import create_model, from_official, to_official
        >>> from_official(to_official(create_model("sdt_v2_digits"))).loaded.nearest
        'sdt_v2_digits'
    """

    source: str
    family: str
    title: str
    nearest: str
    exact: bool
    inferred: Mapping[str, Any]
    given: Mapping[str, Any]
    assumed: Mapping[str, Any]
    notes: tuple[str, ...]
    found: Mapping[str, Any] = field(default_factory=dict)
    tried: str = ""

    def lines(self) -> tuple[str, ...]:
        """The report, as short lines for a person.

        Example:
            >>> from primesvt.models import create_model, from_official, to_official
            >>> model = from_official(to_official(create_model("sdt_v2_digits")))
            >>> print(model.loaded.lines()[0])
            a state dict: Spike-driven Transformer V2, as sdt_v2_digits
        """
        as_which = "as" if self.exact else "nearest published variant:"
        lines = [f"{self.source}: {self.title}, {as_which} {self.nearest}"]
        for title, settings in (
            ("read off the tensors", self.inferred),
            ("given", self.given),
            ("found by trying", self.found),
            ("assumed, override by name", self.assumed),
        ):
            if settings:
                listed = ", ".join(f"{name}={_text(value)}" for name, value in settings.items())
                lines.append(f"{title}: {listed}")
        return (*lines, *(f"note: {note}" for note in self.notes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    return str(value)
