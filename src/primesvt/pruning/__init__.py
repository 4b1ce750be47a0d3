"""From the user's limits to a plan and a smaller network; ``pipeline`` is the whole story."""
