"""Build the bundled checkpoint. See `python -m training.build_tiny --help`."""
