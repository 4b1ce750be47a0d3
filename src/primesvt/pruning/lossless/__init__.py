"""What goes before pruning without changing a prediction: dead parameters, silent channels."""

from primesvt.models.strip import match_state
from primesvt.pruning.lossless.record import Lossless, Removed
from primesvt.pruning.lossless.step import Lean, make_lean, strip

__all__ = ["Lean", "Lossless", "Removed", "make_lean", "match_state", "strip"]
