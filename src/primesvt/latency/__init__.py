"""How long networks take on this machine, and how much of it every width of a layer saves."""

from primesvt.latency.stopwatch import Stopwatch
from primesvt.latency.table import LatencyTable
from primesvt.latency.timing import BATCHES, Latency, Pace, measure

__all__ = ["BATCHES", "Latency", "LatencyTable", "Pace", "Stopwatch", "measure"]
