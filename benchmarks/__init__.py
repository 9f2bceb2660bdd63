"""Benchmarks of this package against alternative implementations. See README.md."""
