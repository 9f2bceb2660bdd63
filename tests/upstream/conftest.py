"""The common tests of transformers, run on this package: `make test-upstream`, also part of `make test-all`."""

import re

from helpers.upstream import upstream_folder


def pytest_configure(config):
    if _are_deselected(config):
        return
    # The conftest.py of transformers declares its markers. It is not part of the source distribution.
    source = upstream_folder()
    files = [source / "src/transformers/testing_utils.py", *(source / "tests").glob("*.py")]
    for name in {name for file in files for name in re.findall(r"\bmark\.(\w+)", file.read_text(encoding="utf-8"))}:
        config.addinivalue_line("markers", name)


def pytest_ignore_collect(collection_path, config):
    # Collecting imports the source of transformers, which may first have to be downloaded.
    return True if _are_deselected(config) else None


def _are_deselected(config) -> bool:
    return config.getoption("markexpr") == "not slow"
