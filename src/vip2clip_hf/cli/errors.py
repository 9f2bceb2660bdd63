"""One sentence for each error of a command."""

import os
import pickle
import sys
import zipfile
import zlib
from collections.abc import Iterator
from importlib.util import find_spec


# Environment variable that shows tracebacks.
TRACEBACK = "VIP2CLIP_TRACEBACK"
# Packages that are always installed, except for the runtime without torch.
_REQUIRED = ("huggingface_hub", "safetensors", "tokenizers", "torch", "tqdm", "transformers", "yaml")


def explain(error: BaseException) -> str:
    """
    Describe an error for the user of a command.

    Args:
        error (`BaseException`): the error.

    Returns:
        `str`: the message of an expected error. For others, type, message and how to report it.
    """
    expected: tuple[type[BaseException], ...] = (ImportError, OSError, RuntimeError, TypeError, ValueError)
    if sys.modules.get("huggingface_hub") is not None:  # otherwise the error is not one of its own
        from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

        expected = (*expected, HfHubHTTPError, StrictDataclassError)
    damaged = (EOFError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError)
    text = str(error).strip()
    if isinstance(error, MemoryError):
        return (
            f"Out of memory{f' ({text})' if text else ''}; use smaller images, a smaller --batch-size or --tile-size."
        )
    if isinstance(error, RecursionError):
        return f"The input is nested too deeply ({text or 'recursion limit'})."
    if isinstance(error, UnicodeDecodeError):
        return (
            f"A file is not valid {error.encoding} text ({error.reason} at position {error.start}); save it as UTF-8."
        )
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in _REQUIRED and package not in sys.modules and find_spec(package) is None:
        return (
            f"{package} is not installed. Install the package with its dependencies. predict and serve do not need "
            "them with --runtime onnx --model EXPORTED, the folder of an exported checkpoint."
        )
    if isinstance(error, damaged):
        return f"A file is damaged ({text or type(error).__name__}); remove it or create it again."
    if isinstance(error, expected):
        return (text or type(error).__name__) + _cache_hint(error)
    return (
        f"{type(error).__name__}{f': {text}' if text else ''}. This is not expected; set {TRACEBACK}=1 to see where "
        "it happens, and report it."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _cache_hint(error: BaseException) -> str:
    """Name HF_HOME if an error comes from a cache folder that cannot be written."""
    from ..utils.cache import unwritable_cache

    names = [one.filename for one in _chain(error) if isinstance(one, OSError) and one.filename is not None]
    for name in names:
        cache = unwritable_cache(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) else None
        if cache is not None and "HF_HOME" not in str(error):
            return f". The cache folder {cache!r} cannot be written; set HF_HOME to a folder that can be written."
    return ""


__all__ = ["TRACEBACK", "explain"]
