"""Every family's case; the shared tests run over all of them."""

from __future__ import annotations

from . import (
    qkformer,
    sdt_v1,
    sdt_v2,
    sdt_v3,
    sdt_v3_large,
    spikformer,
    spikingformer,
    spikingresformer,
)
from .case import FamilyCase

CASES: tuple[FamilyCase, ...] = (
    qkformer.CASE,
    sdt_v1.CASE,
    sdt_v2.CASE,
    sdt_v3.CASE,
    sdt_v3_large.CASE,
    spikformer.CASE,
    spikingformer.CASE,
    spikingresformer.CASE,
)
