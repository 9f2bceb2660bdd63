"""Optional packages: one sentence that names the extra to install."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """
    Import optional packages inside this block.

    Args:
        name (`str`): extra of vip2clip_hf that installs them, such as `"data"`.
        what (`str`): what needs them; starts the error message.

    Raises:
        ImportError: a package imported in the block is missing or broken. The message names it and the extra.

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


__all__ = ["extra"]
