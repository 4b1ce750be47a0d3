"""How long networks take on this machine, and how much of it every width of a layer saves."""

from primesvt.profiling.latency_table import LatencyTable
from primesvt.profiling.timing import BATCHES, Latency, Pace, measure
from primesvt.profiling.width_latency import Stopwatch

__all__ = ["BATCHES", "Latency", "LatencyTable", "Pace", "Stopwatch", "measure"]
