"""Local copies of datasets in stores, such as `s3://bucket/photos`, because layouts are read from folders."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from transformers.utils import logging

from ..models.vip2clip.image_listing_vip2clip import is_system_path
from ..utils.files import write_atomically
from ..utils.remote import Entry, RemoteFolder
from ..utils.serialization import to_json
from ..utils.urls import is_safe


logger = logging.get_logger(__name__)
NUM_THREADS = 16
FILES = (".parquet",)


def store_cache() -> Path:
    """
    Folder of the copies.

    Returns:
        `pathlib.Path`: `vip2clip_hf/stores` in `HF_HOME`.
    """
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "vip2clip_hf" / "stores"


def is_hidden(name: str) -> bool:
    """
    Whether a key or a member of an archive is hidden or a file of the system, and is left out.

    Args:
        name (`str`): the name. It need not be safe as a path.

    Returns:
        `bool`: False for parts such as `..`, which are an error and not hidden.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return not parts or is_system_path("/".join(parts))


def local_copy(url: str) -> Path:
    """
    Copy a dataset from a store to the cache. Objects that are the same as before are not downloaded again, and files
    whose objects are gone are deleted.

    Args:
        url (`str`): URL of a folder, or of a Parquet file.

    Returns:
        `pathlib.Path`: the copy. Its name is the last part of the URL.

    Raises:
        ImportError: if the package for this kind of store is not installed.
        OSError: if the URL does not exist.
        StoreError: if the store cannot be reached, or refuses access.
        ValueError: if a key cannot be part of a path, or the URL is a file of another kind.
    """
    folder = RemoteFolder(url)
    kind = folder.kind()
    if kind is None:
        raise OSError(f"{url!r} not found; expected the folder of a dataset.")
    parent, _, last = folder.url.rpartition("/")
    single = kind == "file"
    if single and not last.lower().endswith(FILES):
        raise ValueError(f"{url!r} is a file; expected its folder, or a file of type {', '.join(FILES)}.")
    if not is_safe(last):
        raise ValueError(f"{url!r} ends with {last!r}, which cannot be part of a path; expected another folder.")
    root = store_cache() / hashlib.blake2b(folder.url.encode(), digest_size=8).hexdigest()
    target = root / last
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if single:
            folder = RemoteFolder(parent)
            size, version = folder.state(last)
            _update(folder, {last: Entry(last, False, size, version)}, root, root / ".versions.json")
        else:
            found = {name: entry for name, entry in folder.walk() if not is_hidden(name) or entry.is_folder}
            if unsafe := sorted(name for name, entry in found.items() if entry.is_folder or not is_safe(name)):
                raise ValueError(
                    f"{url!r} contains {unsafe[0]!r}, which cannot be part of a path; expected names without empty "
                    "parts, '.', '..' and backslashes."
                )
            _update(folder, found, target, root / ".versions.json")
    return target


def _update(folder: RemoteFolder, found: dict[str, Entry], target: Path, state: Path) -> None:
    """Make the files in a folder the same as the objects."""
    try:
        before = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    now = {name: [entry.size, entry.version] for name, entry in found.items()}
    changed = [
        name
        for name, known in now.items()
        if not known[1] or before.get(name) != known or not (target / name).is_file()
        or (target / name).stat().st_size != known[0]
    ]  # fmt: skip
    for name in set(before) - set(now):
        if is_safe(name):
            (target / name).unlink(missing_ok=True)
    if changed:
        size = sum(now[name][0] for name in changed)
        logger.warning(f"Copying {len(changed)} objects ({size / 1e6:.1f} MB) from {folder.url!r} to {str(target)!r}.")
    # An interrupted copy starts again with the objects that are missing.
    write_atomically(state, to_json({name: known for name, known in now.items() if name not in set(changed)}))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(lambda name: folder.download(name, target / name), changed))
    write_atomically(state, to_json(now))
    target.mkdir(parents=True, exist_ok=True)
    for path, _, files in os.walk(target, topdown=False):  # left by a killed program
        for name in files:
            if name.endswith(".vip2clip-tmp") and Path(path) != state.parent:
                (Path(path) / name).unlink(missing_ok=True)


__all__ = ["is_hidden", "local_copy", "store_cache"]
