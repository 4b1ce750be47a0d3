"""What is left of this room; see ``primesvt.pruning.policies``."""
