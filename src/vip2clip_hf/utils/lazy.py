"""Lazy imports for the `__init__` of a package."""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    Create `__getattr__`, `__dir__` and `__all__` for the `__init__` of a package.

    The public names are those that the `__init__` imports under `if TYPE_CHECKING:`. Type checkers and editors read
    that block. At run time, a name is imported from its module on first use, so importing the package does not import
    its heavy modules.

    Args:
        package (`str`): `__name__` of the package.

    Returns:
        `tuple[Callable, Callable, list[str]]`: `__getattr__`, `__dir__` and `__all__`.

    Example:

    ```python
    >>> from typing import TYPE_CHECKING
    >>> from ..utils.lazy import lazy_names

    >>> __getattr__, __dir__, __all__ = lazy_names(__name__)
    >>> if TYPE_CHECKING:
    ...     from .loading import load_folder as load_folder
    ```
    """
    module = sys.modules[package]
    modules = _imports_for_type_checkers(package)

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name], package), name)
        setattr(module, name, value)  # later accesses bypass this function
        return value

    def names() -> list[str]:
        return sorted({*vars(module), *modules})

    return get, names, sorted(modules)


def _imports_for_type_checkers(package: str) -> dict[str, str]:
    """Map each name that the `__init__` imports under `if TYPE_CHECKING:` to its relative module."""
    source = pkgutil.get_data(package, "__init__.py")
    if source is None:
        raise ImportError(f"The source of {package!r} cannot be read.", name=package)
    found: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Name):
            for line in statement.body if statement.test.id == "TYPE_CHECKING" else ():
                if isinstance(line, ast.ImportFrom):
                    found.update(
                        (name.asname or name.name, "." * line.level + (line.module or "")) for name in line.names
                    )
    return found


__all__ = ["lazy_names"]
