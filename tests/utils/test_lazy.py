"""Lazy names of a package: listed from its `TYPE_CHECKING` block, imported on first use."""

import importlib
import sys

import pytest


INIT = '''
"""A package with lazy names."""

from typing import TYPE_CHECKING

from vip2clip_hf.utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .broken import nothing as nothing
    from .light import VALUE as VALUE, helper as renamed
    from .sub.inner import INNER as INNER
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "lazy_package"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT)
    (folder / "light.py").write_text("VALUE = 1\nCALLS = []\ndef helper():\n    return 'help'\n")
    (folder / "broken.py").write_text("import a_package_that_does_not_exist\n")
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "sub" / "inner.py").write_text("INNER = 'inner'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("lazy_package")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy_package"]:
        del sys.modules[name]


def loaded(package) -> set[str]:
    return {name for name in sys.modules if name.startswith(f"{package.__name__}.")}


def test_names_are_listed_without_importing(package):
    assert package.__all__ == ["INNER", "VALUE", "nothing", "renamed"]
    assert set(package.__all__) <= set(dir(package))
    assert "__name__" in dir(package)
    assert loaded(package) == set()


def test_a_name_is_imported_on_first_use(package):
    assert "VALUE" not in vars(package)
    assert package.VALUE == 1
    assert loaded(package) == {"lazy_package.light"}
    assert vars(package)["VALUE"] == 1  # __getattr__ is not called again
    assert package.INNER == "inner"


def test_from_import(package):
    from lazy_package import INNER, VALUE

    assert (INNER, VALUE) == ("inner", 1)


def test_unknown_names(package):
    with pytest.raises(AttributeError, match=r"module 'lazy_package' has no attribute 'absent'"):
        _ = package.absent
    assert not hasattr(package, "CALLS")  # in a module of the package, but not public
    with pytest.raises(ImportError, match="cannot import name 'absent'"):
        from lazy_package import absent  # noqa: F401


def test_an_import_error_appears_on_use_only(package):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_does_not_exist"):
        _ = package.nothing
    assert package.VALUE == 1
