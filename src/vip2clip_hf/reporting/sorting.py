"""Copy or link photos into folders by their result. The photos themselves are never moved or changed."""

import contextlib
import filecmp
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.files import write_atomically
from ..utils.outputs import check_output, is_inside
from ..utils.serialization import to_json
from .photo_files import inside
from .predictions import Predictions


# Order of the folders in results.
ORDER = ("good", "normal", "defect", "anomalous", "unsure", "unreadable")
# Lists the files that were written and their photos, so that only these files are ever replaced or deleted.
MANIFEST = ".vip2clip-sorted.json"
LINKS = ("hard", "symbolic")
# Ending of files that are not complete.
STAGED = ".vip2clip-tmp"


@dataclass
class Sorted:
    """
    Result of [`sort_photos`].

    Args:
        counts (`dict[str, int]`): number of photos by folder.
        num_new (`int`): number of files written now; the others were there.
        missing (`dict[str, str]`): photos that are not in a folder, and why.
    """

    counts: dict[str, int] = field(default_factory=dict)
    num_new: int = 0
    missing: dict[str, str] = field(default_factory=dict)


def sort_photos(
    found: Predictions,
    output: str | os.PathLike[str],
    folders: Mapping[int, str],
    *,
    link: str | None = None,
    on_photo: Callable[[], Any] | None = None,
) -> Sorted:
    """
    Copy photos into folders, below `OUTPUT/FOLDER/` under their path in the folder of the photos.

    If interrupted, call the function again: files that are complete are kept. A photo that belongs in another folder
    than in an earlier call is removed from there; the copy of a photo that is gone is kept. Files that were not
    written by this function are never touched.

    Args:
        found ([`Predictions`]): the results.
        output (`str` or `os.PathLike`): a new or empty folder, or one written by this function.
        folders (`Mapping[int, str]`): folder by position in the table, see [`folders_of`].
        link (`"hard"` or `"symbolic"`, *optional*): link the photos instead of copying them.
        on_photo (`Callable`, *optional*): called after each photo, for a progress bar.

    Returns:
        [`Sorted`]: the counts.

    Raises:
        OSError: if the folder contains other files or is inside that of the photos, or a file cannot be written.
        ValueError: if `link` has another value.
    """
    if link is not None and link not in LINKS:
        raise ValueError(f"link is {link!r}; expected hard, symbolic or None.")
    output, result = Path(output), Sorted()
    written = _read_manifest(output, found)
    sources, targets = _plan(found, folders, result)
    owners = {name: found.rows[position].id for position, name in targets.items()}
    foreign = sorted(name for name in owners if name not in written and os.path.lexists(output / name))
    if foreign:
        raise OSError(
            f"{str(output / foreign[0])!r} exists and was not written by sorting; move it, or choose another folder."
        )
    output.mkdir(parents=True, exist_ok=True)
    # A file is listed before it is written, so an interruption leaves none that is not listed.
    _write_manifest(output, {**written, **owners})
    placed = set(owners.values())
    for name, owner in written.items():
        if name not in owners and owner in placed:  # in another folder now
            _remove(output, name)
        elif name not in owners and os.path.lexists(output / name):
            owners[name] = owner  # the photo is gone, so this copy can be the last one
            result.missing.pop(owner, None)
            folder = name.partition("/")[0]
            result.counts[folder] = result.counts.get(folder, 0) + 1
    checked: set[Path] = set()
    for position, name in targets.items():
        parent = (output / name).parent
        if parent not in checked:
            _make_parent(output, parent)
            checked.add(parent)
        try:
            result.num_new += _place(sources[position], output / name, link)
            result.counts[folders[position]] = result.counts.get(folders[position], 0) + 1
        except _Gone as error:
            result.missing[found.rows[position].id] = str(error)
        if on_photo is not None:
            on_photo()
    _write_manifest(output, {name: owner for name, owner in owners.items() if os.path.lexists(output / name)})
    order = [folder for folder in ORDER if folder in result.counts]
    result.counts = {folder: result.counts[folder] for folder in [*order, *sorted(set(result.counts) - {*order})]}
    return result


class _Gone(Exception):
    """A photo is not there any more."""


def _plan(found: Predictions, folders: Mapping[int, str], result: Sorted) -> tuple[dict[int, Any], dict[int, str]]:
    """Locate the photos and choose their places below the output, all different, also if case is ignored."""
    sources: dict[int, Any] = {}
    targets: dict[int, str] = {}
    taken: set[str] = set()
    for position, folder in folders.items():
        row = found.rows[position]
        name = found.photos.names[position] if position < len(found.photos.names) else row.id
        try:
            if inside("", name) is None:
                raise OSError(f"{row.id!r} leads out of the folder.")
            source = found.photos.photo(position)
        except OSError as error:
            result.missing[row.id] = str(error)
            continue
        stem, ending = os.path.splitext(name)
        if isinstance(source, dict) and not ending:  # the id of a row of a dataset
            ending = os.path.splitext(str(source.get("path") or ""))[1] or ".png"
        target, number = f"{folder}/{stem}{ending}", 1
        while target.casefold() in taken:
            number += 1
            target = f"{folder}/{stem}-{number}{ending}"
        taken.add(target.casefold())
        sources[position], targets[position] = source, target
    return sources, targets


def _make_parent(output: Path, parent: Path) -> None:
    if not is_inside(parent, output):  # a link that somebody put there
        raise OSError(f"{str(parent)!r} is a link out of {str(output)!r}; remove it, or choose another folder.")
    parent.mkdir(parents=True, exist_ok=True)
    for staged in parent.glob(f".*{STAGED}"):  # left by an interruption
        staged.unlink(missing_ok=True)


def _place(source: Any, target: Path, link: str | None) -> int:
    """Copy or link a photo, completely or not at all. Returns 0 if it is already there."""
    content = source.get("bytes") if isinstance(source, dict) else None
    path: Any = source.get("path") if isinstance(source, dict) else source
    staged = target.with_name(f".{uuid.uuid4().hex[:12]}{STAGED}")
    try:
        if content is not None:
            if link is not None:
                raise OSError(f"{target.name!r} is stored inside of a dataset and cannot be linked; copy the photos.")
            if target.is_file() and not target.is_symlink() and target.read_bytes() == content:
                return 0
            staged.write_bytes(content)
        else:
            if not os.path.isfile(path):
                raise _Gone(f"{os.fspath(path)!r} is not found.")
            if _is_placed(path, target, link):
                return 0
            if link == "hard":
                os.link(os.path.realpath(path), staged)
            elif link == "symbolic":
                os.symlink(os.path.abspath(path), staged)
            else:
                shutil.copyfile(path, staged)
                shutil.copystat(path, staged)
        os.replace(staged, target)
    except OSError as error:
        if error.errno is None:
            raise
        done = "copied" if link is None else f"linked ({link})"
        raise OSError(
            f"{str(target)!r} could not be written: {error.strerror}. The photo could not be {done}."
        ) from error
    finally:
        staged.unlink(missing_ok=True)
    return 1


def _is_placed(path: str | os.PathLike[str], target: Path, link: str | None) -> bool:
    if not os.path.lexists(target):
        return False
    if link == "symbolic":
        return target.is_symlink() and os.path.realpath(target) == os.path.realpath(path)
    if target.is_symlink() or not target.is_file():
        return False
    same_file = os.path.samefile(path, target)
    return same_file if link == "hard" else not same_file and filecmp.cmp(path, target)


def _remove(output: Path, name: str) -> None:
    """Delete a file of an earlier call, and the folders that are empty then."""
    target = output / name
    if not is_inside(target.parent, output):
        return
    target.unlink(missing_ok=True)
    for parent in target.parents:
        if parent == output:
            break
        with contextlib.suppress(OSError):  # contains more
            parent.rmdir()


def _read_manifest(output: Path, found: Predictions) -> dict[str, str]:
    if output.exists() and not output.is_dir():
        raise OSError(f"{str(output)!r} is a file; expected a folder or a path that does not exist.")
    if found.photos.root is not None and found.photos.images is None:
        check_output("The folder of sorted photos", output, [found.photos.root])
    try:
        content = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(owner) for name, owner in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if output.is_dir() and any(output.iterdir()):
            raise OSError(
                f"{str(output)!r} is not empty and was not written by sorting; expected a new folder."
            ) from error
        return {}
    return {name: owner for name, owner in files.items() if inside("", name) is not None}


def _write_manifest(output: Path, owners: Mapping[str, str]) -> None:
    content = {"written_by": "vip2clip_hf", "files": dict(sorted(owners.items()))}
    write_atomically(output / MANIFEST, to_json(content))


__all__ = ["Sorted", "sort_photos"]
