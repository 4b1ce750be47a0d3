"""The two estimates of energy, and what is said of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from primesvt.models import lif
from primesvt.profiling.energy import EnergyPerOperation, energy_of, formulas
from primesvt.profiling.memory import parameter_bytes
from primesvt.profiling.operations import count_operations


def test_both_estimates_by_hand():
    net = nn.Sequential(nn.Linear(4, 3, bias=False), lif(), nn.Linear(3, 2, bias=False))
    nn.init.constant_(net[0].weight, 1.0)
    found = count_operations(net, [(torch.ones(1, 4),)])  # 12 MACs, three spikes, 6 accumulates
    energy = energy_of(found, parameter_bytes(net))
    operations = 4.6 * 12 + 0.9 * 6
    assert energy.operations == pytest.approx(operations * 1e-12)
    chip = (12 + 6) * 4 + 2 * 3 * 4  # an operand for each operation; three potentials, both ways
    memory = 12.5 * chip + 162.5 * (12 + 6) * 4
    assert energy.with_memory == pytest.approx((operations + memory) * 1e-12)


def test_other_prices():
    found = count_operations(nn.Linear(4, 3), [(torch.rand(1, 4),)])
    free = EnergyPerOperation(mac=1, accumulate=0, chip_byte=0, dram_byte=0)
    assert energy_of(found, 0, prices=free).with_memory == pytest.approx(12e-12)
    assert "1 pJ x MACs" in formulas(free)[0]


def test_the_sentences_name_every_price_and_what_is_left_out():
    simple, memory = formulas()
    assert "4.6 pJ" in simple and "0.9 pJ" in simple and "without memory" in simple
    assert "12.5 pJ" in memory and "162.5 pJ" in memory and "without reuse" in memory
