"""The version of the package. In a file of its own so that no other module is imported to read it."""

__version__ = "0.1.0"
