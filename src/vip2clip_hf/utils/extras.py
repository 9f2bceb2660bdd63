"""Errors for missing optional packages that name the extra to install."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """
    Add the name of the extra to import errors raised in a `with` block.

    Args:
        name (`str`): extra of vip2clip_hf that installs the packages, such as `"data"`.
        what (`str`): feature that needs the packages; the error message starts with it.

    Raises:
        ImportError: if an import in the block fails. The message names the package and the extra.

    Example:

    ```python
    >>> with extra("data", "Reading a dataset"):
    ...     import datasets
    ```
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and missing:
            problem = f"{what} needs {missing}, which is not installed"
        else:
            problem = f"{what} needs a package that cannot be imported ({error})"
        raise ImportError(f"{problem}: pip install 'vip2clip_hf[{name}]'.", name=error.name) from error


def require(name: str, what: str, *modules: str, load: bool = True) -> None:
    """
    Check that optional packages are installed, before long work that needs them at its end.

    Args:
        name, what (`str`): see [`extra`].
        modules (`str`): names of the packages.
        load (`bool`, defaults to `True`): whether to import the packages, which also finds broken ones.

    Raises:
        ImportError: if a package is missing. The message names the package and the extra.
    """
    with extra(name, what):
        for module in modules:
            if not load:
                if not is_installed(module):
                    raise ModuleNotFoundError(f"No module named {module!r}", name=module)
                continue
            try:
                importlib.import_module(module)
            except ImportError:
                raise
            except Exception as error:  # such as an OSError for a missing library of the system
                raise ImportError(f"{module}: {error}", name=module) from error


def is_installed(module: str) -> bool:
    """
    Whether a package is installed. It is not imported.

    Args:
        module (`str`): name of the package.

    Returns:
        `bool`: True if the package is found.
    """
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


__all__ = ["extra", "is_installed", "require"]
