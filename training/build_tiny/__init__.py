"""Build the bundled checkpoint. `python -m training.build_tiny --help` says how."""
