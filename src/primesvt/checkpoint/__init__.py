"""Save networks and load them: a registry name, an official file, a saved folder or a run."""
