"""Where a model's weights come from: how its images are prepared, and what it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from primesvt.data.config import DataConfig

__all__ = ["Provenance"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What later stages must know of a model's training; it travels with the model.

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
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in content["data"].items()
            }
            return cls(data=DataConfig(**fields), held_out=bool(content["held_out"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"damaged provenance ({error}); save the model again") from error
