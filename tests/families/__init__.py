"""What every family's tests provide, and the tests that run over all of them."""
