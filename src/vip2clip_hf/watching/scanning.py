"""List the photos of a watched folder, by the rules of all commands."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from ..models.vip2clip.image_listing_vip2clip import (
    UNREADABLE,
    LeftOut,
    has_image_extension,
    is_own_output,
    is_system_path,
    scan_images,
)


class _NewKinds(LeftOut):
    """Reports each kind of left out files once, not in every scan."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._reported: set[str] = set()

    def report(self) -> None:
        known, self.counts = (
            set(self._reported),
            {kind: count for kind, count in self.counts.items() if kind not in self._reported},
        )
        super().report()
        self._reported = known | set(self.counts)
        self.counts, self.examples, self._sniffed = {}, {}, 0


class WatchedImages:
    """
    The photos of a folder. The name of a photo is its path below the folder, with forward slashes.

    Args:
        root (`str`): the folder.
        recursive (`bool`): whether to include subfolders.
    """

    def __init__(self, root: str, recursive: bool) -> None:
        self.root, self.recursive = root, recursive
        self._left_out = _NewKinds(root)

    def names(self) -> Iterator[str]:
        """
        List the photos. Folders that cannot be read are logged and left out.

        Yields:
            `str`: name of a photo.

        Raises:
            OSError: if the folder itself cannot be read.
        """
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            try:
                for name in scan_images(self.root, folder, self._left_out, self.recursive):
                    if name.endswith("/"):
                        waiting.append(folder + name)
                    else:
                        yield folder + name
            except OSError as error:
                if not folder:
                    raise
                self._left_out.add(UNREADABLE, f"{folder} ({error.strerror})")
        self._left_out.report()

    def path(self, name: str) -> str:
        """Path of a photo."""
        return os.path.join(self.root, name)

    def accepts(self, name: str) -> bool:
        """
        Whether a file would be listed.

        Args:
            name (`str`): path below the folder, with forward slashes.

        Returns:
            `bool`: True for a photo that is not hidden and not a result of this package.
        """
        if not has_image_extension(name) or is_system_path(name):
            return False
        folders = [str(folder) for folder in PurePosixPath(name).parents][:-1]
        if folders and not self.recursive:
            return False
        return not any(is_own_output(os.path.join(self.root, folder)) for folder in folders)


__all__ = ["WatchedImages"]
