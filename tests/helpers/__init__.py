"""Helper functions for several test files."""

import pkgutil

import pytest


# Show the compared values when an assertion in a helper fails, as pytest does for tests.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
