"""Names of a package that are imported when they are first used."""

import ast
import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    `__getattr__`, `__dir__` and `__all__` for the `__init__` of a package.

    The names are those that the `__init__` imports under `if TYPE_CHECKING:`. Type checkers and editors read that
    block; at run time a name is imported from its module when it is first used. So a light module can be imported
    without the heavy ones beside it, and no list of names is written twice.

    Args:
        package (`str`): `__name__` of the package.

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
        setattr(module, name, value)  # from now on without this function
        return value

    def names() -> list[str]:
        return sorted({*vars(module), *modules})

    return get, names, sorted(modules)


def _imports_for_type_checkers(package: str) -> dict[str, str]:
    """Relative module of every name that the `__init__` imports under `if TYPE_CHECKING:`."""
    loader = sys.modules[package].__spec__.loader
    found = {}
    for statement in ast.parse(loader.get_source(package)).body:
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Name):
            for line in statement.body if statement.test.id == "TYPE_CHECKING" else ():
                if isinstance(line, ast.ImportFrom):
                    found.update(
                        (name.asname or name.name, "." * line.level + (line.module or "")) for name in line.names
                    )
    return found


__all__ = ["lazy_names"]
