"""The pruning run, from limits to a plan and a smaller network; read ``pipeline`` first."""
