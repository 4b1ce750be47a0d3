"""Channel groups: discovered from one forward pass, cut exactly.

``trace`` reads off which tensor axes belong together; ``remove_channels`` cuts them; ``verify``
proves on a copy that a cut means what it says.
"""

from primesvt.channels.graph import ChannelGraph, ChannelGroup, Freed, Member
from primesvt.channels.surgery import remove_channels
from primesvt.channels.tracing import trace
from primesvt.channels.verification import Refusal, verify

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Freed",
    "Member",
    "Refusal",
    "remove_channels",
    "trace",
    "verify",
]
