"""Costs of a network: parameters, memory, operations, energy and time."""
