"""Error messages for missing optional packages."""

import sys

import pytest

from vip2clip_hf.utils.extras import extra, require


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with (
        pytest.raises(ImportError) as raised,
        extra("data", "Listing regions"),
    ):
        import scipy  # noqa: F401
    expected = "Listing regions needs scipy, which is not installed: pip install 'vip2clip_hf[data]'."
    assert str(raised.value) == expected
    assert raised.value.name == "scipy"
    assert isinstance(raised.value.__cause__, ImportError)


def test_the_top_level_package_is_reported():
    with pytest.raises(ImportError, match=r"needs absent_package, which is not installed"), extra("data", "Reading"):
        raise ModuleNotFoundError("No module named 'absent_package.part'", name="absent_package.part")


def test_a_broken_package():
    """An installed package that fails to import is not reported as missing."""
    with pytest.raises(ImportError) as raised, extra("app", "The web app"):
        raise ImportError("libGL.so.1: cannot open shared object file", name="gradio")
    assert str(raised.value) == (
        "The web app needs a package that cannot be imported (libGL.so.1: cannot open shared object file): "
        "pip install 'vip2clip_hf[app]'."
    )


def test_other_errors_pass():
    with pytest.raises(ValueError, match=r"^other$"), extra("data", "Reading"):
        raise ValueError("other")
    with extra("data", "Reading"):
        pass


def test_require(monkeypatch):
    require("train", "Training", "json", "csv")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"^Training needs datasets, .*pip install 'vip2clip_hf\[train\]'\.$"):
        require("train", "Training", "json", "datasets")
