"""Where the photos, anomaly maps and heatmaps of a prediction are."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.text import encodable, shown


# Never part of the path of a photo: drives of Windows, and backslashes, which separate folders there.
_WINDOWS = re.compile(r"^[A-Za-z]:|\\")


def inside(root: str | os.PathLike[str], name: str) -> str | None:
    """
    Join a folder and the name of a photo, which can come from a file of somebody else.

    Args:
        root (`str` or `os.PathLike`): the folder.
        name (`str`): path below the folder, with forward slashes.

    Returns:
        `str`, *optional*: the path, or `None` if the name leads out of the folder.
    """
    parts = name.split("/")
    if not name or "\0" in name or ".." in parts or os.path.isabs(name) or name.startswith("/"):
        return None
    if os.name == "nt" and _WINDOWS.search(name):
        return None
    return os.path.join(os.fspath(root), *parts)


class PhotoFiles:
    """
    Photos of a prediction, with their anomaly maps and heatmaps, by position in the table.

    Args:
        root (`str`, *optional*): folder of the photos. `None` if it is not known.
        names (`Sequence[str]`): paths of the photos below the folder, or their ids.
        images (`Sequence[Callable]`, *optional*): functions that read the photos of a dataset, instead of a folder.
        stems (`Sequence[str]`, *optional*): paths of maps and heatmaps without extension. By default, the names.
        maps (`str`, *optional*): folder of the maps, `.npy`.
        heatmaps (`str`, *optional*): folder of the heatmaps, `.png`.
        reading (`Mapping[str, Any]`, *optional*): how to read the photos, see [`load_image`].
    """

    def __init__(
        self,
        root: str | None = None,
        names: Sequence[str] = (),
        *,
        images: Sequence[Callable[[], Any] | None] | None = None,
        stems: Sequence[str] | None = None,
        maps: str | None = None,
        heatmaps: str | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.names, self.images = root, names, images
        self.stems = names if stems is None else stems
        self.maps, self.heatmaps = maps, heatmaps
        self.reading = dict(reading or {})
        self._by_id: dict[str, str] | None = None

    def photo(self, position: int) -> Any:
        """
        Locate a photo.

        Args:
            position (`int`): position in the table.

        Returns:
            Path or undecoded image, for [`load_image`].

        Raises:
            OSError: if the photo is not found.
        """
        if self.images is not None:
            image = self.images[position]
            if image is None:
                raise OSError("The photo is not in the dataset any more.")
            return image()
        if not self.names:
            raise OSError("The places of the photos are not known.")
        name = self.names[position]
        if self.root is None:
            raise OSError(f"The folder of {name!r} is not known; pass it with --photos.")
        path = inside(self.root, name)
        if path is not None and os.path.isfile(path):
            return path
        found = self._escaped().get(name)
        if found is not None:
            return found
        raise OSError(
            f"{name!r} is not found in {self.root!r}; if the photos were moved, pass their folder with --photos."
        )

    def _escaped(self) -> dict[str, str]:
        """Photos whose names were escaped in the table, because they are not valid text."""
        if self._by_id is None:
            self._by_id = {}
            for folder, _, files in os.walk(self.root or ""):
                for file in files:
                    path = os.path.join(folder, file)
                    name = os.path.relpath(path, self.root).replace(os.sep, "/")
                    for written in (shown(name), encodable(name)):
                        if written != name:
                            self._by_id[written] = path
        return self._by_id

    def map_file(self, position: int) -> Path | None:
        """
        Locate an anomaly map.

        Args:
            position (`int`): position in the table.

        Returns:
            `pathlib.Path`, *optional*: the file, or `None` if there is none.
        """
        return self._beside(self.maps, position, ".npy")

    def heatmap_file(self, position: int) -> Path | None:
        """
        Locate a heatmap.

        Args:
            position (`int`): position in the table.

        Returns:
            `pathlib.Path`, *optional*: the file, or `None` if there is none.
        """
        return self._beside(self.heatmaps, position, ".png")

    def _beside(self, folder: str | None, position: int, extension: str) -> Path | None:
        path = None if folder is None else inside(folder, f"{self.stems[position]}{extension}")
        return Path(path) if path is not None and os.path.isfile(path) else None


__all__ = ["PhotoFiles", "inside"]
