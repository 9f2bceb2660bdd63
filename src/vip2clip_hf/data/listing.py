"""What lies in a folder, by name: every reader of a layout works on this. No file is opened here."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ..models.vip2clip.image_loading_vip2clip import IMAGE_EXTENSIONS


SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information"})
LAYOUT_FILE, SYSTEM_FILE, NO_IMAGE = "part of the layout", "left by a system or an archiver", "no image"
MASK_WITHOUT_IMAGE, OUTSIDE = "mask without an image", "outside the layout"


def natural_key(text: str) -> list:
    """Sorts Class2 before Class10, independent of case."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text.lower())]


def stem(path: str) -> str:
    """File name without its last extension."""
    return PurePosixPath(path).stem


def has_image_extension(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def is_system_path(path: str) -> bool:
    """Hidden, or known to be left behind by an operating system or an archiver."""
    *folders, name = path.lower().split("/")
    return (
        name in SYSTEM_FILES
        or any(part.startswith(".") for part in (*folders, name))
        or any(part in SYSTEM_FOLDERS for part in folders)
    )


class Listing:
    """
    The files below a folder, each folder read once and when it is asked for, and what became of the files.

    Paths are relative to the root with forward slashes; the root itself is `""`. Symbolic links are followed, except
    to a folder they lie in.

    Args:
        root (`pathlib.Path`): the folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self.unreadable: list[str] = []
        self._scanned: dict[str, tuple[list[str], list[str]]] = {}
        self._names: dict[str, tuple[set[str], set[str]]] = {}
        self._fates: dict[str, str] = {}
        self._all: set[str] | None = None

    @staticmethod
    def join(folder: str, name: str) -> str:
        return f"{folder}/{name}" if folder else name

    def _scan(self, folder: str) -> tuple[list[str], list[str]]:
        if folder not in self._scanned:
            files, folders = [], []
            try:
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        if not entry.is_dir():
                            files.append(entry.name)
                        elif not (entry.is_symlink() and self._leads_up(folder, entry.path)):
                            folders.append(entry.name)
            except OSError:
                if not folder:
                    raise
                self.unreadable.append(folder)
            self._scanned[folder] = sorted(files, key=natural_key), sorted(folders, key=natural_key)
        return self._scanned[folder]

    def _leads_up(self, folder: str, link: str) -> bool:
        """Whether a link in a folder leads to a folder that was passed on the way to it."""
        passed = [self.root, *(self.root / part for part in (PurePosixPath(folder), *PurePosixPath(folder).parents))]
        real = {os.path.realpath(path) for path in passed}
        return os.path.realpath(link) in real | {str(path) for path in Path(os.path.realpath(self.root)).parents}

    def files(self, folder: str) -> list[str]:
        """Names of the files directly in a folder."""
        return self._scan(folder)[0]

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder."""
        return self._scan(folder)[1]

    def all_files(self) -> set[str]:
        """Every file below the root. Reads all folders there are."""
        if self._all is None:
            self._all = set(self.below(""))
        return self._all

    def _names_in(self, folder: str) -> tuple[set[str], set[str]]:
        if folder not in self._names:
            self._names[folder] = set(self.files(folder)), set(self.folders(folder))
        return self._names[folder]

    def has_folder(self, path: str) -> bool:
        """Whether a folder is there. Reads only the folders on the way to it."""
        parent, _, name = path.rpartition("/")
        return not path or (self.has_folder(parent) and name in self._names_in(parent)[1])

    def __contains__(self, path: str) -> bool:
        """Whether a file is there. Reads only the folders on the way to it."""
        folder, _, name = path.rpartition("/")
        return self.has_folder(folder) and name in self._names_in(folder)[0]

    def folder_name(self, folder: str) -> str:
        """Last part of a path below the root; for the root its own name."""
        return folder.rsplit("/", 1)[-1] if folder else Path(os.path.abspath(self.root)).name

    def absolute(self, path: str) -> str:
        """A path that stays true when the working directory changes."""
        return os.path.abspath(self.root / path)

    def images(self, folder: str) -> list[str]:
        """Paths of the image files directly in a folder."""
        paths = (self.join(folder, name) for name in self.files(folder) if has_image_extension(name))
        return [path for path in paths if not is_system_path(path)]

    def subfolders(self, folder: str) -> list[str]:
        """Paths of the folders directly in a folder, without those of a system."""
        paths = (self.join(folder, name) for name in self.folders(folder))
        return [path for path in paths if not is_system_path(f"{path}/x")]

    def find_folder(self, folder: str, *names: str) -> str | None:
        """The folder directly in `folder` with one of these names, in this order, whatever its case."""
        there = {name.lower(): name for name in self.folders(folder)}
        return next((self.join(folder, there[n.lower()]) for n in names if n.lower() in there), None)

    def find_file(self, folder: str, *names: str) -> str | None:
        """As `find_folder`, for a file."""
        there = {name.lower(): name for name in self.files(folder)}
        return next((self.join(folder, there[n.lower()]) for n in names if n.lower() in there), None)

    def below(self, folder: str) -> Iterator[str]:
        """All files below a folder."""
        for name in self.files(folder):
            yield self.join(folder, name)
        for sub in self.folders(folder):
            yield from self.below(self.join(folder, sub))

    def mark(self, paths: Iterable[str | None], fate: str):
        """Say what files are; the last word on a file stands."""
        for path in paths:
            if path is not None:
                self._fates[path] = fate

    def ignored(self, used: set[str]) -> dict[str, list[str]]:
        """Files that nothing was made of, by reason."""
        found: dict[str, list[str]] = {}
        for path in sorted(self.all_files() - used, key=natural_key):
            reason = self._fates.get(path)
            if is_system_path(path):
                reason = SYSTEM_FILE
            elif reason is None:
                reason = OUTSIDE if has_image_extension(path) else NO_IMAGE
            if reason != LAYOUT_FILE:
                found.setdefault(reason, []).append(path)
        return found

    def outline(self, most: int = 12) -> str:
        """The first entries, two levels deep, for an error message."""
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


__all__ = [
    "LAYOUT_FILE",
    "MASK_WITHOUT_IMAGE",
    "Listing",
    "has_image_extension",
    "is_system_path",
    "natural_key",
    "stem",
]
