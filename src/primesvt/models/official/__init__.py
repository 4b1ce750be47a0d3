"""Official checkpoint files: read, recognised, and converted to the names used here."""
