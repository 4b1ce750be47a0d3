"""Every family's case; the shared tests run over all of them."""

from __future__ import annotations

from .case import FamilyCase

CASES: tuple[FamilyCase, ...] = ()
