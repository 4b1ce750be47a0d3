"""How good a network is: outcomes on labelled sets, paired confidence bounds, sequential tests."""
