"""URLs of folders in stores, such as `s3://bucket/photos`, and names that are safe as paths."""

import re
from typing import Any


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Read by `load_image`, or refused; not folders.
_NO_STORE = ("http", "https", "data")


def is_remote(path: Any) -> bool:
    """
    Whether a path is the URL of a store, such as `s3://bucket/photos`, `gs://`, `hf://` or `memory://`.

    Args:
        path: a path, or anything else.

    Returns:
        `bool`: False for local paths, `file` URLs and web pages.
    """
    found = _URL.match(path) if isinstance(path, str) else None
    return found is not None and found[1].lower() not in (*_NO_STORE, "file", "local")


def local_path(path: str) -> str:
    """
    Convert a `file` URL to a path.

    Args:
        path (`str`): path or URL.

    Returns:
        `str`: the path; other texts are not changed.
    """
    if not path.lower().startswith(("file://", "local://")):
        return path
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return url2pathname(urlsplit(path).path)


def join_url(url: str, name: str) -> str:
    """
    Append a name to a URL.

    Args:
        url (`str`): URL of a folder.
        name (`str`): path below it.

    Returns:
        `str`: URL of the object.
    """
    return f"{url.rstrip('/')}/{name}" if name else url


def is_below(url: str, folder: str) -> bool:
    """
    Whether a URL is that of a folder or of something in it.

    Args:
        url, folder (`str`): URLs.

    Returns:
        `bool`: True if it is the same or inside.
    """
    return f"{url.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def is_safe(name: str) -> bool:
    """
    Whether a name stays below its root when it is used as a path, on all systems.

    Args:
        name (`str`): key of an object, or name of an archive member, with forward slashes.

    Returns:
        `bool`: False for absolute paths and names with empty parts, `.`, `..`, a backslash, a drive or a zero byte.
    """
    if "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


__all__ = ["is_below", "is_remote", "is_safe", "join_url", "local_path"]
