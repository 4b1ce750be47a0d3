"""What goes before pruning without changing a prediction: dead parameters, silent channels."""

from primesvt.lossless.account import Lossless, Removed
from primesvt.lossless.lean import Lean, make_lean, strip
from primesvt.lossless.leftovers import match_state

__all__ = ["Lean", "Lossless", "Removed", "make_lean", "match_state", "strip"]
