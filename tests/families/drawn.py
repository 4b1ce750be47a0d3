"""Networks of random shapes, built from a family's case, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import nn

from primesvt.models import build_model

from .case import FamilyCase
from .cases import CASES

SEEDS = st.integers(0, 2**16)
NAMES = [case.family for case in CASES]


def examples(number: int) -> settings:
    """The same draws everywhere; a failure is printed as it is, without shrinking."""
    return settings(
        deadline=None,
        derandomize=True,
        max_examples=number,
        print_blob=False,
        phases=[Phase.generate],
    )


def build(config: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(config).eval()


def inputs(case: FamilyCase, config: Any, batch: int = 2) -> torch.Tensor:
    """Images ``[B, C, H, W]``, or event frames ``[B, T, C, H, W]``."""
    time = [config.time_steps] if case.frames else []
    return torch.randn(batch, *time, config.in_channels, *case.size(config))
