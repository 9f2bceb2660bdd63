"""Images whose places and versions are listed together with their names."""

from typing import Any

from ..utils.extras import extra
from ..utils.file_state import UNREADABLE, FileState


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa

# Row of the places: numbers, the version last.
Location = tuple[int, ...]


class LocatedImages:
    """Images in a store or in shards. `names()` lists them and sets their places."""

    _locations: "pa.Table | None" = None

    def locations(self) -> "pa.Table":
        """
        Describe where the images are, after `names()`.

        Returns:
            `pyarrow.Table`: one row per image. The last column is `version`, a number that changes with the contents,
            0 if it is not known.
        """
        if self._locations is None:
            raise ValueError("The images are not listed; expected a call of names() before.")
        return self._locations

    def read(self, position: int, name: bytes, location: Location = ()) -> tuple[Any, FileState]:
        """Read an image and its state. Its `inode` is the version."""
        raise NotImplementedError

    def is_unchanged(self, position: int, name: bytes, state: FileState) -> bool:
        """
        Check whether the contents of an image are those of an earlier prediction. It is read only if its version
        differs, or if its version is not known.

        Args:
            position (`int`): position of the image.
            name (`bytes`): name of the image.
            state (`FileState`): state of the earlier image.

        Returns:
            `bool`: whether the contents are the same.
        """
        location = tuple(column[position].as_py() for column in self.locations().columns)
        if state.digest != UNREADABLE and location[-1] and location[-1] == state.inode:
            return True
        try:
            return self.read(position, name, location)[1].digest == state.digest
        except OSError:
            return state.digest == UNREADABLE


__all__ = ["LocatedImages", "Location"]
