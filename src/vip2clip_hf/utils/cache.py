"""Cache folders of the Hub and of datasets, which may be read-only, for example in a container."""

import os
import tempfile
from pathlib import Path


def can_write(folder: str | os.PathLike[str]) -> bool:
    """
    Whether files can be created in a folder, which is created if it does not exist.

    Args:
        folder (`str` or `os.PathLike`): the folder.

    Returns:
        `bool`: True if a file could be created there. It is deleted again.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def own_cache() -> Path:
    """
    Folder for what this package remembers between runs. Nothing in it is needed: it can be deleted at any time.

    Returns:
        `pathlib.Path`: `vip2clip_hf` in the folder of `HF_HOME`, which may not exist.
    """
    # As in huggingface_hub, without importing it.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return Path(os.path.expandvars(os.path.expanduser(home)), "vip2clip_hf")


def datasets_cache() -> str:
    """
    Cache folder of `datasets`.

    Returns:
        `str`: the path.
    """
    from huggingface_hub import constants

    return os.environ.get("HF_DATASETS_CACHE", os.path.join(constants.HF_HOME, "datasets"))


def cache_folders() -> list[str]:
    """
    Cache folders that libraries write to, set by `HF_HOME` and more special variables.

    Returns:
        `list[str]`: paths.
    """
    from huggingface_hub import constants

    modules = os.environ.get("HF_MODULES_CACHE", os.path.join(constants.HF_HOME, "modules"))
    return [constants.HF_HOME, constants.HF_HUB_CACHE, datasets_cache(), modules]


def unwritable_cache(path: str | os.PathLike[str]) -> str | None:
    """
    Find the cache folder a path belongs to, if it cannot be written.

    Args:
        path (`str` or `os.PathLike`): path in an error message.

    Returns:
        `str`: the cache folder. None if the path is not in a cache folder, or if that can be written.
    """
    for folder in cache_folders():
        absolute = Path(os.path.abspath(folder))
        if Path(os.path.abspath(path)).is_relative_to(absolute) or absolute.is_relative_to(os.path.abspath(path)):
            return None if can_write(folder) else folder
    return None


__all__ = ["cache_folders", "can_write", "datasets_cache", "own_cache", "unwritable_cache"]
