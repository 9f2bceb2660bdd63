"""Models, and loading of checkpoints."""
