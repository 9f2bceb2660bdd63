"""Names of the files in a folder, the input of every layout reader. No file is opened."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..models.vip2clip.image_listing_vip2clip import (
    DEAD_LINK,
    FILE,
    FOLDER,
    LOST_LINK,
    NO_EXTENSION,
    UNREADABLE,
    has_image_extension,
    has_unsupported_extension,
    image_extensions,
    is_system_path,
    is_unnamed_image,
    scan_folder,
    unsupported,
)


# Reasons why a file is ignored, as shown in the report. Files marked LAYOUT_FILE are not shown.
LAYOUT_FILE, SYSTEM_FILE, NO_IMAGE = "layout files", "system files", "files that are not images"
MASK_WITHOUT_IMAGE, OUTSIDE = "masks without an image", "images outside the layout"
# Files without an extension that are opened to see whether they are images, at most.
_MOST_SNIFFED = 20
_DIGITS = re.compile(r"(\d+)")


def natural_key(text: str) -> list[str | int]:
    """Case-insensitive sort key that puts Class2 before Class10. Texts and numbers alternate."""
    parts: list[str | int] = list(_DIGITS.split(text.lower()))
    parts[1::2] = map(int, parts[1::2])
    return parts


def stem(path: str) -> str:
    """File name of a path without the last extension."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


class Listing:
    """
    Lazy listing of the files below a folder. Each folder is read once, on first access.

    Paths are relative to the root and use forward slashes; the root itself is `""`. Symbolic links are followed unless
    they point to a parent folder. The listing also records why files are not used, see [`Listing.mark`].

    Args:
        root (`pathlib.Path`): folder to list.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._absolute = os.path.abspath(root)
        self.problems: dict[str, list[str]] = {}
        self._scanned: dict[str, tuple[list[str], list[str]]] = {}
        self._names: dict[str, tuple[set[str], set[str]]] = {}
        self._reasons: dict[str, str] = {}
        self._has_images: dict[str, bool] = {}

    @staticmethod
    def join(folder: str, name: str) -> str:
        """Path of a file or folder inside a folder."""
        return f"{folder}/{name}" if folder else name

    def _scan(self, folder: str) -> tuple[list[str], list[str]]:
        if folder not in self._scanned:
            files: list[str] = []
            folders: list[str] = []
            try:
                for name, kind in scan_folder(self.root, folder):
                    if kind == FILE:
                        files.append(name)
                    elif kind == FOLDER:
                        folders.append(name)
                    elif not is_system_path(self.join(folder, name)):
                        self.problems.setdefault(kind, []).append(self.join(folder, name))
                        if kind == DEAD_LINK:  # an error when it is opened
                            files.append(name)
            except OSError:
                if not folder:
                    raise
                self.problems.setdefault(UNREADABLE, []).append(folder)
            self._scanned[folder] = sorted(files, key=natural_key), sorted(folders, key=natural_key)
        return self._scanned[folder]

    def files(self, folder: str) -> list[str]:
        """Names of the files directly in a folder."""
        return self._scan(folder)[0]

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder."""
        return self._scan(folder)[1]

    def walk(self, folder: str = "") -> Iterator[str]:
        """Paths of a folder and of all folders below it, without system folders."""
        yield folder
        for inner in self.subfolders(folder):
            yield from self.walk(inner)

    def has_images(self, folder: str) -> bool:
        """Whether there is an image file in a folder or below it."""
        if folder not in self._has_images:
            self._has_images[folder] = any(
                has_image_extension(name) and not name.startswith(".") for name in self.files(folder)
            ) or any(map(self.has_images, self.subfolders(folder)))
        return self._has_images[folder]

    def _names_in(self, folder: str) -> tuple[set[str], set[str]]:
        if folder not in self._names:
            self._names[folder] = set(self.files(folder)), set(self.folders(folder))
        return self._names[folder]

    def has_folder(self, path: str) -> bool:
        """Whether a folder exists. Reads only its parent folders."""
        parent, _, name = path.rpartition("/")
        return not path or (self.has_folder(parent) and name in self._names_in(parent)[1])

    def __contains__(self, path: str) -> bool:
        """Whether a file exists. Reads only its parent folders."""
        folder, _, name = path.rpartition("/")
        return self.has_folder(folder) and name in self._names_in(folder)[0]

    def folder_name(self, folder: str) -> str:
        """Last part of the path of a folder. For `""`, the name of the root."""
        return folder.rsplit("/", 1)[-1] if folder else Path(os.path.abspath(self.root)).name

    def absolute(self, path: str) -> str:
        """Absolute path of a file, valid after a change of the working directory."""
        return os.path.join(self._absolute, path.replace("/", os.sep)) if path else self._absolute

    def images(self, folder: str) -> list[str]:
        """Paths of the image files directly in a folder."""
        extensions = image_extensions()
        if is_system_path(f"{folder}/x"):
            return []
        return [
            self.join(folder, name)
            for name in self.files(folder)
            if name[0] != "." and os.path.splitext(name)[1].lower() in extensions
        ]

    def subfolders(self, folder: str) -> list[str]:
        """Paths of the folders directly in a folder, without system folders."""
        paths = (self.join(folder, name) for name in self.folders(folder))
        return [path for path in paths if not is_system_path(f"{path}/x")]

    def find_folder(self, folder: str, *names: str) -> str | None:
        """Path of the first of these folders that exists directly in `folder`. Case is ignored."""
        found = {name.lower(): name for name in self.folders(folder)}
        return next((self.join(folder, found[n.lower()]) for n in names if n.lower() in found), None)

    def find_file(self, folder: str, *names: str) -> str | None:
        """Path of the first of these files that exists directly in `folder`. Case is ignored."""
        found = {name.lower(): name for name in self.files(folder)}
        return next((self.join(folder, found[n.lower()]) for n in names if n.lower() in found), None)

    def below(self, folder: str) -> Iterator[str]:
        """Paths of all files below a folder."""
        for name in self.files(folder):
            yield self.join(folder, name)
        for sub in self.folders(folder):
            yield from self.below(self.join(folder, sub))

    def mark(self, paths: Iterable[str | None], reason: str) -> None:
        """Record why files are not used as images. A later call for the same file overrides an earlier one."""
        for path in paths:
            if path is not None:
                self._reasons[path] = reason

    def ignored(self, used: set[str]) -> dict[str, list[str]]:
        """Files that are not in `used`, grouped by reason. Reads every folder."""
        found: dict[str, list[str]] = {}
        sniffed = 0
        unused = set(self.below("")) - used
        for path in sorted(unused, key=natural_key):
            reason = self._reasons.get(path)
            if is_system_path(path):
                reason = SYSTEM_FILE
            elif reason is None and has_image_extension(path):
                reason = OUTSIDE
            elif reason is None:
                reason = unsupported(path) if has_unsupported_extension(path) else NO_IMAGE
                if sniffed < _MOST_SNIFFED and "." not in path.rpartition("/")[2]:
                    sniffed += 1
                    reason = NO_EXTENSION if is_unnamed_image(self.absolute(path)) else reason
            if reason != LAYOUT_FILE:
                found.setdefault(reason, []).append(path)
        return found

    def image_folders(self, most: int = 4) -> str:
        """The first `most` folders with images directly inside, with their numbers, for error messages."""
        counts = [(folder or ".", len(images)) for folder in self.walk() if (images := self.images(folder))]
        shown = ", ".join(f"{folder}/ ({count})" for folder, count in counts[:most])
        return f"{shown}, ... ({len(counts)} folders)" if len(counts) > most else shown

    def outline(self, most: int = 12) -> str:
        """The first `most` entries, two levels deep, for error messages."""
        lines = []
        for name in self.folders(""):
            inner = [f"{n}/" for n in self.folders(name)]
            kinds = Counter(os.path.splitext(n)[1].lower() or n for n in self.files(name))
            inner += [f"{count} x {kind}" for kind, count in kinds.most_common(3)]
            lines.append(f"{name}/ ({', '.join(inner[:6]) or 'empty'}{', ...' if len(inner) > 6 else ''})")
        kinds = Counter(os.path.splitext(n)[1].lower() or n for n in self.files(""))
        lines += [f"{count} x {kind}" for kind, count in kinds.most_common(4)]
        more = f", ... ({len(lines)} entries)" if len(lines) > most else ""
        return (", ".join(lines[:most]) + more) or "nothing"


def images_beside(listing: Listing, folder: str) -> list[str]:
    """Paths of the images below the root of a listing that are not below a folder."""
    found: list[str] = []
    waiting = [""]
    while waiting:
        current = waiting.pop()
        found += listing.images(current)
        waiting += [path for path in listing.subfolders(current) if path != folder]
    return sorted(found, key=natural_key)


__all__ = [
    "LAYOUT_FILE",
    "LOST_LINK",
    "MASK_WITHOUT_IMAGE",
    "OUTSIDE",
    "Listing",
    "has_image_extension",
    "images_beside",
    "is_system_path",
    "natural_key",
    "stem",
]
