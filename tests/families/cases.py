"""Every family's case; the shared tests run over all of them."""

from __future__ import annotations

from . import sdt_v1, sdt_v2
from .case import FamilyCase

CASES: tuple[FamilyCase, ...] = (sdt_v1.CASE, sdt_v2.CASE)
