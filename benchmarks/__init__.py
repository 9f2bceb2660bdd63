"""Benchmarks: each compares with another way to do the same in the same run. README.md says how to run them."""
