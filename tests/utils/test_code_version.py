import importlib.util
import sys

import pytest

from vip2clip_hf.utils.code_version import code_version


CODE = '''"""Module."""

SIZE = 3


def double(x):
    """Double a number."""
    return SIZE * x  # a comment
'''


@pytest.fixture
def version(tmp_path, monkeypatch):
    """Write a module and return the version of its code."""
    numbers = iter(range(100))

    def version(code: str, **constants) -> str:
        path = tmp_path / f"module{next(numbers)}.py"
        path.write_text(code, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("odd_module", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, value in constants.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, "odd_module", module)
        return code_version(["odd_module"])

    return version


def test_code_counts_and_text_does_not(version):
    first = version(CODE)
    assert len(first) == 64
    for same in (
        CODE,
        CODE.replace("Double a", "Twice the"),
        CODE.replace("  # a comment", ""),
        CODE.replace("\n\n\n", "\n\n"),
    ):
        assert version(same) == first
    for other in (CODE.replace("SIZE * x", "x * SIZE"), CODE.replace("SIZE = 3", "SIZE = 4"), CODE + "\nMORE = 1\n"):
        assert version(other) != first


def test_current_values_of_constants_count(version):
    assert version(CODE, SIZE=5) != version(CODE)
    assert version(CODE, KINDS={"b", "a"}) == version(CODE, KINDS={"a", "b"})
    assert version(CODE, TABLE={"a": (1, 2)}) != version(CODE, TABLE={"a": (1, 3)})


def test_without_source_the_version_of_the_package_counts(version, monkeypatch):
    from vip2clip_hf.utils import code_version as module

    monkeypatch.setattr(module, "_source", lambda path: module.__version__)
    assert version(CODE) == version(CODE + "\nmore = 1\n")
