"""What a network costs: parameters, memory, operations, energy and time."""
